"""Answers of OpenAI's APIs as JSON: what both have in common. Pure."""

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from punie_model_host.door.answers import Answer
from punie_protocol.messages.common import ModelInfo, Usage
from punie_protocol.messages.to_model_client import (
    Finished,
    StepTimings,
    StopReason,
    TextDelta,
    ThinkingDelta,
    ToolCall,
)

DONE: Final = b"data: [DONE]\n\n"
FINISH: Final = {
    StopReason.STOP: "stop",
    StopReason.TOOL_CALLS: "tool_calls",
    StopReason.LENGTH: "length",
}

type Piece = TextDelta | ThinkingDelta | ToolCall


class Writer(Protocol):
    """Writes the answers to one request; of what the engine says, the request's id less 1 is the
    choice. Events of a stream end in an empty line."""

    def piece(self, message: Piece) -> bytes:
        """Return more of a choice; empty for what this API has no place for."""
        ...

    def end(self, message: Finished) -> bytes:
        """Return the event that says why a choice ends."""
        ...

    def usage(self, usage: Usage) -> bytes:
        """Return the event with the usage, which has no choices."""
        ...

    def whole(self, answers: Sequence[Answer], usage: Usage) -> bytes:
        """Return the body of answers that are no stream."""
        ...


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What is in all that is written of one request: `created` is Unix time, in seconds;
    `system_fingerprint` changes with what answers can depend on."""

    id: str
    created: int
    model: str
    system_fingerprint: str


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


class ModelOut(msgspec.Struct, frozen=True, kw_only=True):
    """A model. The last two are not OpenAI's, in tokens."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "punie"
    context_window: int
    max_output_tokens: int


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The models that can be asked for: the one that is loaded, if any."""

    data: list[ModelOut]
    object: str = "list"


def data(body: bytes) -> bytes:
    """Return JSON as a server-sent event."""
    return b"data: %b\n\n" % body


def comment(text: str) -> bytes:
    """Return a line of a stream that is no event: a sign of life."""
    return f": {text}\n\n".encode()


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


def usage_out(usage: Usage) -> UsageOut:
    """Return the tokens as OpenAI counts them."""
    return UsageOut(
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
        total_tokens=usage.input_tokens + usage.output_tokens,
        prompt_tokens_details=CachedDetails(cached_tokens=usage.cached_tokens),
    )


def timings_out(timings: Sequence[StepTimings]) -> TimingsOut:
    """Return where the time went; of several choices, which are made at one time, the longest."""
    return TimingsOut(
        queue=max(one.queue for one in timings),
        prefill=max(one.prefill for one in timings),
        decode=max(one.decode for one in timings),
    )
