"""A model host that plays a script: real socket, real messages, no model.

One `Reply` is taken for each `Generate`, in order; a host whose script is over fails the request.
In a test: ``async with ScriptedHost(path, [Reply(Say("hello"))]) as host``. As a process:
``python -m tests.support.scripted_host --socket PATH --script FILE`` with the replies as JSON.
"""

import argparse
import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, assert_never

import msgspec

from punie_protocol.codec import MessageDecoder
from punie_protocol.errors import Cancelled, Internal, LinkClosed, PunieError, WireError
from punie_protocol.handshake import accept_model_client, version
from punie_protocol.limits import PROTOCOL
from punie_protocol.link import FrameLink
from punie_protocol.messages.common import Limits, ModelInfo, PromptStyle, Usage
from punie_protocol.messages.to_model_client import (
    Failed,
    Finished,
    ModelChanged,
    ModelWelcome,
    StepTimings,
    StopReason,
    TextDelta,
    ThinkingDelta,
    ToolCall,
)
from punie_protocol.messages.to_model_host import (
    CancelGenerate,
    ClientHello,
    ClientToModelHost,
    Generate,
)


class Say(msgspec.Struct, frozen=True, tag="say"):
    """Text, in chunks of `chunk` characters with `delay` seconds before each."""

    text: str
    chunk: int = 16
    delay: float = 0.0


class Think(msgspec.Struct, frozen=True, tag="think"):
    """Thinking."""

    text: str


class Call(msgspec.Struct, frozen=True, tag="call"):
    """A tool call."""

    name: str
    arguments: dict[str, Any]


class Wait(msgspec.Struct, frozen=True, tag="wait"):
    """Nothing for so long."""

    seconds: float


class Die(msgspec.Struct, frozen=True, tag="die"):
    """Cut every connection, as a killed host does; it listens again at once."""


class Fail(msgspec.Struct, frozen=True, tag="fail"):
    """End the request with an error."""

    error: WireError


type Action = Say | Think | Call | Wait | Die | Fail


class Reply(msgspec.Struct, frozen=True):
    """What one request gets; a `Finished` follows by itself."""

    actions: tuple[Action, ...]
    stop_reason: StopReason = StopReason.STOP
    usage: Usage = Usage(input_tokens=10, cached_tokens=4, output_tokens=5)
    timings: StepTimings = StepTimings(queue=1.0, prefill=2.0, decode=3.0)


def reply(*actions: Action, stop_reason: StopReason = StopReason.STOP) -> Reply:
    """Return a reply that does `actions` in order."""
    return Reply(actions, stop_reason)


def model_info(
    style: PromptStyle = PromptStyle.LEARNED, *, name: str = "scripted", window: int = 32_768
) -> ModelInfo:
    """Return the description of a model that is not there."""
    return ModelInfo(
        name=name,
        folder="/nowhere",
        context_window=window,
        prompt_style=style,
        tool_call_format="qwen3_coder",
        max_output_tokens=4096,
    )


class ScriptedHost:
    """The server. `requests` and `cancelled` are what it was asked, over all connections."""

    def __init__(
        self, path: Path | str, script: Sequence[Reply], model: ModelInfo | None = None
    ) -> None:
        self.path = str(path)
        self.script = list(script)
        self.model: ModelInfo | None = model or model_info()
        self.requests: list[Generate] = []
        self.cancelled: list[int] = []
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Link(self), self.path)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        await self.die()
        _remove(self.path)

    async def die(self) -> None:
        """Cut every connection and wait until their tasks are over."""
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
        self._links.add(link)

    def left(self, link: _Link) -> None:
        self._links.discard(link)

    def next_reply(self) -> Reply:
        if self.script:
            return self.script.pop(0)
        return reply(Fail(Internal(message="the script is over")))


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
                self._host.requests.append(message)
                answer = asyncio.create_task(self._play(message, self._host.next_reply()))
                self._answers[message.request_id] = answer
            case CancelGenerate(request_id=request_id):
                self._host.cancelled.append(request_id)
                if answer := self._answers.pop(request_id, None):
                    answer.cancel()
                    error = Cancelled(message="cancelled by the client")
                    self.send_nowait(Failed(request_id=request_id, error=error))
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
            case Call(name=name, arguments=arguments):
                await self.send(
                    ToolCall(
                        request_id=request_id,
                        call_id=f"call_{request_id}_{os.urandom(3).hex()}",
                        name=name,
                        arguments=msgspec.json.encode(arguments).decode(),
                    )
                )
            case Wait(seconds=seconds):
                await asyncio.sleep(seconds)
            case Die():
                self.abort("killed")
                return False
            case Fail(error=error):
                await self.send(Failed(request_id=request_id, error=error))
                return False
            case _:
                assert_never(action)
        return True


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--script", type=Path, required=True)
    arguments = parser.parse_args()
    script = msgspec.json.decode(arguments.script.read_bytes(), type=list[Reply])
    async with ScriptedHost(arguments.socket, script):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
