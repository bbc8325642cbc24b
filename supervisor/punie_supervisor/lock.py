"""One daemon per user: a lock held for the life of the process.

The lock is the kernel's (flock): it ends with the process, however that ends. The file's text is
only for people: the holder's pid. An empty or stale file is no obstacle.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import Final, Self

from punie_protocol.errors import InvalidRequest, PunieError

PATIENCE: Final = 0.2
"""Seconds for which the lock may be held by a client that only looks whether anyone has it."""


class AlreadyRunning(PunieError):
    """Another daemon of this user holds the lock; `pid` is ``None`` when it did not say."""

    def __init__(self, path: Path, pid: int | None) -> None:
        who = f"with pid {pid}" if pid else "(its pid is not known)"
        super().__init__(
            InvalidRequest(
                message=f"punie is already running {who}; it holds {path}",
                hint="use it, or end it with: punie down",
            )
        )
        self.pid = pid


class LifetimeLock:
    """Held from `acquire` until `release` or the end of the process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def acquire(cls, path: Path) -> Self:
        """Take the lock and write our pid; blocks up to `PATIENCE`. Raises `AlreadyRunning`."""
        deadline = time.monotonic() + PATIENCE
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = _read_pid(fd)
                os.close(fd)
                if time.monotonic() > deadline:
                    raise AlreadyRunning(path, pid) from None
                time.sleep(0.01)
                continue
            if _is_at(fd, path):
                break
            os.close(fd)  # the file was removed between open and lock: lock its successor
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return cls(fd)

    def release(self) -> None:
        """Give the lock back; the file stays, empty."""
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _read_pid(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None
