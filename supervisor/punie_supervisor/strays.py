"""Orphans of ended children: found, ended, reaped. Linux only; elsewhere they go to init.

A process that is a *subreaper* is given the orphans among its descendants. Workers and model
servers are subreapers themselves, so that while one lives its orphans stay below it, where limits
count them; when it ends, they come here. A child that we did not start and that is not of our
session is thus left behind by an ended one, whatever sessions and groups it made for itself:
nobody waits for it, so it is killed. What it leaves comes here too, and is found by the next
look. Children that this process had before it asked for orphans (of a shell that became it) are
not touched.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Final

from punie_supervisor import logs

LOOK_AGAIN: Final = 0.01
"""Seconds after a kill until the next look."""
MAX_LOOKS: Final = 500
"""Looks in a row; what still lives then cannot be ended."""

_PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h

_ours: set[int] = set()
_users = 0
_births = 0
_looking: asyncio.TimerHandle | None = None


def supported() -> bool:
    """Whether orphans can be had here."""
    return sys.platform == "linux"


@contextlib.contextmanager
def adopting() -> Generator[None]:
    """Be given the orphans of our descendants while the context is open. Raises `OSError`."""
    global _users, _looking  # noqa: PLW0603 - a property of the process
    _users += 1
    if _users == 1:
        _ours.update(_children())
        subreaper(on=True)
    try:
        yield
    finally:
        _users -= 1
        if not _users:
            subreaper(on=False)
            if _looking is not None:
                _looking.cancel()
                _looking = None


def subreaper(*, on: bool) -> None:
    """Have the kernel give orphans to this process, or no more. Raises `OSError`."""
    if not supported():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


@contextlib.contextmanager
def birth() -> Generator[None]:
    """While the context is open a child that we do not know yet may come: nothing is swept."""
    global _births  # noqa: PLW0603
    _births += 1
    try:
        yield
    finally:
        _births -= 1


def remember(pid: int) -> None:
    """This child is ours until `forget`."""
    _ours.add(pid)


def forget(pid: int) -> None:
    """This child was reaped."""
    _ours.discard(pid)


def sweep(looks: int = MAX_LOOKS) -> None:
    """Kill and reap the orphans that are here, in the background until there are none. To be
    called on the event loop when a child has ended."""
    global _looking  # noqa: PLW0603
    if not _users or not supported():
        return
    if _looking is not None:
        _looking.cancel()
        _looking = None
    left = [] if _births else [pid for pid in _orphans() if not _end(pid)]
    if not (left or _births):
        return
    if not looks:
        logs.get().error("strays.left", pids=left)
        return
    again = asyncio.get_running_loop().call_later
    _looking = again(LOOK_AGAIN, sweep, looks if _births else looks - 1)


def _orphans() -> list[int]:
    """Return our children that we did not start."""
    session = os.getsid(0)
    return [pid for pid in _children() if pid not in _ours and _session(pid) != session]


def _children() -> list[int]:
    found: list[int] = []
    if supported():
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # the thread has ended; or there is no such file
                found += map(int, (task / "children").read_text().split())
    return found


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def _end(pid: int) -> bool:
    """Kill a child that nobody waits for; whether it is gone for good."""
    try:
        os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ProcessLookupError, ChildProcessError:
        return True
    except PermissionError:  # it became another user's (a set-user-id program)
        return False
