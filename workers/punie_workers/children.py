"""The child processes of this worker: their environment, and that none outlives it."""

import os
import signal
from typing import Final

_ALLOWED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ")

_pids: set[int] = set()


def environment() -> dict[str, str]:
    """Return the allow-listed environment of a child."""
    return {name: os.environ[name] for name in _ALLOWED if name in os.environ}


def scrub_environment() -> None:
    """Keep of this process's environment what its children may see: some start others."""
    for name in os.environ.keys() - environment().keys():
        del os.environ[name]


def add(pid: int) -> None:
    """Remember a child until `remove`; the caller has not reaped it before that."""
    _pids.add(pid)


def remove(pid: int) -> None:
    """Forget a child that was reaped."""
    _pids.discard(pid)


def kill_all() -> None:
    """End every child at once: those that were added, and on Linux every other one too (the
    sandbox's pool starts its own)."""
    for pid in _pids | _descendants():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _descendants() -> set[int]:
    import psutil

    return {child.pid for child in psutil.Process().children(recursive=True)}
