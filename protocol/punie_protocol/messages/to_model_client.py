"""Messages that a client (a worker) receives from the model host."""

from enum import StrEnum

import msgspec

from punie_protocol.errors import WireError
from punie_protocol.messages.common import Limits, Message, ModelInfo, Usage


class ModelWelcome(Message, frozen=True, tag="model_welcome"):
    """Answer to `ClientHello`. `model` is ``None`` while the first one loads."""

    protocol: int
    version: str
    limits: Limits
    model: ModelInfo | None


class ModelChanged(Message, frozen=True, tag="model_changed"):
    """Another model answers from now on."""

    model: ModelInfo


class Refused(Message, frozen=True, tag="refused"):
    """The handshake failed; the host closes the link."""

    error: WireError


class PrefillProgress(Message, frozen=True, tag="prefill_progress"):
    """Prompt tokens done, of all that are not in the cache; at most ten a second."""

    request_id: int
    done: int
    total: int


class TextDelta(Message, frozen=True, tag="text_delta"):
    """More of the answer."""

    request_id: int
    text: str


class ThinkingDelta(Message, frozen=True, tag="thinking_delta"):
    """More of the model's thinking."""

    request_id: int
    text: str


class ToolCall(Message, frozen=True, tag="tool_call"):
    """A whole tool call. `arguments` is the JSON text of an object, checked to be one; whether it
    fits the
    tool's schema is the worker's to check."""

    request_id: int
    call_id: str
    name: str
    arguments: str


class StopReason(StrEnum):
    """Why the model ended."""

    STOP = "stop"
    TOOL_CALLS = "tool_calls"
    LENGTH = "length"


class StepTimings(msgspec.Struct, frozen=True, kw_only=True):
    """One request in the model host, milliseconds: wait in the queue, prompt to first token,
    first token to last."""

    queue: float
    prefill: float
    decode: float


class Finished(Message, frozen=True, tag="finished"):
    """The answer is complete."""

    request_id: int
    stop_reason: StopReason
    usage: Usage
    timings: StepTimings


class Failed(Message, frozen=True, tag="failed"):
    """The request ended without a complete answer; other requests are not affected."""

    request_id: int
    error: WireError
    usage: Usage = Usage()


class TokenCount(Message, frozen=True, tag="token_count"):
    """Answer to `CountTokens`."""

    request_id: int
    tokens: int


type ToModelClient = (
    ModelWelcome
    | ModelChanged
    | Refused
    | PrefillProgress
    | TextDelta
    | ThinkingDelta
    | ToolCall
    | Finished
    | Failed
    | TokenCount
)
