"""An answer of the model host that has begun, and pydantic-ai's stream over it."""

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self, assert_never

from pydantic_ai.messages import ModelResponseStreamEvent
from pydantic_ai.models import StreamedResponse
from pydantic_ai.usage import RequestUsage

from punie_protocol.errors import PunieError
from punie_protocol.messages.to_model_client import (
    Finished,
    PrefillProgress,
    StopReason,
    TextDelta,
    ThinkingDelta,
    ToolCall,
)
from punie_protocol.messages.to_model_host import Generate
from punie_workers.model_client import Generation, ModelClient, StepEvent
from punie_workers.totals import ModelTotals


class Answer:
    """Iterate it once. Its failures raise as those of `Generation`, and are added to `totals`, as
    is one that is cancelled before its end; its end is for who iterates to add. `cancel` may be
    called at any time. `begun` is the `time.perf_counter` reading when it was asked for."""

    def __init__(self, generation: Generation, totals: ModelTotals, begun: float) -> None:
        self.begun = begun
        self._generation = generation
        self._totals = totals
        self._events = aiter(generation)
        self._first: StepEvent | None = None
        self._first_at: float | None = None
        self._over = False

    @classmethod
    async def open(cls, client: ModelClient, request: Generate, totals: ModelTotals) -> Self:
        """Return the answer to `request` when its first words are there, so that until then
        nothing was seen of it. Raises `PunieError`."""
        begun = time.perf_counter()
        try:
            generation = await client.generate(request)
        except BaseException:
            totals.add_unsent(begun)
            raise
        answer = cls(generation, totals, begun)
        try:
            answer._first = await answer._next()
        except BaseException:
            answer.cancel()
            raise
        return answer

    def cancel(self) -> None:
        """Tell the host to stop."""
        self._generation.cancel()
        self._fail()

    async def __aiter__(self) -> AsyncIterator[StepEvent]:
        event, self._first = self._first, None
        while event is not None:
            yield event
            event = await self._next()

    async def _next(self) -> StepEvent | None:
        try:
            async for event in self._events:
                if not isinstance(event, PrefillProgress):
                    self._came(event)
                    return event
        except PunieError:
            self._fail()
            raise
        return None

    def _came(self, event: StepEvent) -> None:
        if self._first_at is None:
            self._first_at = time.perf_counter()
        self._over = self._over or isinstance(event, Finished)

    def _fail(self) -> None:
        if not self._over:
            self._over = True
            self._totals.add_failed(self._generation.spent, self.begun, self._first_at)


@dataclass
class PunieResponse(StreamedResponse):
    """One answer as it streams. Closing it cancels the request in the model host."""

    name: str = field(kw_only=True)
    answer: Answer = field(kw_only=True)
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
        self.totals.add(event, self.answer.begun)
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
