"""The child processes of this worker: their environment, and that none outlives it."""

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

_ALLOWED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ")

_pids: set[int] = set()
_handed_on: dict[str, str] = {}


def environment() -> dict[str, str]:
    """Return the allow-listed environment of a child."""
    return {name: os.environ[name] for name in _ALLOWED if name in os.environ}


def hand_on(variables: Mapping[str, str]) -> None:
    """Have programs of a project see these too; this process and its own programs do not."""
    _handed_on.update(variables)


def outside() -> dict[str, str]:
    """Return the environment that a program of a project is given a part of."""
    return os.environ | _handed_on


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


def reap_orphans() -> None:
    """Reap the descendants that came to this process when their parents ended: nobody else waits
    for them. A child of our own is in our process group or leads one; an orphan does neither, or
    has a session of its own. Linux only: elsewhere orphans do not come here."""
    ours = os.getsid(0), os.getpgid(0)
    for pid in _children():
        try:
            session, group = os.getsid(pid), os.getpgid(pid)
            if session != ours[0] or group not in (pid, ours[1]):
                os.waitpid(pid, os.WNOHANG)
        except ProcessLookupError, ChildProcessError:
            continue


def _children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended; or the kernel has no such file
            found += map(int, (task / "children").read_text().split())
    return found


def _kill(how: Callable[[int, int], None], number: int) -> None:
    """macOS says EPERM for a group of zombies."""
    try:
        how(number, signal.SIGKILL)
    except ProcessLookupError, PermissionError:
        return


def _descendants() -> set[int]:
    import psutil

    return {child.pid for child in psutil.Process().children(recursive=True)}
