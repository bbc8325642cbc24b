"""A model host that plays a script: real socket, real messages, no model.

One step is taken for each `Generate`, in order; after the last one `otherwise` answers. In a test:
``async with ScriptedHost(script=[say("hello")]) as host``. As a process:
``python -m punie_protocol.testing.scripted_host --socket PATH --script FILE``.
"""

import argparse
import asyncio
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Self, assert_never

import msgspec

from punie_protocol.codec import MessageDecoder
from punie_protocol.errors import Cancelled, Internal, LinkClosed, PunieError, TooLarge
from punie_protocol.handshake import accept_model_client, version
from punie_protocol.limits import PROTOCOL
from punie_protocol.link import FrameLink
from punie_protocol.messages.common import Limits, ModelInfo
from punie_protocol.messages.to_model_client import (
    Failed,
    Finished,
    ModelChanged,
    ModelWelcome,
    StopReason,
    TextDelta,
    ThinkingDelta,
    TokenCount,
    ToolCall,
)
from punie_protocol.messages.to_model_host import (
    CancelGenerate,
    ClientHello,
    ClientToModelHost,
    CountTokens,
    Generate,
)
from punie_protocol.testing.script import (
    Action,
    Call,
    Die,
    Fail,
    Reply,
    Say,
    Step,
    Think,
    Wait,
    estimate,
    load,
    model_info,
    over,
)

MAX_SOCKET_PATH: Final = 103
"""Bytes of a socket's path on macOS; Linux has 107."""


def count_tokens(asked: CountTokens) -> int:
    """Return about how many tokens were asked for."""
    schemas = sum(len(tool.parameters) + len(tool.description) for tool in asked.tools)
    return estimate(asked.messages, schemas)


class ScriptedHost:
    """The server. `requests`, `counts` and `cancelled` are what it was asked, over all
    connections; `script` is what is left and may be changed at any time. Without a `path` its
    socket is in a temporary folder, short enough for a socket and gone at the end."""

    def __init__(
        self,
        path: Path | str | None = None,
        script: Sequence[Step] = (),
        model: ModelInfo | None = None,
        *,
        otherwise: Step = over,
        count: Callable[[CountTokens], int] = count_tokens,
    ) -> None:
        self.path = str(path or "")
        self.script: list[Step] = list(script)
        self.model: ModelInfo | None = model or model_info()
        self.requests: list[Generate] = []
        self.counts: list[CountTokens] = []
        self.cancelled: list[int] = []
        self.count = count
        self._otherwise = otherwise
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    async def __aenter__(self) -> Self:
        if not self.path:
            self._folder = tempfile.TemporaryDirectory(prefix="punie-")
            self.path = f"{self._folder.name}/model.sock"
        _check(self.path)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Link(self), self.path)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        await self.die()
        _remove(self.path)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder, self.path = None, ""

    async def die(self) -> None:
        """Cut every connection and wait until their tasks are over; it listens on."""
        links = list(self._links)
        for link in links:
            link.abort("killed")
        tasks = [link.serving for link in links if link.serving is not None]
        current = asyncio.current_task()
        await asyncio.gather(
            *(task for task in tasks if task is not current), return_exceptions=True
        )

    def change_model(self, model: ModelInfo) -> None:
        """Have another model answer."""
        self.model = model
        for link in self._links:
            link.send_nowait(ModelChanged(model=model))

    # for the links

    def joined(self, link: _Link) -> None:
        """A client has connected."""
        self._links.add(link)

    def left(self, link: _Link) -> None:
        """A client is gone."""
        self._links.discard(link)

    def next_reply(self, request: Generate) -> Reply:
        """Return the reply to `request`; a step that raises fails the request with its error."""
        self.requests.append(request)
        step = self.script.pop(0) if self.script else self._otherwise
        if isinstance(step, Reply):
            return step
        try:
            return step(request)
        except Exception as error:  # noqa: BLE001 - the script's own, told to who runs it
            message = f"the script failed: {type(error).__name__}: {error}"
            return Reply((Fail(Internal(message=message)),))


