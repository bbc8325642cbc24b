"""A faster BLAS for MLX on Linux.

MLX's CPU wheel carries a reference BLAS of a few GFLOPS; a system OpenBLAS is 10 to 100 times as
fast. Loaded with global symbols before MLX is, it takes the place of the one in the wheel, in this
process alone: no environment variable, so no child inherits it.
"""

import ctypes
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

CHOICE: Final = "PUNIE_OPENBLAS"
"""Environment: the library to use; empty for none."""
_POINTER: Final = "share/punie/openblas.path"


def wanted(environ: Mapping[str, str], prefix: Path, platform: str) -> Path | None:
    """Return the library to load, None when there is none."""
    if platform != "linux":
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


def threads(cores: int) -> int:
    """Return how many threads to compute with: one core is left to the tools that run beside.

    The threads meet several times in each layer; with one for every core, a single busy neighbour
    slows them all (measured in ``docs/decisions/0005-one-core-left-free.md``).
    """
    return max(1, cores - 1)


def load(library: Path, threads: int) -> None:
    """Load `library` for everything that is loaded later. To be called before MLX is imported.

    It uses `threads` threads unless ``OPENBLAS_NUM_THREADS`` says otherwise. Raises `OSError`.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def main() -> None:
    """Print as JSON which `library` a model host would load here, and the `error` if it cannot."""
    library, why = wanted(os.environ, Path(sys.prefix), sys.platform), ""
    if library is not None:
        try:
            load(library, threads=1)
        except OSError as error:
            why = str(error)
    print(json.dumps({"library": library and str(library), "error": why}))


if __name__ == "__main__":
    main()
