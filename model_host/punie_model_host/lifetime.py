"""How the process ends, and what it leaves behind."""

import ctypes
import os
import resource
import signal
import stat
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_TEMPORARY: Final = "model-host-tmp"


def die_with_parent() -> None:
    """On Linux: have the kernel kill this process when its parent ends. Elsewhere the end of the
    control link does it."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended in between, and the signal will not come
        leave(1)


def _ignore(_resource: int, _limits: tuple[int, int], /) -> None:
    """Stands in for `resource.setrlimit`."""


@contextmanager
def own_descriptor_limit() -> Generator[None]:
    """Import mlx-lm within: it sets the limit of open files to 4,096 for all of the process, lower
    than it may be, and cannot be imported where the limit is lower than that already."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    given = resource.setrlimit
    setattr(resource, "setrlimit", _ignore)  # noqa: B010  the checker knows one function there
    try:
        yield
    finally:
        setattr(resource, "setrlimit", given)  # noqa: B010
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def leave(code: int) -> NoReturn:
    """End at once. Finalising the interpreter while MLX computes in a thread can crash it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def private_temporary_folder(run_dir: Path) -> Path:
    """Make and return a folder for the kernels that MLX compiles, kept between starts. Raises
    `OSError` when somebody else could write there."""
    folder = run_dir / _TEMPORARY
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a private folder of this user; remove it")
    return folder


def remove_socket(path: Path) -> None:
    """Remove a socket that a process before this one left. Raises `OSError` for anything else
    at `path`."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(f"{path} exists and is no socket")
    path.unlink(missing_ok=True)
