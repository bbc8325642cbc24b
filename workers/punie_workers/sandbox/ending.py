"""The end of one sandbox: seen for sure, and brought about when it does not come by itself."""

import json
import os
import select
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from punie_workers.sandbox.confinement import broken

PATIENCE_S: Final = 5.0
"""Seconds that a killed sandbox may take to be gone: the kernel ends every process in it."""
_MUCH: Final = 64 * 1024


class Ending:
    """A context for one sandbox. ``bwrap`` writes to `fd` which process is the first of the
    sandbox; when the context is left, that one is killed, which ends all others, and waited for:
    afterwards nothing in there runs any more. Raises `PunieError` when it will not go away."""

    def __init__(self) -> None:
        self._read, self.fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        try:
            said = self._said()
        finally:
            os.close(self._read)
        if said is not None:
            _end(*said)

    def _said(self) -> tuple[int, int] | None:
        """Return the number of the first process and of its process namespace; ``None`` when none
        was started."""
        with suppress(BlockingIOError):
            text = os.read(self._read, _MUCH)
            for line in text.splitlines():
                with suppress(ValueError, KeyError, TypeError):
                    said = json.loads(line)
                    return said["child-pid"], said["pid-namespace"]
        return None


def _end(pid: int, namespace: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not _is_of(pid, namespace):
            return  # the number was given to another
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        if not select.select([fd], [], [], PATIENCE_S)[0]:
            raise broken(f"the sandbox of process {pid} did not end within {PATIENCE_S:g} s")
    finally:
        os.close(fd)


def _is_of(pid: int, namespace: int) -> bool:
    """Whether a process is in that namespace. One that was reaped, or is another user's, is not;
    one that is ending still is."""
    try:
        return Path(f"/proc/{pid}/ns/pid").stat().st_ino == namespace
    except FileNotFoundError, ProcessLookupError, PermissionError:
        return False
