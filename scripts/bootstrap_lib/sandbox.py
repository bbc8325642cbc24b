"""bubblewrap for the programs that a tool runs: without one, commands are refused on Linux.

The outcome is a `bwrap` that has really run a program. One that is installed and works is used;
else the distribution's package is unpacked into `.tools`, and its path is written to one file that
the workers read.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Iterator

from bootstrap_lib import apt, prefix, shell
from bootstrap_lib.layout import Layout
from bootstrap_lib.prefix import BUBBLEWRAP, Patchelf
from bootstrap_lib.report import BootstrapError
from bootstrap_lib.state import remove, write_text

INSTALLED = (Path("/usr/bin/bwrap"), Path("/usr/local/bin/bwrap"))
"""Where distributions put it, and where the workers look by themselves."""

NEEDED = "--ro-bind-fd"
"""The newest option that must be there: mounts by descriptor."""

TRIAL = ("--unshare-user", "--unshare-pid", "--unshare-net", "--die-with-parent", "--new-session")
FORBIDDEN = ("namespace", "uid map", "Operation not permitted", "Permission denied")
"""Words of a complaint that another `bwrap` would make as well: the machine forbids it."""


class NoSandbox(Exception):
    """There is no bubblewrap to be had here; the text says why."""


def provide(layout: Layout) -> str:
    """Find or install bubblewrap, try it, record its path; return the outcome in words.

    Never fails: a machine without one gets a clear line instead.
    """
    if sys.platform == "darwin":
        return "sandbox-exec, which comes with macOS"
    try:
        program = _first_that_works(layout)
    except NoSandbox as error:
        remove(layout.bubblewrap_path)
        reason = " ".join(str(error).split())
        return (
            f"none: commands and tests will be refused ({reason}); to mend it, install"
            " bubblewrap and let users make namespaces; `punie doctor` says whether it works"
        )
    if program in INSTALLED:
        remove(layout.bubblewrap_path)
    else:
        write_text(layout.bubblewrap_path, f"{program}\n")
    return f"{attempt(program)}, {program}"


def _first_that_works(layout: Layout) -> Path:
    reasons: list[str] = []
    for program in _candidates(layout, reasons):
        try:
            attempt(program)
            return program
        except shell.CommandFailed as error:
            reasons.append(f"{program}: {error}")
            if forbidden(str(error)):
                break
    raise NoSandbox("; ".join(reasons) or "no program found")


def _candidates(layout: Layout, reasons: list[str]) -> Iterator[Path]:
    """Programs to try, the cheapest first; why there are no more goes into `reasons`."""
    yield from (program for program in INSTALLED if program.exists())
    if prefix.is_complete(layout, BUBBLEWRAP, prefix.suite_name(rolling=False)):
        yield program_in(layout.tools / BUBBLEWRAP.name)
    try:
        yield program_in(_build(layout))
    except BootstrapError as error:
        reasons.append(error.cause)
    except (NoSandbox, shell.CommandFailed) as error:
        reasons.append(str(error))


def _build(layout: Layout) -> Path:
    distribution = apt.this_distribution()
    if distribution is None:
        raise NoSandbox("it is not installed, and this is no system with apt-get and dpkg")
    private = apt.PrivateApt(layout.tools / "apt", distribution)
    patchelf = Patchelf(layout)
    return prefix.build(
        layout, BUBBLEWRAP, private, rolling=False, finish=lambda part, _: relink(part, patchelf)
    )


def program_in(folder: Path) -> Path:
    return folder / "usr" / "bin" / "bwrap"


def relink(part: Path, patchelf: Patchelf) -> None:
    """Let the program find its libraries beside it, not those of the machine, which may differ."""
    folders = sorted({path.parent for path in part.glob("**/lib*.so.*")})
    places = ["$ORIGIN/../../" + folder.relative_to(part).as_posix() for folder in folders]
    patchelf.set_search_path(program_in(part), ":".join(places))


def attempt(program: Path) -> str:
    """Run a program in it and return its version; raise `shell.CommandFailed` when that fails."""
    if NEEDED not in shell.run([program, "--help"], timeout_s=10):
        raise shell.CommandFailed(f"it is too old: it has no {NEEDED}")
    shell.run([program, *TRIAL, "--ro-bind", "/", "/", "true"], timeout_s=10)
    return shell.run([program, "--version"], timeout_s=10).strip()


def forbidden(complaint: str) -> bool:
    """Whether the machine forbids what any sandbox needs."""
    return any(word in complaint for word in FORBIDDEN)
