"""OpenBLAS for the model host: MLX's own Linux wheel has a reference BLAS, 10 to 100 times slower.

The outcome is a library that was really loaded into our interpreter and multiplied right; its
path is written to one file that the model host reads. Without it everything works, slowly.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Iterator

from bootstrap_lib import apt, prefix, shell
from bootstrap_lib.interpreter import Interpreter
from bootstrap_lib.layout import Layout
from bootstrap_lib.prefix import OPENBLAS, Patchelf
from bootstrap_lib.report import BootstrapError
from bootstrap_lib.state import remove, write_text

INSTALLED = (
    "/usr/lib/*-linux-gnu*/openblas-pthread/libopenblas.so.0",
    "/usr/lib64/libopenblasp.so.0",
    "/usr/lib/libopenblas.so.0",
)
"""Where distributions put a multi-threaded OpenBLAS."""

TRIAL = """
import ctypes, os, sys, time
library = sys.argv[1]
if os.environ.get("LD_PRELOAD") != library:
    ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
import mlx.core as mx, numpy as np
left, right = (mx.random.normal((1024, 1024)) for _ in range(2))
mx.eval(left @ right)
seconds = []
for _ in range(3):
    begun = time.perf_counter()
    product = left @ right
    mx.eval(product)
    seconds.append(time.perf_counter() - begun)
with open("/proc/self/maps") as maps:
    assert os.path.realpath(library) in maps.read(), "it was not loaded"
error = np.abs(np.array(product) - np.array(left) @ np.array(right)).max()
assert error < 1e-2, f"its products are off by {error}"
print(round(2 * 1024**3 / min(seconds) / 1e9))
"""


class NoBlas(Exception):
    """There is no OpenBLAS to be had here; the text says why."""


def provide(layout: Layout, interpreter: Interpreter) -> str:
    """Find or install OpenBLAS, try it, record its path; return the outcome in words.

    Never fails: a machine without one gets a clear line instead.
    """
    if sys.platform == "darwin":
        return "not needed on macOS"
    try:
        library, speed = _first_that_loads(layout, interpreter)
    except NoBlas as error:
        remove(layout.openblas_path)
        reason = " ".join(str(error).split())
        return (
            f"none: the model host will run on MLX's slow reference BLAS ({reason}); to mend it,"
            " install your distribution's multi-threaded OpenBLAS (libopenblas0-pthread) and run"
            " scripts/bootstrap --again"
        )
    write_text(layout.openblas_path, f"{library}\n")
    return f"{speed} GFLOPS with {library}"


def _first_that_loads(layout: Layout, interpreter: Interpreter) -> tuple[Path, str]:
    reasons = []
    for library in _candidates(layout, interpreter, reasons):
        try:
            return library, _try(layout, library)
        except shell.CommandFailed as error:
            reasons.append(f"{library} does not load: {error}")
    raise NoBlas("; ".join(reasons) or "no library found")


def _candidates(layout: Layout, interpreter: Interpreter, reasons: list[str]) -> Iterator[Path]:
    """Libraries to try, the cheapest first; why there are no more goes into `reasons`."""
    suite = prefix.suite_name(rolling=interpreter.own_libc)
    built = layout.tools / OPENBLAS.name
    if prefix.is_complete(layout, OPENBLAS, suite):
        yield from libraries_in(built)
    for pattern in INSTALLED:
        yield from sorted(Path("/").glob(pattern.lstrip("/")))
    try:
        yield from libraries_in(_build(layout, rolling=interpreter.own_libc))
    except BootstrapError as error:
        reasons.append(error.cause)
    except (NoBlas, shell.CommandFailed) as error:
        reasons.append(str(error))


def _build(layout: Layout, *, rolling: bool) -> Path:
    distribution = apt.this_distribution()
    if distribution is None:
        raise NoBlas("this is no Debian-family system with apt-get and dpkg")
    private = apt.PrivateApt(layout.tools / "apt", distribution)
    patchelf = Patchelf(layout)
    return prefix.build(
        layout, OPENBLAS, private, rolling=rolling, finish=lambda part, _: relink(part, patchelf)
    )


def libraries_in(folder: Path) -> list[Path]:
    """The OpenBLAS of a prefix, under the name that does not change with its version."""
    return sorted(folder.glob("usr/lib/*/openblas-pthread/libopenblas.so.0"))


def relink(part: Path, patchelf: Patchelf) -> None:
    """Let OpenBLAS find the Fortran runtime beside it."""
    for library in libraries_in(part):
        patchelf.set_search_path(library.resolve(), "$ORIGIN/..")
    for library in sorted(part.glob("usr/lib/*/libgfortran.so.*")):
        if not library.is_symlink():
            patchelf.set_search_path(library, "$ORIGIN")


def _try(layout: Layout, library: Path) -> str:
    """Load the library into a child in front of MLX's own, multiply, compare; return GFLOPS.

    By preloading; where its path cannot be preloaded (the loader splits at spaces and colons), by
    `dlopen` into the global scope, which has the same effect.
    """
    env = dict(os.environ)
    if not set(" :").intersection(str(library)):
        env["LD_PRELOAD"] = str(library)
    return shell.run(
        [layout.venv_python, "-I", "-c", TRIAL, library], env=env, timeout_s=120
    ).strip()
