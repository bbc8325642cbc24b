"""``punie model use``: another model, or other settings of the engine, while the daemon goes on."""

import asyncio
import sys
import time
from typing import Any, Final

import msgspec
from msgspec import Raw

from punie_protocol import client as punie
from punie_protocol.backends import is_backend
from punie_protocol.client import Drafting, Use, UseReport
from punie_supervisor.cli import engine_text, output
from punie_supervisor.cli.context import announce
from punie_supervisor.cli.daemon import read_status
from punie_supervisor.cli.exit_codes import ExitCode
from punie_supervisor.clients import launch
from punie_supervisor.clients.connection import check_version, connect
from punie_supervisor.clients.errors import DaemonSilent
from punie_supervisor.paths import Paths

PATIENCE: Final = 960.0
"""Seconds to wait for the daemon's answer: it gives one within 900."""
REPORT: Final = 3.0
"""Seconds for the engine's first report after its model is there."""


def use(wish: Use, *, as_json: bool) -> ExitCode:
    """Have the daemon use it, with progress, and print what is so now. Starts the daemon when none
    runs, with what is wished. Interrupted, a switch that waits for turns is withdrawn; one that
    the model host was told of goes on. Raises `PunieError`."""
    paths = Paths.from_environment()
    announce(paths)
    patience = launch.START_TIMEOUT
    pid = launch.ensure_running(paths, model=wish.model, drafting=wish, patience=patience)
    report = asyncio.run(apply(paths, wish))
    if pid is not None:  # it began with what is wished
        report = msgspec.structs.replace(report, changed=True)
    if code := check_draft(paths, wish):
        return code
    output.clear_progress()
    if as_json:
        output.print_json(report)
    else:
        sys.stdout.write(f"{line(report)}\n")
    sys.stdout.flush()
    return ExitCode.OK


def as_use(wish: Drafting, model: str | None = None) -> Use:
    """Return the wish for a model; with None for the one that is there."""
    return Use(model=model, **msgspec.structs.asdict(wish))


async def apply(paths: Paths, wish: Use) -> UseReport:
    """Ask a daemon that runs, and wait. Raises `PunieError`: the model's own reason when it cannot
    be loaded, and the one before goes on answering."""
    async with connect(paths, _show) as client:
        await check_version(client)
        try:
            async with asyncio.timeout(PATIENCE):
                return await client.call(punie.USE, wish, UseReport)
        except TimeoutError:
            raise DaemonSilent(punie.USE, PATIENCE) from None


def check_draft(paths: Paths, wish: Drafting) -> ExitCode:
    """Say so when the draft model that is wished is not used: a host that starts with one that does
    not fit answers without it."""
    if not wish.draft_model:
        return ExitCode.OK
    deadline = time.monotonic() + REPORT
    while time.monotonic() < deadline:
        model = asyncio.run(read_status(paths)).model
        engine = model.engine
        if engine is not None and engine.draft_model.error:
            output.say(f"error: {output.printable(engine.draft_model.error)}")
            return ExitCode.MODEL
        if model.pid is None or (engine is not None and engine.draft_model.name):
            break  # none is needed yet, or it is there
        time.sleep(0.1)
    return ExitCode.OK


def line(report: UseReport) -> str:
    """Return what is in use now, for a person."""
    how = engine_text.drafting(report.settings)
    between = " (a server); models of our own: " if is_backend(report.model) else ", "
    text = f"model {output.printable(report.model)}{between}{how}"
    return text if report.changed else f"{text} (as before)"


async def _show(method: str, params: Raw) -> Any:
    if method == punie.PROGRESS:
        note = msgspec.json.decode(params, type=punie.Progress)
        output.progress(note.text, note.done, note.total)
