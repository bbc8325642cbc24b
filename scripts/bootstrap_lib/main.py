"""The steps, in order."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Sequence

from bootstrap_lib import blas, interpreter, project, report, sandbox, state, uv
from bootstrap_lib.layout import Layout
from bootstrap_lib.report import BootstrapError, step

USAGE = """\
usage: scripts/bootstrap            set up what is missing
       scripts/bootstrap --again    look at every step again
       scripts/bootstrap uv ...     run uv with the settings of this checkout
"""


class Stopped(BaseException):
    """The run was asked to end by a signal."""


def main(arguments: Sequence[str], root: Path) -> int:
    """Run the program; return its exit status (0 done, 1 failed, 2 usage, 130 interrupted)."""
    signal.signal(signal.SIGTERM, _stop)
    layout = Layout(root)
    if arguments[:1] == ["uv"]:
        return _run_uv(layout, arguments[1:])
    if list(arguments) not in ([], ["--again"]):
        sys.stderr.write(USAGE)
        return 2
    return _guarded(layout, again=bool(arguments))


def _stop(number: int, frame: object) -> None:
    raise Stopped


def _guarded(layout: Layout, *, again: bool) -> int:
    """Set up, and turn every way of failing into lines that a user can act on."""
    try:
        set_up(layout, again=again)
    except BootstrapError as error:
        report.explain(error)
    except (KeyboardInterrupt, Stopped):
        report.note("interrupted; run it again and it goes on from here")
        return 130
    except OSError as error:
        report.note("cannot go on")
        report.explain(
            BootstrapError(
                str(error),
                f"check the free disk space and who owns {error.filename or layout.root}",
            )
        )
    except Exception as error:
        if os.environ.get("PUNIE_BOOTSTRAP_DEBUG"):
            raise
        report.note("cannot go on")
        report.explain(
            BootstrapError(
                f"{type(error).__name__}: {error}",
                "this is a fault in scripts/bootstrap: run it with PUNIE_BOOTSTRAP_DEBUG=1 and"
                " report what it prints",
            )
        )
    else:
        return 0
    return 1


def set_up(layout: Layout, *, again: bool = False) -> None:
    """Do every step that is not done. Silent, and quick, when all are."""
    if not again and state.is_ready(layout):
        return
    with state.only_one(layout):
        if not again and state.is_ready(layout):
            return  # the run we waited for did it
        state.remove(layout.stamp)
        _steps(layout)
        state.write_record(layout.stamp, {"fingerprint": state.fingerprint(layout)})


def _steps(layout: Layout) -> None:
    with step("uv") as line:
        tool, origin = uv.find_or_install(layout)
        line.outcome = f"{tool.version}, {origin}"
    with step(f"python {interpreter.WANTED}") as line:
        found = interpreter.find_or_install(layout, tool)
        line.outcome = f"{found.version}, {found.origin}"
    with step("dependencies") as line:
        outcome = project.sync(layout, tool, found)
        line.outcome = f"{project.installed_packages(layout)} packages, {outcome}"
    with step("openblas") as line:
        line.outcome = blas.provide(layout, found)
    with step("sandbox") as line:
        line.outcome = sandbox.provide(layout)
    state.remove(layout.tools / "apt")


def _run_uv(layout: Layout, words: Sequence[str]) -> int:
    try:
        tool, _ = uv.find_or_install(layout)
    except BootstrapError as error:
        report.note("uv … failed")
        report.explain(error)
        return 1
    settings = {**tool.settings, "UV_PYTHON": str(layout.venv_python)}
    env = uv.environment(os.environ, settings)
    os.execve(tool.program, [str(tool.program), *words], env)
    return None