def _check(path: str) -> None:
    if (size := len(os.fsencode(path))) > MAX_SOCKET_PATH:
        message = f"the socket {path} is too deep: {size} bytes, and {MAX_SOCKET_PATH} may be"
        hint = "leave the path out, and take `path` from the host"
        raise PunieError(TooLarge(message=message, hint=hint, limit=MAX_SOCKET_PATH, actual=size))


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)


class _Link(FrameLink[ClientToModelHost]):
    """One client's connection, served by its own task."""

    def __init__(self, host: ScriptedHost) -> None:
        decoder = MessageDecoder[ClientToModelHost]("scripted host", ClientToModelHost)
        super().__init__(decoder, name="client")
        self.serving: asyncio.Task[None] | None = None
        self._host = host
        self._answers: dict[int, asyncio.Task[None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._host.joined(self)
        self.serving = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        try:
            await accept_model_client(self)
            await self.send(
                ModelWelcome(
                    protocol=PROTOCOL, version=version(), limits=Limits(), model=self._host.model
                )
            )
            async for message in self:
                self._take(message)
        except PunieError:
            self.abort("broken")
        finally:
            for answer in self._answers.values():
                answer.cancel()
            await asyncio.gather(*self._answers.values(), return_exceptions=True)
            self._host.left(self)

    def _take(self, message: ClientToModelHost) -> None:
        match message:
            case Generate():
                answer = asyncio.create_task(self._play(message, self._host.next_reply(message)))
                self._answers[message.request_id] = answer
            case CancelGenerate(request_id=request_id):
                self._host.cancelled.append(request_id)
                if answer := self._answers.pop(request_id, None):
                    answer.cancel()
                    error = Cancelled(message="cancelled by the client")
                    self.send_nowait(Failed(request_id=request_id, error=error))
            case CountTokens(request_id=request_id):
                self._host.counts.append(message)
                tokens = self._host.count(message)
                self.send_nowait(TokenCount(request_id=request_id, tokens=tokens))
            case ClientHello():
                self.abort("a second hello")
            case _:
                assert_never(message)

    async def _play(self, request: Generate, script: Reply) -> None:
        calls = 0
        try:
            for action in script.actions:
                if not await self._act(request.request_id, action):
                    return
                calls += isinstance(action, Call)
            reason = StopReason.TOOL_CALLS if calls else script.stop_reason
            await self.send(
                Finished(
                    request_id=request.request_id,
                    stop_reason=reason,
                    usage=script.usage,
                    timings=script.timings,
                )
            )
        except LinkClosed:
            return
        finally:
            self._answers.pop(request.request_id, None)

    async def _act(self, request_id: int, action: Action) -> bool:
        """Do one action; false when nothing may follow."""
        match action:
            case Say(text=text, chunk=chunk, delay=delay):
                for at in range(0, len(text), chunk):
                    await asyncio.sleep(delay)
                    await self.send(TextDelta(request_id=request_id, text=text[at : at + chunk]))
            case Think(text=text):
                await self.send(ThinkingDelta(request_id=request_id, text=text))
            case Call():
                await self.send(_tool_call(request_id, action))
            case Wait(seconds=seconds):
                await asyncio.sleep(seconds)
            case Die():
                self.abort("killed")
                return False
            case Fail(error=error, usage=usage):
                await self.send(Failed(request_id=request_id, error=error, usage=usage))
                return False
            case _:
                assert_never(action)
        return True


def _tool_call(request_id: int, call: Call) -> ToolCall:
    return ToolCall(
        request_id=request_id,
        call_id=call.call_id or f"call_{request_id}_{os.urandom(3).hex()}",
        name=call.name,
        arguments=msgspec.json.encode(call.arguments).decode(),
    )


async def _main() -> None:
    parser = argparse.ArgumentParser(description="A model host that plays a script.")
    parser.add_argument("--socket", required=True, help="where to listen")
    parser.add_argument("--script", type=Path, required=True, help="a JSON list of replies")
    arguments = parser.parse_args()
    try:
        script = load(arguments.script)
    except PunieError as error:
        parser.error(f"{error} ({error.error.hint})")
    async with ScriptedHost(arguments.socket, script):
        print("listening", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
