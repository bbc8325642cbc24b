"""A faster BLAS for MLX on Linux.

MLX's CPU wheel carries a reference BLAS of a few GFLOPS; preloading a system OpenBLAS is 10 to
100 times as fast. A library can only be preloaded when a program starts, so the host executes
itself once more.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

CHOICE: Final = "PUNIE_OPENBLAS"
"""Environment: the library to use; empty for none."""
MARKER: Final = "PUNIE_OPENBLAS_PRELOADED"
"""Environment of the second start: the `LD_PRELOAD` to restore."""
_POINTER: Final = "share/punie/openblas.path"


def wanted(environ: Mapping[str, str], prefix: Path, platform: str) -> Path | None:
    """Return the library to preload, None when there is none or it is loaded already."""
    if platform != "linux" or MARKER in environ:
        return None
    choice = environ.get(CHOICE)
    if choice is None:
        try:
            choice = (prefix / _POINTER).read_text("utf-8").strip()
        except OSError, UnicodeDecodeError:
            return None
    if not choice:
        return None
    library = Path(choice)
    return library if library.is_absolute() and library.is_file() else None


def with_preload(environ: Mapping[str, str], library: Path, threads: int) -> dict[str, str]:
    """Return the environment for the second start."""
    before = environ.get("LD_PRELOAD", "")
    return {
        **environ,
        "LD_PRELOAD": f"{library} {before}".strip(),
        MARKER: before,
        "OPENBLAS_NUM_THREADS": environ.get("OPENBLAS_NUM_THREADS", str(threads)),
    }


def restart_with(library: Path, keep: int) -> None:
    """Execute this program again with `library` preloaded; descriptor `keep` stays open. Returns
    only on failure."""
    environ = with_preload(os.environ, library, os.process_cpu_count() or 1)
    os.set_inheritable(keep, True)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


def after_restart() -> str:
    """Undo the environment of the second start, so that no child inherits it; return what was
    preloaded, or an empty string."""
    if MARKER not in os.environ:
        return ""
    before = os.environ.pop(MARKER)
    loaded = os.environ.pop("LD_PRELOAD", "")
    if before:
        os.environ["LD_PRELOAD"] = before
    return loaded.removesuffix(before).strip()
