"""The child processes of this worker: their environment, and that none outlives it."""

import os
import signal
from collections.abc import Callable
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
    """Remember the leader of a process group until `remove`; the caller has not reaped it before
    that."""
    _pids.add(pid)


def remove(pid: int) -> None:
    """Forget a child that was reaped."""
    _pids.discard(pid)


def kill_all() -> None:
    """End every child at once: the groups of those that were added, and every other one too (the
    sandbox's pool starts its own). Who descends from whom is asked first: a process whose parent
    is gone is no descendant any more."""
    descendants = _descendants()
    for pid in _pids:
        _kill(os.killpg, pid)
    for pid in descendants:
        _kill(os.kill, pid)


def _kill(how: Callable[[int, int], None], number: int) -> None:
    """macOS says EPERM for a group of zombies."""
    try:
        how(number, signal.SIGKILL)
    except ProcessLookupError, PermissionError:
        return


def _descendants() -> set[int]:
    import psutil

    return {child.pid for child in psutil.Process().children(recursive=True)}
