"""Breadcrumbs: which project halves were inside a call when the worker process died.

The file is the supervisor's, and shared memory: what is written here is there the next instant and
survives any death of this process. One byte a half, 1 while its interpreter is inside a call (or
being made, or ended), else 0.
"""

import mmap
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.limits import MAX_HALVES

INSIDE: Final = 1
OUTSIDE: Final = 0


class Crumb:
    """The byte of one project. Its halves share it, from any thread: while one of them hangs it
    stays set, whatever its successor does."""

    def __init__(self, memory: bytearray | mmap.mmap, slot: int) -> None:
        self._memory = memory
        self._slot = slot
        self._inside = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        """Set it; each `enter` has its `leave`."""
        with self._lock:
            self._inside += 1
            self._memory[self._slot] = INSIDE

    def leave(self) -> None:
        """Clear it with the last one."""
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._memory[self._slot] = OUTSIDE

    @contextmanager
    def inside(self) -> Generator[None]:
        """Be inside in a ``with``."""
        self.enter()
        try:
            yield
        finally:
            self.leave()


def nowhere() -> Crumb:
    """Return a crumb that nobody looks for."""
    return Crumb(bytearray(1), 0)


class Crumbs:
    """The breadcrumb file at `path`, `MAX_HALVES` bytes; nobody looks for them when that is empty.
    Raises `PunieError` when it is no such file. It stays mapped until the process ends: a half that
    hangs may write to it at any time."""

    def __init__(self, path: str) -> None:
        self._memory = _mapped(path) if path else bytearray(MAX_HALVES)

    def crumb(self, slot: int) -> Crumb:
        """Return the crumb of a half, not inside. Raises `PunieError`."""
        if not 0 <= slot < MAX_HALVES:
            message = f"there is no breadcrumb {slot}: they are 0 to {MAX_HALVES - 1}"
            raise PunieError(InvalidRequest(message=message))
        return Crumb(self._memory, slot)

    def wipe(self) -> None:
        """Name nobody: the process ends for another reason."""
        self._memory[:] = bytes(MAX_HALVES)


def _mapped(path: str) -> mmap.mmap:
    """Map the file; its descriptor is closed again."""
    fd = -1
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        if (size := os.fstat(fd).st_size) != MAX_HALVES:
            message = f"the breadcrumb file {path} has {size} bytes, not {MAX_HALVES}"
            raise PunieError(InvalidRequest(message=message))
        return mmap.mmap(fd, MAX_HALVES, trackfd=False)
    except OSError as error:
        message = f"the breadcrumb file {path} cannot be used: {error.strerror}"
        raise PunieError(InvalidRequest(message=message)) from error
    finally:
        if fd >= 0:
            os.close(fd)
