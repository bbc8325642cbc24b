"""uvicorn's HTTP protocol in the model host's own event loop.

Not `uvicorn.Server`: that one takes over the process's signals and looks ten times a second
whether it should end. What is added is what a port needs that anybody on the machine can connect
to: a bound on connections, of which strangers give way, a deadline for the headers of a request,
one request at a time, and no body in chunks: to take one of a byte each apart costs a hundred times
what it costs to send.
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

from punie_model_host.door import faults, guard
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
_FIRST: Final = 4096
"""Bytes that are looked at before it is known what the request is."""


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
    """One connection. In the state of its requests' scopes are `abort`, and `known`, to be called
    when it has shown the key."""

    def __init__(self, config: Config, state: ServerState) -> None:
        super().__init__(config, state, {"abort": self._abort, "known": self._known})
        self._late: asyncio.TimerHandle | None = None
        self._stranger = True
        self._deaf = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._made = self.loop.time()
        if len(self.connections) <= MAX_CONNECTIONS or self._drop_stranger():
            self._watch_head()
        else:
            transport.write(_FULL)
            transport.close()

    def data_received(self, data: bytes) -> None:
        rest = data
        while rest and not self._deaf and not self.transport.is_closing():
            size = _FIRST if self.conn.their_state is h11.IDLE else len(rest)
            super().data_received(rest[:size])
            rest = rest[size:]
            self._stop_listening()
        self._watch_head()

    def send_400_response(self, msg: str) -> None:
        """Say that what came is no HTTP; the connection ends."""
        # Not through h11, which may be in a state in which it sends no answer.
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_answer(400, "Bad Request", faults.invalid(msg).body))
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watch()
        super().connection_lost(exc)

    def _drop_stranger(self) -> bool:
        """Make room: the connection that has longest not shown the key goes; False without one."""
        others = [c for c in self.connections if isinstance(c, _Connection) and c is not self]
        strangers = [c for c in others if c._stranger]
        if strangers:
            oldest = min(strangers, key=lambda c: c._made)
            self.connections.discard(oldest)
            oldest._abort()
        return bool(strangers)

    def _known(self) -> None:
        self._stranger = False

    def _stop_listening(self) -> None:
        """Throw away what comes after a request that is not answered yet, and a body in chunks,
        which `App` refuses; go on reading, or nobody would notice that the client went."""
        chunks = self.conn.their_state is h11.SEND_BODY and guard.is_chunked(self.headers)
        more = self.conn.their_state is h11.DONE and self.conn.trailing_data[0]
        if (chunks or more) and not self.cycle.response_complete:
            self._deaf = True
            self.cycle.keep_alive = False
            self.flow.resume_reading()

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


def _answer(status: int, phrase: str, error: ErrorBody, *headers: str) -> bytes:
    body = msgspec.json.encode(ErrorEnvelope(error))
    lines = [
        f"HTTP/1.1 {status} {phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


_FULL: Final = _answer(
    503,
    "Service Unavailable",
    ErrorBody(
        message=f"the door has {MAX_CONNECTIONS} connections, which is its limit",
        type="rate_limit_error",
        code=faults.TOO_MANY,
    ),
    "retry-after: 1",
)
