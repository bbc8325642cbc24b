"""The client of `benchmarks.engine`, the same for both servers: OpenAI's streaming chat over HTTP.

It does as little as it can while an answer streams, for it shares the cores with the server: what
arrives is kept with its time, and read once the answer is complete.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from benchmarks.engine_text import Message

PATIENCE: Final = 180.0
"""Seconds one request may take before the benchmark fails."""
_CONTENT: Final = b'"content"'


@dataclass(frozen=True, slots=True)
class Server:
    """Where to ask. Both are asked with a connection for each request."""

    port: int
    key: str = ""

    def head(self, method: str, path: str, length: int) -> bytes:
        """Return the head of a request."""
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {length}",
            "Connection: close",
        ]
        if self.key:
            lines.append(f"Authorization: Bearer {self.key}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


class _Details(msgspec.Struct):
    cached_tokens: int = 0


class Usage(msgspec.Struct):
    """Tokens as the server counts them."""

    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Details | None = None

    @property
    def cached(self) -> int:
        """How many of the prompt's the server did not compute."""
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else 0


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


@dataclass(slots=True)
class Answer:
    """A complete answer. Times are the client's clock in seconds; `marks` say how many words more
    of it had come by when."""

    sent: float
    prompt: int = 0
    tokens: int = 0
    cached: int = 0
    text: str = ""
    marks: list[tuple[float, int]] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        """Seconds from sending the request to its first word."""
        return self.marks[0][0] - self.sent

    @property
    def first(self) -> float:
        """When the first word came."""
        return self.marks[0][0]

    @property
    def last(self) -> float:
        """When the last word came."""
        return self.marks[-1][0]

    def words_within(self, start: float, end: float) -> int:
        """Return how many words came after `start`, up to `end`."""
        return sum(words for when, words in self.marks if start < when <= end)


class Stream(asyncio.Protocol):
    """One request on its way. `pieces` counts, about, what has come of its answer."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._transport: asyncio.Transport | None = None
        self._arrived: list[tuple[float, bytes]] = []
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent = 0.0
        self.pieces = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.sent = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        self._arrived.append((time.perf_counter(), data))
        self.pieces += data.count(_CONTENT)

    def connection_lost(self, exc: Exception | None) -> None:
        """The answer is complete, or will never be."""
        if not self._closed.done():
            self._closed.set_result(None)

    @property
    def done(self) -> bool:
        """Whether the server closed the connection."""
        return self._closed.done()

    def abandon(self) -> None:
        """Close the connection: the client does not want the answer any more."""
        assert self._transport is not None
        self._transport.abort()

    async def until_started(self, pieces: int = 2) -> None:
        """Wait until that much of the answer has come."""
        async with asyncio.timeout(PATIENCE):
            while self.pieces < pieces and not self.done:
                await asyncio.wait([self._closed], timeout=0.002)

    async def answer(self) -> Answer:
        """Wait for the whole answer. Raises `RuntimeError` for one that is an error."""
        async with asyncio.timeout(PATIENCE):
            await self._closed
        return read(self.sent, self._arrived)

    def so_far(self) -> Answer:
        """Return what has come; of an answer that was abandoned, all there will be."""
        return read(self.sent, self._arrived, complete=False)


async def ask(
    server: Server, messages: Sequence[Message], max_tokens: int, user: str = ""
) -> Stream:
    """Send a greedy request for a streamed answer."""
    body: dict[str, Any] = {
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if user:
        body["user"] = user
    encoded = json.dumps(body).encode()
    request = server.head("POST", "/v1/chat/completions", len(encoded)) + encoded
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        _, stream = await loop.create_connection(lambda: Stream(request), "127.0.0.1", server.port)
    return stream


async def answered(
    server: Server, messages: Sequence[Message], max_tokens: int, user: str = ""
) -> Answer:
    """Ask, and wait for the whole answer."""
    return await (await ask(server, messages, max_tokens, user)).answer()


def read(sent: float, arrived: Sequence[tuple[float, bytes]], *, complete: bool = True) -> Answer:
    """Return the answer in what `arrived` when. Raises `RuntimeError` unless it is status 200, no
    error event is in it, and, if it is to be `complete`, the server said how many tokens it has."""
    answer = Answer(sent)
    body = _Body()
    counted = False
    for when, data in arrived:
        for event in body.feed(data):
            if event.error is not None:
                raise RuntimeError(f"the server ended an answer: {event.error}")
            if event.usage is not None:
                counted = True
                answer.prompt = event.usage.prompt_tokens
                answer.tokens = event.usage.completion_tokens
                answer.cached = event.usage.cached
            _add(answer, when, event)
    if complete and not counted:
        raise RuntimeError(f"the server broke off: {b''.join(data for _, data in arrived)[-500:]}")
    return answer


def _add(answer: Answer, when: float, event: _Event) -> None:
    text = "".join(choice.delta.content or "" for choice in event.choices)
    if not text:
        return
    answer.text += text
    words = max(1, len(text.split()))
    if answer.marks and answer.marks[-1][0] == when:  # they came together
        words += answer.marks.pop()[1]
    answer.marks.append((when, words))


class _Body:
    """Server-sent events out of an HTTP response that comes in pieces, chunked or not."""

    def __init__(self) -> None:
        self._head = True
        self._chunked = False
        self._raw = b""
        self._left = 0
        self._text = b""
        self._decoder = msgspec.json.Decoder(_Event)

    def feed(self, data: bytes) -> list[_Event]:
        """Return the events that `data` completes."""
        self._raw += data
        if self._head and not self._read_head():
            return []
        self._text += self._dechunk() if self._chunked else self._take(len(self._raw))
        *whole, self._text = self._text.replace(b"\r\n", b"\n").split(b"\n\n")
        lines = [line for event in whole for line in event.split(b"\n")]
        fields = [line[5:].strip() for line in lines if line.startswith(b"data:")]
        return [self._decoder.decode(text) for text in fields if text != b"[DONE]"]

    def _read_head(self) -> bool:
        head, end, rest = self._raw.partition(b"\r\n\r\n")
        if not end:
            return False
        if b" 200 " not in head.split(b"\r\n")[0] + b" ":
            raise RuntimeError(f"the server refused: {self._raw[:1000]!r}")
        self._chunked = b"transfer-encoding: chunked" in head.lower()
        self._head, self._raw = False, rest
        return True

    def _dechunk(self) -> bytes:
        """Return what is complete of the chunks' content (RFC 9112, 7.1)."""
        content = b""
        while self._raw:
            if self._left == 0:
                size, end, rest = self._raw.partition(b"\r\n")
                if not end:
                    break
                self._left, self._raw = int(size, 16) + 2, rest
            else:
                ends = max(0, self._left - 2)
                piece = self._take(min(self._left, len(self._raw)))
                content += piece[:ends]
                self._left -= len(piece)
        return content

    def _take(self, count: int) -> bytes:
        taken, self._raw = self._raw[:count], self._raw[count:]
        return taken
