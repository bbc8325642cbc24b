"""What the desk has for one HTTP request, until its task takes it. Bounded."""

import asyncio
from collections.abc import Callable

from punie_model_host.door.limits import MAX_UNSENT
from punie_protocol.errors import LinkClosed, Overloaded
from punie_protocol.messages.to_model_client import (
    Failed,
    TextDelta,
    ThinkingDelta,
    ToModelClient,
    ToolCall,
)

_FIXED = 200
"""Bytes that an event takes besides its text."""
_FIRST = 1
"""Any choice of the request: when one fails, all do."""


class Mailbox:
    """A `Sink` with one reader. It takes nothing after `close`, nor once `limit` bytes wait: the
    reader then finds a `Failed` behind them, and `overflowed` is called, soon, to end what sends
    so much."""

    def __init__(self, overflowed: Callable[[], None], limit: int = MAX_UNSENT) -> None:
        self._overflowed = overflowed
        self._limit = limit
        self._waiting: list[ToModelClient] = []
        self._size = 0
        self._news = asyncio.Event()
        self._closed = ""

    @property
    def closed(self) -> str:
        """Why nothing can come any more, or empty."""
        return self._closed

    def send(self, message: ToModelClient) -> None:
        """Keep a message for the reader; raises `LinkClosed`. Never blocks."""
        if self._closed:
            raise LinkClosed(self._closed)
        self._size += _size(message)
        if self._size > self._limit:
            self._overflow()
        self._waiting.append(message)
        self._news.set()

    async def take(self) -> list[ToModelClient]:
        """Return all that waits, at least one message; after `nudge` and `close` perhaps none."""
        await self._news.wait()
        self._news.clear()
        taken, self._waiting, self._size = self._waiting, [], 0
        return taken

    def nudge(self) -> None:
        """Let the reader look round although nothing came."""
        self._news.set()

    def close(self, reason: str) -> None:
        """Take no more, and wake the reader. Idempotent."""
        self._closed = self._closed or reason
        self._news.set()

    def _overflow(self) -> None:
        text = f"the stream is read too slowly: {self._limit} bytes of it wait"
        error = Overloaded(message=text, hint="read faster, or ask for less")
        self._waiting.append(Failed(request_id=_FIRST, error=error))
        self.close(text)
        # Not from inside: it is the sender that is in the middle of something.
        asyncio.get_running_loop().call_soon(self._overflowed)
        raise LinkClosed(text)


def _size(message: ToModelClient) -> int:
    match message:
        case TextDelta(text=text) | ThinkingDelta(text=text):
            return _FIXED + len(text)
        case ToolCall(arguments=arguments):
            return _FIXED + len(arguments)
        case _:
            return _FIXED
