"""``punie trust``: whether a project's own settings count."""

import asyncio
import sys

from punie_protocol import client as punie
from punie_supervisor.cli import output
from punie_supervisor.cli.context import announce
from punie_supervisor.cli.exit_codes import ExitCode
from punie_supervisor.clients import launch
from punie_supervisor.clients.connection import check_version, connect, ignore
from punie_supervisor.paths import Paths


def trust(directory: str, *, trusted: bool, as_json: bool) -> ExitCode:
    """Trust the settings of the project at `directory` as they are now, or no more."""
    paths = Paths.from_environment()
    announce(paths)
    launch.ensure_running(paths, patience=launch.START_TIMEOUT)
    report = asyncio.run(_ask(paths, punie.Trust(cwd=directory, trusted=trusted)))
    if as_json:
        output.print_json(report)
    else:
        sys.stdout.write(_sentence(report))
    return ExitCode.OK


def _sentence(report: punie.TrustReport) -> str:
    if not report.files:
        return f"{report.root} has no settings of its own\n"
    files = " and ".join(report.files)
    if report.trusted:
        return f"trusted: {files} in {report.root}, as they are now; any change asks again\n"
    return f"not trusted: {files} in {report.root}\n"


async def _ask(paths: Paths, params: punie.Trust) -> punie.TrustReport:
    async with connect(paths, ignore) as client:
        await check_version(client)
        return await client.ask_daemon(punie.TRUST, params, punie.TrustReport)
