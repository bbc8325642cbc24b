"""One client's connection: a bounded queue of what it is owed, written by one task."""

import asyncio
from collections import deque
from typing import Final

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from punie_supervisor import logs

MAX_OWED_MESSAGES: Final = 1024
MAX_OWED_BYTES: Final = 16 * 1024 * 1024
"""A client that is owed more than either is dropped."""
WRITE_TIMEOUT: Final = 30.0
"""Seconds without taking a message after which a client is dropped."""
MAX_IGNORED: Final = 10
"""Messages of one client in one second that are ignored and reach the log; the rest is counted."""
MAX_REQUESTS: Final = 64
"""Requests of one client under way; further ones are refused."""


class Connection:
    """Owns the sending half of a WebSocket. `requests` counts those under way."""

    def __init__(self, number: int, socket: ServerConnection) -> None:
        self.number = number
        self.requests = 0
        self._socket = socket
        self._owed: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = False
        self._more = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._log = logs.get(connection=number)
        self._ignored = logs.LineLimit(MAX_IGNORED, self._ignored_more)

    def send(self, body: bytes) -> None:
        """Owe the client one message; drop the client when that is too much."""
        if self._dropped:
            return
        self._owed.append(body)
        self._bytes += len(body)
        self._empty.clear()
        self._more.set()
        if len(self._owed) > MAX_OWED_MESSAGES or self._bytes > MAX_OWED_BYTES:
            self._drop(f"it is owed {len(self._owed)} messages, {self._bytes} bytes")

    def ignored(self, reason: str) -> None:
        """Log that a message of the client was ignored, if there were not too many."""
        if self._ignored.passes():
            self._log.info("message.ignored", reason=reason)

    def left(self) -> None:
        """The client is gone."""
        self._ignored.close()

    async def write(self) -> None:
        """Write what is owed until the connection ends or is dropped."""
        try:
            while not self._dropped:
                await self._more.wait()
                while self._owed:
                    await self._write_one()
                self._empty.set()
                self._more.clear()
        except ConnectionClosed:
            self._forget()

    async def flush(self) -> None:
        """Wait until nothing is owed."""
        await self._empty.wait()

    async def _write_one(self) -> None:
        body = self._owed.popleft()
        try:
            async with asyncio.timeout(WRITE_TIMEOUT):
                await self._socket.send(body, text=True)
        except TimeoutError:
            self._drop(f"it took nothing for {WRITE_TIMEOUT:g} s")
        else:
            self._bytes -= len(body)

    def _drop(self, reason: str) -> None:
        self._log.warning("client.dropped", reason=reason)
        self._forget()
        self._socket.transport.abort()

    def _ignored_more(self, count: int) -> None:
        self._log.info("messages.ignored", count=count)

    def _forget(self) -> None:
        self._dropped = True
        self._owed.clear()
        self._bytes = 0
        self._empty.set()
        self._more.set()
