"""``punie up | down | restart | status | logs``."""

import asyncio
import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec

from punie_protocol import client as punie
from punie_protocol.client import Drafting
from punie_protocol.errors import Internal, PunieError
from punie_supervisor.cli import output
from punie_supervisor.cli.exit_codes import ExitCode
from punie_supervisor.cli.status_text import places, render
from punie_supervisor.clients import launch
from punie_supervisor.clients.connection import check_version, connect, ignore
from punie_supervisor.clients.errors import DaemonUnreachable
from punie_supervisor.drafting import NOTHING, applied, arguments, is_empty
from punie_supervisor.paths import Paths

STOP_TIMEOUT = 10.0
"""From the request to end to the released lock, seconds."""

LOAD_TIMEOUT = 600.0
"""A model of 20 GB from a slow disk."""


def up(model: str | None, wish: Drafting = NOTHING) -> ExitCode:
    """Start the daemon when none runs, and wait until its model is ready, its engine as wished. One
    that runs gets the settings, not another model."""
    from punie_supervisor.cli import use

    paths = Paths.from_environment()
    pid = launch.ensure_running(paths, model=model, drafting=wish, patience=launch.START_TIMEOUT)
    if pid is not None:
        output.say(f"started (pid {pid})")
        return asyncio.run(wait_for_model(paths)) or use.check_draft(paths, wish)
    output.say(f"already running (pid {launch.daemon_pid(paths)})")
    code = asyncio.run(wait_for_model(paths, may_rest=True))
    present = asyncio.run(read_status(paths)).model
    listed = os.path.relpath(present.folder or paths.models_dir, paths.models_dir)
    if model is not None and model not in (present.name, present.folder, listed):
        flags = shlex.join(["punie", "model", "use", *arguments(wish), model])
        output.say(f"error: its model is {present.name}; run: {flags}")
        return ExitCode.USAGE
    return code if is_empty(wish) else use.use(use.as_use(wish), as_json=False)


def restart(model: str | None, wish: Drafting = NOTHING) -> ExitCode:
    """Stop the daemon and start it again. Raises `PunieError` for settings that cannot be used,
    before anything is stopped."""
    from punie_supervisor.config import Config

    applied(Config.load(Paths.from_environment()).engine, wish)
    down()
    return up(model, wish)


def down() -> ExitCode:
    """Stop the daemon and its children; fine when none runs."""
    paths = Paths.from_environment()
    if not launch.is_running(paths):
        output.say("not running")
        return ExitCode.OK
    pid = launch.daemon_pid(paths)
    try:
        asyncio.run(_request_shutdown(paths))
        stopped = launch.wait_gone(paths, STOP_TIMEOUT)
    except PunieError as error:
        output.say(f"the daemon does not answer ({error}); ending it by a signal")
        stopped = False
    if not stopped and not launch.stop_by_signal(paths):
        raise PunieError(Internal(message=f"the daemon (pid {pid}) cannot be ended"))
    output.say(f"stopped (pid {pid})")
    return ExitCode.OK


def status(*, as_json: bool) -> ExitCode:
    """Print what runs."""
    paths = Paths.from_environment()
    try:
        report = asyncio.run(read_status(paths))
    except DaemonUnreachable:
        if not as_json:
            sys.stdout.write("\n".join(places(paths.config_file, paths.state_dir)) + "\n")
        raise
    if as_json:
        output.print_json(output.rounded(msgspec.to_builtins(report)))
    else:
        sys.stdout.write(render(report))
    return ExitCode.OK


def logs(*, lines: int, follow: bool) -> ExitCode:
    """Print the end of the log file; with `follow` go on until interrupted."""
    file = Paths.from_environment().log_file
    if not file.exists():
        output.say(f"no log yet ({file})")
        return ExitCode.OK
    with file.open(errors="replace") as log:
        sys.stdout.writelines(deque(log, maxlen=lines))
        sys.stdout.flush()
    if follow:
        for line in _follow(file):
            sys.stdout.write(line)
            sys.stdout.flush()
    return ExitCode.OK


async def read_status(paths: Paths) -> punie.StatusReport:
    """Return what runs. Raises `PunieError`: `DaemonUnreachable` when nothing does."""
    async with connect(paths, ignore) as client:
        await check_version(client)
        return await client.ask_daemon(punie.STATUS, None, punie.StatusReport)


async def _request_shutdown(paths: Paths) -> None:
    async with connect(paths, ignore) as client:
        await client.ask_daemon(punie.SHUTDOWN, None, dict)


async def wait_for_model(paths: Paths, *, may_rest: bool = False) -> ExitCode:
    """Wait until the daemon's model answers, saying so; the exit code says why it does not. One
    that nobody has needed yet is fine if it `may_rest`: nobody starts it for this."""
    deadline = time.monotonic() + LOAD_TIMEOUT
    while time.monotonic() < deadline:
        model = (await read_status(paths)).model
        match model.state:
            case "ready":
                output.say(f"ready: model {model.name}")
                return ExitCode.OK
            case "server":
                output.say(f"model {model.name} (a server; it is asked when a prompt needs it)")
                return ExitCode.OK
            case "failed":
                if model.error is not None:
                    output.say_error(model.error)
                return ExitCode.MODEL
            case "idle" if may_rest:
                output.say(f"model {model.name} (not loaded; a prompt that needs it starts it)")
                return ExitCode.OK
            case _:
                output.progress(f"loading model {model.name}")
                await asyncio.sleep(0.1)
    output.say(f"error: the model is not ready after {LOAD_TIMEOUT:g} s")
    return ExitCode.TIMED_OUT


def _follow(file: Path) -> Iterator[str]:
    """Yield lines as they are written, over a rotation too; ends with the process."""
    log = file.open(errors="replace")
    log.seek(0, 2)
    while True:
        if line := log.readline():
            yield line
            continue
        time.sleep(0.2)
        if file.exists() and not file.samefile(f"/dev/fd/{log.fileno()}"):
            log.close()
            log = file.open(errors="replace")
