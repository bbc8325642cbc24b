"""HTTP/1.1 by hand, for what no client library would send."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

DEADLINE = 10.0
"""Seconds for what has to happen; nothing is asserted of how fast it does."""


@dataclass
class Response:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The stream's events, comments left out; the last may be the word ``[DONE]``."""
        lines = [line for line in self.body.decode().split("\n\n") if line.startswith("data: ")]
        return ["[DONE]" if line[6:] == "[DONE]" else json.loads(line[6:]) for line in lines]


class HttpConnection:
    """One connection to a port of this machine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def to(cls, port: int, *, limit: int = 2**16) -> AsyncGenerator[Self]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
        connection = cls(reader, writer)
        try:
            async with asyncio.timeout(DEADLINE):
                yield connection
        finally:
            writer.transport.abort()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def response(self) -> Response:
        """Read a whole answer."""
        status, headers = await self.head()
        if "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        else:
            body = b"".join([chunk async for chunk in self.chunks()])
        return Response(status, headers, body)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read a status and headers."""
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.split(": ", 1) for line in lines if line)
        return int(first.split()[1]), {name.lower(): value for name, value in pairs}

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Read a chunked body to its end."""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)

    async def until_dropped(self) -> None:
        """Read nothing, and wait until the other end will not have us any more."""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while True:
                await self.send(b"x")
                await asyncio.sleep(0.01)

    async def is_closed(self) -> bool:
        """Wait for the other end to close; return whether it said nothing more before."""
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True


def request(
    port: int, key: str, method: str, path: str, body: Any = None, **more: str | None
) -> bytes:
    """Return a request as it goes over the wire. `more` are headers, with ``_`` for ``-``; None
    leaves one out that would be there."""
    content = (
        b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    )
    headers: Mapping[str, str | None] = {
        "host": f"127.0.0.1:{port}",
        "authorization": f"Bearer {key}",
        "content-type": "application/json" if content else None,
        "content-length": str(len(content)) if content else None,
    } | {name.replace("_", "-"): value for name, value in more.items()}
    lines = [f"{name}: {value}\r\n" for name, value in headers.items() if value is not None]
    return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + content
