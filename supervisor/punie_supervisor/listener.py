"""The client socket: WebSocket over a Unix socket, one JSON-RPC message per text frame.

A message over `MAX_CLIENT_MESSAGE` ends its connection with close code 1009 and a reason that
names the limit: the rest of it is never read.
"""

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncGenerator
from pathlib import Path

from websockets.asyncio.server import Server, ServerConnection, unix_serve
from websockets.exceptions import ConnectionClosed

from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.limits import MAX_CLIENT_MESSAGE
from punie_supervisor import logs
from punie_supervisor.connection import Connection
from punie_supervisor.switchboard import Switchboard


@contextlib.asynccontextmanager
async def listen(path: Path, switchboard: Switchboard) -> AsyncGenerator[Server]:
    """Accept clients at `path`, 0600, for the length of the context; then unlink it.

    The caller holds the lifetime lock, so a socket that is there is stale.
    """
    _remove_stale(path)
    before = os.umask(0o177)
    try:
        server = await unix_serve(
            lambda socket: _serve(socket, switchboard),
            str(path),
            compression=None,
            max_size=MAX_CLIENT_MESSAGE,
            max_queue=4,
            close_timeout=1.0,
            server_header=None,
        )
    except OSError as error:
        raise PunieError(
            InvalidRequest(message=f"cannot listen on {path}: {error.strerror}")
        ) from None
    finally:
        os.umask(before)
    try:
        yield server
    finally:
        server.close()
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - one quick system call
        await server.wait_closed()


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise PunieError(
            InvalidRequest(message=f"{path} is in the way: not a socket", hint="move it away")
        )
    path.unlink()


async def _serve(socket: ServerConnection, switchboard: Switchboard) -> None:
    connection = Connection(switchboard.number(), socket)
    log = logs.get(connection=connection.number)
    switchboard.joined(connection)
    writer = asyncio.create_task(connection.write())
    try:
        async for message in socket:
            switchboard.from_client(connection, message)
    except ConnectionClosed as closed:
        log.info("client.lost", reason=str(closed))
    finally:
        switchboard.left(connection)
        writer.cancel()
        await asyncio.wait([writer])
