"""``punie projects``: which there are, how each is isolated, whether commands need a sandbox."""

import asyncio
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from punie_protocol import client as punie
from punie_protocol.messages.common import Isolation
from punie_supervisor.cli import output, status_text
from punie_supervisor.cli.context import announce
from punie_supervisor.cli.exit_codes import ExitCode
from punie_supervisor.cli.tables import duration
from punie_supervisor.clients import launch
from punie_supervisor.clients.connection import check_version, connect, ignore
from punie_supervisor.paths import Paths

_UNCONFINED: Final = (
    "where there is no sandbox its commands run without one: they can read and change all that "
    "you can, and reach the network"
)
_CONFINED: Final = "its commands run in a sandbox or not at all"


def show(*, as_json: bool) -> ExitCode:
    """Print the projects that the daemon knows. Starts none."""
    report = asyncio.run(_ask(Paths.from_environment(), punie.STATUS, None, punie.StatusReport))
    if as_json:
        pids = status_text.pids_of(report.workers)
        output.print_json({"projects": [_for_machines(one, pids) for one in report.projects]})
    else:
        lines = status_text.projects(report.projects, report.workers, is_gone=_is_gone)
        sys.stdout.write("\n".join(lines) + "\n")
    return ExitCode.OK


def isolate(directory: str, isolation: Isolation, *, as_json: bool) -> ExitCode:
    """Move the project at `directory` to a level. Starts the daemon when none runs."""
    params = punie.Isolate(cwd=directory, isolation=isolation)
    report = asyncio.run(_ask(_running(), punie.ISOLATE, params, punie.IsolateReport))
    if as_json:
        output.print_json(report)
    else:
        sys.stdout.write("".join(f"{line}\n" for line in _moved(report)))
    return ExitCode.OK


def unconfined(directory: str, *, allowed: bool, as_json: bool) -> ExitCode:
    """Let the commands of the project at `directory` run where there is no sandbox, or no more.
    Starts the daemon when none runs."""
    params = punie.Unconfined(cwd=directory, unconfined=allowed)
    asyncio.run(_ask(_running(), punie.UNCONFINED, params, dict))
    if as_json:
        output.print_json({"root": directory, "unconfined": allowed})
    else:
        root = output.printable(directory)
        sys.stdout.write(f"{root}: {_UNCONFINED if allowed else _CONFINED}\n")
    return ExitCode.OK


def commands(directory: str, *, stop: bool, as_json: bool) -> ExitCode:
    """Print the background commands of the project at `directory`; with `stop`, end them and print
    which. Starts no daemon: without one there are none."""
    paths = Paths.from_environment()
    report = punie.CommandsReport(root=directory, commands=[])
    if launch.is_running(paths):
        query = punie.CommandsQuery(cwd=directory, stop=stop)
        report = asyncio.run(_ask(paths, punie.COMMANDS, query, punie.CommandsReport))
    if as_json:
        output.print_json(report)
    else:
        sys.stdout.write("".join(f"{line}\n" for line in _listed(report, stop=stop)))
    return ExitCode.OK


def _listed(report: punie.CommandsReport, *, stop: bool) -> list[str]:
    """Return each command in a line: its own are shown as ``⏎``."""
    if not report.commands:
        return [f"no background commands in {output.printable(report.root)}"]
    done = "stopped " if stop else ""
    return [
        f"{done}{one.job}, after {duration(one.seconds)}: "
        f"{output.printable(one.command.replace('\n', ' ⏎ '))}"
        for one in report.commands
    ]


def _moved(report: punie.IsolateReport) -> list[str]:
    """Return what has changed, in lines."""
    root = output.printable(report.root)
    if report.before is report.isolation:
        lines = [f"{root}: {report.isolation.value}, as it was"]
    else:
        lines = [f"{root}: {report.before.value} → {report.isolation.value}"]
    if report.confined:
        lines.append(f"  that it ran alone is forgotten: {output.printable(report.confined)}")
    return lines


def _for_machines(project: punie.ProjectStatus, pids: dict[str, int]) -> dict[str, Any]:
    """Return a project as the status report has it, with the pid of its worker, and
    whether its folder is gone."""
    fields = output.rounded(msgspec.to_builtins(project))
    fields["gone"] = _is_gone(project.root)
    return fields | {"pid": pids.get(project.worker) if project.worker is not None else None}


def _is_gone(root: str) -> bool:
    return not Path(root).is_dir()


def _running() -> Paths:
    """Return the paths of a daemon that runs, started if none did, which is said."""
    paths = Paths.from_environment()
    announce(paths)
    launch.ensure_running(paths, patience=launch.START_TIMEOUT)
    return paths


async def _ask[R](paths: Paths, method: str, params: Any, result: type[R]) -> R:
    async with connect(paths, ignore) as client:
        await check_version(client)
        return await client.ask_daemon(method, params, result)
