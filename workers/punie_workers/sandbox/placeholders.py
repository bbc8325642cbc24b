"""Things as good as empty that stand for protected names which do not exist, while a program runs.

One is recognised by its time stamp, `STAMP`, and by being empty: nothing is written down. Whoever
uses one holds a shared lock on it; the last one removes it. One that a crash left behind is used
by the next program and then removed; the user may as well put something into it, and it is
theirs.
"""

import fcntl
import os
import stat
import time
from contextlib import suppress
from typing import Final

from punie_workers.sandbox.confinement import refused
from punie_workers.sandbox.names import Absent

STAMP: Final = 1_000_000_007
"""When, by its time stamp, something of ours was last changed: seconds since 1970."""
HERE: Final = b".\n"
"""What is in a file that names the folder it is in."""
PATIENCE_S: Final = 2.0
"""Seconds to wait for another program's placeholder to be made or removed."""
_PAUSE_S: Final = 0.002
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_MADE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def make(parent: int, name: str, what: Absent) -> None:
    """Make an empty thing with our stamp; that another was faster is fine. Raises `OSError`."""
    try:
        if what is Absent.FOLDER:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            fd = os.open(name, _MADE, 0o644, dir_fd=parent)
            try:
                os.write(fd, HERE if what is Absent.HERE else b"")
            finally:
                os.close(fd)
        os.utime(name, (STAMP, STAMP), dir_fd=parent, follow_symlinks=False)
    except FileExistsError:
        return


def is_empty(fd: int) -> bool:
    """Whether a readable file or folder has nothing in it, or no more than `HERE`."""
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        with os.scandir(fd) as entries:
            return next(entries, None) is None
    if not stat.S_ISREG(status.st_mode) or status.st_size > len(HERE):
        return False
    return os.pread(fd, len(HERE), 0) in (b"", HERE)


class Used:
    """An empty thing in the folder `parent` that a program's protection relies on; it stays until
    `give_back`. Owns a descriptor of its own and one of the folder."""

    def __init__(self, parent: int, name: str, fd: int) -> None:
        self._parent = os.dup(parent)
        self._name = name
        self._fd = fd

    def give_back(self) -> None:
        """Remove it if it is ours, still empty, and nobody else relies on it."""
        try:
            with suppress(BlockingIOError, FileNotFoundError, PermissionError):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._remove()
        finally:
            os.close(self._fd)
            os.close(self._parent)

    def _remove(self) -> None:
        status = os.fstat(self._fd)
        here = os.stat(self._name, dir_fd=self._parent, follow_symlinks=False)
        if not os.path.samestat(status, here) or int(status.st_mtime) != STAMP:
            return
        if not is_empty(self._fd):
            return
        if stat.S_ISDIR(status.st_mode):
            with suppress(OSError):  # something was put into it this moment: it stays
                os.rmdir(self._name, dir_fd=self._parent)
        else:
            os.unlink(self._name, dir_fd=self._parent)


def use(parent: int, name: str, path: str, found: int) -> Used | None:
    """Return the hold on an empty thing, which was `found` as a descriptor; ``None`` for one that
    has something in it, or is not ours to read, which nobody removes. Raises `FileNotFoundError`
    when it was removed meanwhile, `PunieError` with `Denied` when another program holds it for
    itself."""
    mode = os.fstat(found).st_mode
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        return None
    try:
        fd = os.open(f"/proc/self/fd/{found}", _READ)
    except PermissionError:
        return None
    try:
        if not is_empty(fd):
            os.close(fd)
            return None
        _share(fd, path)
        return Used(parent, name, fd)
    except BaseException:
        with suppress(OSError):
            os.close(fd)
        raise


def _share(fd: int, path: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            break
        if time.monotonic() > deadline:
            message = f"'{path}' of the project cannot be protected: another program locks it"
            raise refused(message, "end the project's background commands and try again")
        time.sleep(_PAUSE_S)
    if os.fstat(fd).st_nlink == 0:
        raise FileNotFoundError(path)
