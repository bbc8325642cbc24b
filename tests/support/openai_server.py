"""An OpenAI-compatible server that plays a script: real sockets, real HTTP, no model.

One reply is taken for each chat completion, in order. In a test:
``async with OpenAIServer([say("hello")]) as server``; its address is `server.url`.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Self

import msgspec


class Reply(msgspec.Struct, frozen=True):
    """What one request gets: an HTTP answer. Bytes of `body` are sent as they are, numbers wait so
    many seconds. Then the connection ends, orderly or, with `cut`, by a reset; with `hang` it stays
    open until the client closes it."""

    body: tuple[bytes | float, ...] = ()
    status: int = 200
    type: str = "text/event-stream"
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False
    hang: bool = False


class Request(msgspec.Struct, frozen=True):
    """What was asked."""

    path: str
    headers: dict[str, str]
    body: Any


USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 7,
    "total_tokens": 27,
    "prompt_tokens_details": {"cached_tokens": 12},
}


def event(data: Any) -> bytes:
    """Return one server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data)
    return f"data: {text}\n\n".encode()


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    """Return one part of a streamed answer."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "/a/path"}
    return event({**head, "choices": choices, **more})


def ended(finish: str = "stop", usage: dict[str, Any] | None = USAGE) -> tuple[bytes, ...]:
    """Return the end of a streamed answer."""
    last = (chunk(usage=usage),) if usage else ()
    return (chunk({}, finish), *last, event("[DONE]"))


def say(*texts: str, finish: str = "stop") -> Reply:
    """Return an answer of text, a part for each of `texts`."""
    return Reply((*(chunk({"content": text}) for text in texts), *ended(finish)))


def call(name: str, *arguments: str, call_id: str = "call_1") -> Reply:
    """Return a tool call whose arguments come in parts."""
    head = {"index": 0, "id": call_id, "type": "function"}
    first = chunk({"tool_calls": [{**head, "function": {"name": name, "arguments": ""}}]})
    rest = (
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}) for part in arguments
    )
    return Reply((first, *rest, *ended("tool_calls")))


def refuse(status: int, error: Any, *headers: tuple[str, str]) -> Reply:
    """Return an error as such servers send it."""
    body = json.dumps({"error": error}).encode()
    return Reply((body,), status, "application/json", headers)


class OpenAIServer:
    """The server. `requests` are the completions it was asked for, `closed` counts clients that
    went away while it answered."""

    def __init__(
        self, script: Sequence[Reply] = (), *, models: Sequence[str] = ("first", "second")
    ) -> None:
        self.script = list(script)
        self.requests: list[Request] = []
        self.listed: list[Request] = []
        self.models: Reply | None = None
        self.closed = 0
        self._names = models
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The address, as in a model's name."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more and cut what is open."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reply(self, request: Request) -> Reply:
        """Return the answer to a completion: the script's next."""
        return self.script.pop(0) if self.script else refuse(500, "the script is over")

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await _read(reader)
        if request.path.endswith("/models"):
            self.listed.append(request)
            reply = self.models or self._list()
        elif request.path.endswith("/chat/completions"):
            self.requests.append(request)
            reply = self.reply(request)
        else:
            reply = refuse(404, {"message": f"no {request.path}"})
        await self._answer(reply, reader, writer)

    def _list(self) -> Reply:
        data = [{"id": name, "object": "model"} for name in self._names]
        body = json.dumps({"object": "list", "data": data}).encode()
        return Reply((body,), type="application/json")

    async def _answer(
        self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        lines = [f"HTTP/1.1 {reply.status} .", f"content-type: {reply.type}", "connection: close"]
        lines += [f"{name}: {value}" for name, value in reply.headers]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        gone = asyncio.create_task(reader.read())
        try:
            for part in reply.body:
                if isinstance(part, bytes):
                    writer.write(part)
                    await writer.drain()
                elif await _within(gone, part):
                    break
            if reply.hang or gone.done():
                await gone
                self.closed += 1
        finally:
            gone.cancel()
        if reply.cut:
            writer.transport.abort()


async def _within(gone: asyncio.Task[bytes], seconds: float) -> bool:
    done, _ = await asyncio.wait([gone], timeout=seconds)
    return bool(done)


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {
        name.lower(): value
        for name, _, value in (line.partition(": ") for line in head[1:] if line)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(head[0].split()[1], headers, json.loads(body) if body else None)
