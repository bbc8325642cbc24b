"""``punie model serve``: the model host's HTTP door, for other tools of this user."""

import asyncio
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from punie_protocol import client as punie
from punie_protocol.client import Drafting
from punie_protocol.engine import DoorStatus
from punie_supervisor import door_key
from punie_supervisor.cli import output
from punie_supervisor.cli.context import announce
from punie_supervisor.cli.daemon import wait_for_model
from punie_supervisor.cli.exit_codes import ExitCode
from punie_supervisor.cli.use import apply, as_use, check_draft
from punie_supervisor.clients import launch
from punie_supervisor.clients.connection import check_version, connect, ignore
from punie_supervisor.drafting import is_empty
from punie_supervisor.paths import Paths


def serve(port: int | None, wish: Drafting, *, show_key: bool, as_json: bool) -> ExitCode:
    """Open the door, print where it is, and wait until the model answers as it is wished. Starts
    the daemon when none runs. The key itself is printed only when it is asked for."""
    paths = Paths.from_environment()
    announce(paths)
    pid = launch.ensure_running(paths, drafting=wish, patience=launch.START_TIMEOUT)
    if pid is None and not is_empty(wish):
        asyncio.run(apply(paths, as_use(wish)))
        output.clear_progress()
    door = asyncio.run(_ask(paths, punie.Serve(port=port)))
    key = door_key.read(Path(door.key_file)) if show_key else ""
    if as_json:
        output.print_json(msgspec.to_builtins(door) | ({"key": key} if key else {}))
    else:
        sys.stdout.write("".join(f"{line}\n" for line in _lines(door, key)))
    sys.stdout.flush()
    return asyncio.run(wait_for_model(paths)) or check_draft(paths, wish)


def stop(*, as_json: bool) -> ExitCode:
    """Close the door. Starts no daemon: without one it is closed."""
    paths = Paths.from_environment()
    door = DoorStatus(key_file=str(paths.openai_key))
    if launch.is_running(paths):
        door = asyncio.run(_ask(paths, punie.Serve(stop=True)))
    if as_json:
        output.print_json(door)
    else:
        sys.stdout.write("closed\n")
    return ExitCode.OK


def _lines(door: DoorStatus, key: str) -> Iterator[str]:
    """Yield what a person needs to use it."""
    yield f"base URL  {door.url}"
    yield f"key       {key or f'in {output.printable(door.key_file)}'}"
    header = f'-H "Authorization: Bearer $(cat {shlex.quote(door.key_file)})"'
    yield f"try       curl {header} {door.url}/models"


async def _ask(paths: Paths, wish: punie.Serve) -> DoorStatus:
    async with connect(paths, ignore) as client:
        await check_version(client)
        return await client.ask_daemon(punie.SERVE, wish, DoorStatus)
