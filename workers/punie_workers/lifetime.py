"""A worker never outlives its supervisor, and leaves nothing behind."""

import ctypes
import os
import signal
import sys
from typing import Final, NoReturn

from punie_workers import children

_PR_SET_PDEATHSIG = 1
"""prctl(2)."""

WORN_OUT: Final = 3
"""Exit status of a worker that lost too many interpreters to go on."""


def end_with_parent() -> None:
    """On Linux, have the kernel end this process when its parent dies. Exits at once when that
    happens during the call; a parent that was gone before it shows as the end of the link."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        os._exit(0)


def leave(code: int) -> NoReturn:
    """End the process and its children now. Finalisation is left out on purpose: with a running
    interpreter it ends in a segmentation fault."""
    try:
        sys.stderr.flush()
        children.kill_all()
    finally:
        os._exit(code)
