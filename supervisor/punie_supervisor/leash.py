"""``python -m punie_supervisor.leash PARENT COMMAND…``: become a program that ends with its parent,
the process of that id.

For programs that are not ours and so cannot ask for it themselves. On Linux the kernel keeps the
parent-death signal across ``exec``. Elsewhere a daemon that is killed leaves the program behind;
the next daemon finds it answering and uses it.
"""

import ctypes
import os
import signal
import sys
from typing import Final

CANNOT_RUN: Final = 127
"""Exit status when there is no such program, as of a shell."""
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER: Final = 36


def main() -> None:
    """Replace this process by the command on its own command line."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    _end_with(parent)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(CANNOT_RUN)


def _end_with(parent: int) -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):  # its orphans stay its own while it lives
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:  # it has ended, and the signal will not come
        os._exit(0)


if __name__ == "__main__":
    main()
