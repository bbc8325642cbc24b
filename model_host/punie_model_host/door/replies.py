"""Answers of OpenAI's chat API, as JSON. Pure."""

from collections.abc import Sequence
from typing import Final

import msgspec

from punie_protocol.messages.common import ModelInfo, Usage
from punie_protocol.messages.to_model_client import StepTimings, StopReason, ToolCall

DONE: Final = b"data: [DONE]\n\n"


class CachedDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Part of the prompt that needed no computing."""

    cached_tokens: int


class UsageOut(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedDetails


class TimingsOut(msgspec.Struct, frozen=True, kw_only=True):
    """Not OpenAI's: where the time of a request went, milliseconds."""

    queue: float
    prefill: float
    decode: float


class FunctionOut(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    arguments: str


class CallOut(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tool call; `index` only in a stream."""

    id: str
    type: str
    function: FunctionOut
    index: int | None = None


class Delta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """More of an answer."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallOut] | None = None


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    delta: Delta
    finish_reason: str | None = None
    index: int = 0
    logprobs: None = None


class Chunk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event of a stream."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageOut | None = None
    timings: TimingsOut | None = None


class MessageOut(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A whole answer."""

    role: str
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[CallOut] | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    message: MessageOut
    finish_reason: str
    index: int = 0
    logprobs: None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """Body of an answer that is no stream."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: UsageOut
    timings: TimingsOut


class ModelOut(msgspec.Struct, frozen=True, kw_only=True):
    """A model. The last two are not OpenAI's, in tokens."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "punie"
    context_window: int
    max_output_tokens: int


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    data: list[ModelOut]
    object: str = "list"


_encoder = msgspec.json.Encoder()
_FINISH: Final = {
    StopReason.STOP: "stop",
    StopReason.TOOL_CALLS: "tool_calls",
    StopReason.LENGTH: "length",
}


class Writer:
    """The answer to one request: `id` and `created` (Unix time, seconds) are in all that it
    makes. Events of a stream end in an empty line."""

    def __init__(self, id: str, created: int, model: str) -> None:
        self.id = id
        self._created = created
        self._model = model

    def event(self, delta: Delta) -> bytes:
        """Return more of an answer."""
        return self._chunk([ChunkChoice(delta=delta)])

    def last(self, reason: StopReason, timings: StepTimings) -> bytes:
        """Return the event that says why the answer ends."""
        choice = ChunkChoice(delta=Delta(), finish_reason=_FINISH[reason])
        return self._chunk([choice], timings=_timings(timings))

    def usage(self, usage: Usage) -> bytes:
        """Return the event with the usage, which has no choices."""
        return self._chunk([], usage=_usage(usage))

    def whole(
        self, message: MessageOut, reason: StopReason, usage: Usage, timings: StepTimings
    ) -> bytes:
        """Return an answer that is no stream."""
        completion = Completion(
            id=self.id,
            object="chat.completion",
            created=self._created,
            model=self._model,
            choices=[Choice(message=message, finish_reason=_FINISH[reason])],
            usage=_usage(usage),
            timings=_timings(timings),
        )
        return _encoder.encode(completion)

    def _chunk(
        self,
        choices: list[ChunkChoice],
        usage: UsageOut | None = None,
        timings: TimingsOut | None = None,
    ) -> bytes:
        chunk = Chunk(
            id=self.id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage,
            timings=timings,
        )
        return data(_encoder.encode(chunk))


def data(body: bytes) -> bytes:
    """Return JSON as a server-sent event."""
    return b"data: %b\n\n" % body


def comment(text: str) -> bytes:
    """Return a line of a stream that is no event: a sign of life."""
    return f": {text}\n\n".encode()


def call(call: ToolCall, index: int | None = None) -> CallOut:
    """Return a tool call; `index` counts those of a stream."""
    function = FunctionOut(name=call.name, arguments=call.arguments)
    return CallOut(id=call.call_id, type="function", function=function, index=index)


def models(loaded: Sequence[ModelInfo]) -> ModelList:
    """Return the list of models."""
    return ModelList(data=[model(one) for one in loaded])


def model(info: ModelInfo) -> ModelOut:
    """Return what is said of a model."""
    return ModelOut(
        id=info.name,
        context_window=info.context_window,
        max_output_tokens=info.max_output_tokens,
    )


def _usage(usage: Usage) -> UsageOut:
    return UsageOut(
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
        total_tokens=usage.input_tokens + usage.output_tokens,
        prompt_tokens_details=CachedDetails(cached_tokens=usage.cached_tokens),
    )


def _timings(timings: StepTimings) -> TimingsOut:
    return TimingsOut(queue=timings.queue, prefill=timings.prefill, decode=timings.decode)
