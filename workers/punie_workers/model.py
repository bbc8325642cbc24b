"""pydantic-ai's `Model` over the model host's socket. One instance serves one turn.

pydantic-ai's own message preparation (framing notes, system tags, retry wrappers) is switched
off: what is sent is exactly the conversation, as the embedded model was trained on it and as the
prefix cache likes it.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, assert_never

import msgspec
from pydantic_ai import RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse, ModelResponseStreamEvent
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from punie_protocol.errors import (
    ContextOverflow,
    MessageTooLarge,
    PunieError,
    RemoteError,
    TooLarge,
)
from punie_protocol.limits import MAX_FRAME
from punie_protocol.messages.common import ModelInfo, Priority, PromptStyle, Usage
from punie_protocol.messages.to_model_client import (
    Finished,
    PrefillProgress,
    StopReason,
    TextDelta,
    ThinkingDelta,
    ToolCall,
)
from punie_protocol.messages.to_model_host import Generate
from punie_workers.chat import fitting_start, start_within, to_chat
from punie_workers.model_client import Generation, ModelClient, StepEvent
from punie_workers.prompts import system_prompt, tool_schemas

LEFT_OUT = "earlier conversation left out to fit the model's context window"

_CHARACTERS_PER_TOKEN = 8
"""More than any text has: what is over this times the window need not be tried."""


class ModelTotals(msgspec.Struct):
    """What the model host reported, summed over the steps of one turn; milliseconds.
    `first_token` is a `time.perf_counter` reading."""

    usage: Usage = Usage()
    queue: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    first_token: float | None = None
    stop_reason: StopReason | None = None

    def add(self, finished: Finished) -> None:
        """Take the end of one step."""
        self.usage += finished.usage
        self.queue += finished.timings.queue
        self.prefill += finished.timings.prefill
        self.decode += finished.timings.decode
        self.stop_reason = finished.stop_reason

    def token(self) -> None:
        """Note that a token came."""
        if self.first_token is None:
            self.first_token = time.perf_counter()


class PunieModel(Model):
    """The loaded model, for one turn of one conversation.

    `request_stream` raises `PunieError`: `RemoteError` as the host said, `LinkClosed` when it
    went away. When the conversation is too long, the oldest whole turns are left out of what is
    sent, and `notice` is told once; the last turn alone being too long raises `RemoteError`.
    """

    def __init__(
        self,
        client: ModelClient,
        info: ModelInfo,
        *,
        client_id: str,
        conversation_id: str,
        project: str,
        notice: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.info = info
        self.totals = ModelTotals()
        self._client = client
        self._client_id = client_id
        self._conversation_id = conversation_id
        self._project = project
        self._notice = notice
        self._start = 0

    @property
    def model_name(self) -> str:
        return self.info.name

    @property
    def system(self) -> str:
        return "punie"

    def prepare_messages(
        self,
        messages: list[ModelMessage],
        model_request_parameters: ModelRequestParameters | None = None,
    ) -> list[ModelMessage]:
        return messages

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        async with self.request_stream(
            messages, model_settings, model_request_parameters
        ) as response:
            async for _ in response:
                pass
            return response.get()

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        generation = await self._generate(messages)
        try:
            yield PunieResponse(
                model_request_parameters, name=self.info.name, answer=generation, totals=self.totals
            )
        finally:
            generation.cancel()

    async def _generate(self, messages: list[ModelMessage]) -> Generation:
        characters = min(MAX_FRAME, self.info.context_window * _CHARACTERS_PER_TOKEN)
        self._move(max(self._start, start_within(messages, characters)))
        while True:
            try:
                return await self._ask(messages[self._start :])
            except (RemoteError, MessageTooLarge) as error:
                self._leave_out(messages, error)

    async def _ask(self, messages: list[ModelMessage]) -> Generation:
        """Return an answer that has begun."""
        generation = await self._client.generate(self._request(messages))
        try:
            await generation.peek()
        except BaseException:
            generation.cancel()
            raise
        return generation

    def _leave_out(self, messages: list[ModelMessage], error: PunieError) -> None:
        """Move the start to a later turn, or raise `error` again."""
        match error.error:
            case ContextOverflow(tokens=actual, limit=limit) | TooLarge(actual=actual, limit=limit):
                later = fitting_start(messages, self._start, limit, actual)
            case _:
                later = None
        if later is None:
            raise error
        self._move(later)

    def _move(self, start: int) -> None:
        if self._start == 0 < start:
            self._notice(LEFT_OUT)
        self._start = start

    def _request(self, messages: list[ModelMessage]) -> Generate:
        told = self.info.prompt_style is PromptStyle.TOOLS
        return Generate(
            request_id=self._client.next_id(),
            client_id=self._client_id,
            conversation_id=self._conversation_id,
            priority=Priority.INTERACTIVE,
            messages=to_chat(messages, system_prompt(self._project) if told else ""),
            tools=list(tool_schemas()) if told else [],
        )


@dataclass
class PunieResponse(StreamedResponse):
    """One answer as it streams. Closing it cancels the request in the model host."""

    name: str = field(kw_only=True)
    answer: Generation = field(kw_only=True)
    totals: ModelTotals = field(kw_only=True)
    calls: int = field(default=0, init=False)
    created: datetime = field(default_factory=lambda: datetime.now(UTC), kw_only=True)

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        async for event in self.answer:
            for out in self._map(event):
                yield out

    def _map(self, event: StepEvent) -> Iterator[ModelResponseStreamEvent]:
        parts = self._parts_manager
        match event:
            case TextDelta(text=text):
                self.totals.token()
                yield from parts.handle_text_delta(
                    vendor_part_id=f"text-{self.calls}", content=text
                )
            case ThinkingDelta(text=text):
                self.totals.token()
                part_id = f"thinking-{self.calls}"
                yield from parts.handle_thinking_delta(vendor_part_id=part_id, content=text)
            case ToolCall():
                self.totals.token()
                self.calls += 1
                yield parts.handle_tool_call_part(
                    vendor_part_id=event.call_id,
                    tool_name=event.name,
                    args=event.arguments,
                    tool_call_id=event.call_id,
                )
            case Finished():
                self._finish(event)
            case PrefillProgress():
                pass
            case _:
                assert_never(event)

    def _finish(self, event: Finished) -> None:
        self.totals.add(event)
        self.finish_reason = "tool_call" if event.stop_reason is StopReason.TOOL_CALLS else "stop"
        self._usage = RequestUsage(
            input_tokens=event.usage.input_tokens,
            cache_read_tokens=event.usage.cached_tokens,
            output_tokens=event.usage.output_tokens,
        )

    async def close_stream(self) -> None:
        self.answer.cancel()

    def get_stream_cancel_errors(self) -> tuple[type[BaseException], ...]:
        return (PunieError,)

    @property
    def model_name(self) -> str:
        return self.name

    @property
    def provider_name(self) -> str | None:
        return "punie"

    @property
    def provider_url(self) -> str | None:
        return None

    @property
    def timestamp(self) -> datetime:
        return self.created
