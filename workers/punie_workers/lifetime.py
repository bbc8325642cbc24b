"""A worker never outlives its supervisor, takes no more than it may, and leaves nothing behind."""

import contextlib
import ctypes
import os
import signal
import sys
from typing import Final, NoReturn

from punie_protocol.isolation import WorkerLimits
from punie_workers import children

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
"""prctl(2)."""

_M_TRIM_THRESHOLD: Final = -1
_M_ARENA_MAX: Final = -8
_M_MMAP_THRESHOLD: Final = -3
"""mallopt(3)."""

UNUSED_MB: Final = 256
"""What the kernel counts and nobody uses: pages shared with the fork server, stacks of threads."""
WORN_OUT: Final = 3
"""Exit status of a worker that lost too many interpreters to go on."""


def set_title(title: str) -> None:
    """Be called `title` in the list of processes."""
    from setproctitle import setproctitle

    setproctitle(title)


def end_with_parent() -> None:
    """On Linux, have the kernel end this process when its parent dies. Exits at once when that
    happens during the call; a parent that was gone before it shows as the end of the link."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def keep_orphans() -> None:
    """On Linux, be given the orphans among this process's descendants: however they detach
    themselves, they count as its own, and end with it."""
    if sys.platform == "linux":
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def limit(limits: WorkerLimits) -> None:
    """Have the kernel keep this process, and each that it starts, to `limits`: private memory and
    open descriptors; no core is dumped. A limit that is lower already stays.

    The supervisor counts all processes together, and their CPU time; these are for what happens
    between two looks. macOS takes the limit on memory and does not keep to it.
    """
    import resource

    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, limits.files)
    _lower(resource.RLIMIT_DATA, (limits.memory_mb + UNUSED_MB) * 1024 * 1024)


def _lower(what: int, most: int) -> None:
    import resource

    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with contextlib.suppress(ValueError):  # macOS has a bound of its own, below its hard limit
        resource.setrlimit(what, (most, most))


def keep_little() -> None:
    """Have the C library, where it is glibc, give a block of 64 KB or more back to the kernel when
    it is freed. By itself it raises that bound with each large block that it sees, and keeps what
    a long conversation needed for a moment. All threads share two arenas: with one each, what a
    thread has freed stays in that when it ends, and a worker has seen thousands."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 64 * 1024)
        libc.mallopt(_M_TRIM_THRESHOLD, 128 * 1024)
        libc.mallopt(_M_ARENA_MAX, 2)


def trim() -> None:
    """Give memory that the C library holds and nobody uses back to the kernel, where it can. Takes
    about a millisecond."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def leave(code: int) -> NoReturn:
    """End the process and its children now. Finalisation is left out on purpose: with a running
    interpreter it ends in a segmentation fault."""
    try:
        sys.stderr.flush()
        children.kill_all()
    finally:
        os._exit(code)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
