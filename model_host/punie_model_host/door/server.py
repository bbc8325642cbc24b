"""uvicorn's HTTP protocol in the model host's own event loop.

Not `uvicorn.Server`: that one takes over the process's signals and looks ten times a second
whether it should end. What is added is what a port needs that anybody on the machine can connect
to: a bound on connections, and a deadline for the headers of a request.
"""

import asyncio
import contextlib
import socket
from typing import Final

import h11
import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from punie_model_host.door.app import App
from punie_model_host.door.desks import Desk
from punie_model_host.door.faults import ErrorBody, ErrorEnvelope
from punie_model_host.door.guard import Guard
from punie_model_host.door.limits import (
    CLOSE_DEADLINE,
    HEAD_DEADLINE,
    KEEP_ALIVE,
    MAX_CONNECTIONS,
    MAX_HEAD,
)

_BACKLOG: Final = 128


class Server:
    """Serves a listening socket, which it owns, from `start` to `close`."""

    def __init__(self, listener: socket.socket, desk: Desk, key: str) -> None:
        self._listener = listener
        self._state = ServerState()
        self._config = _config(App(desk, Guard(listener.getsockname()[1], key)))

    async def start(self) -> None:
        """Take connections from now on."""
        self._config.load()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self._config, self._state), sock=self._listener, backlog=_BACKLOG
        )

    async def close(self) -> None:
        """Take no more connections; requests under way have `CLOSE_DEADLINE` to end, then they are
        cancelled, which cancels them at the desk."""
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=CLOSE_DEADLINE)
        for task in self._state.tasks:
            task.cancel()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=CLOSE_DEADLINE)
        for connection in list(self._state.connections):
            connection.transport.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_DEADLINE):
                await self._server.wait_closed()


class _Connection(H11Protocol):
    """One connection. `abort` is in the state of its requests' scopes."""

    def __init__(self, config: Config, state: ServerState) -> None:
        super().__init__(config, state, {"abort": self._abort})
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.write(_FULL)
            transport.close()
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watch()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        """While headers are to come and have not, their deadline runs."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_watch()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_DEADLINE, self._abort)

    def _stop_watch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _abort(self) -> None:
        self.transport.abort()


def _config(app: App) -> Config:
    return Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=int(KEEP_ALIVE),
        h11_max_incomplete_event_size=MAX_HEAD,
    )


def _full() -> bytes:
    text = f"the door has {MAX_CONNECTIONS} connections, which is its limit"
    error = ErrorBody(message=text, type="rate_limit_error", code="overloaded")
    body = msgspec.json.encode(ErrorEnvelope(error))
    head = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)


_FULL: Final = _full()
