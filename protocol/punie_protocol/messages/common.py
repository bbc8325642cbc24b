"""What messages of several receivers are made of."""

from enum import StrEnum

import msgspec

from punie_protocol.limits import MAX_FRAME, MAX_QUEUED_FRAMES


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of every frame message; subclasses set their tag."""


class Role(StrEnum):
    """What kind of process speaks."""

    SUPERVISOR = "supervisor"
    WORKER = "worker"
    MODEL_HOST = "model-host"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the sender of a handshake accepts."""

    max_frame: int = MAX_FRAME
    max_queued_frames: int = MAX_QUEUED_FRAMES


class Isolation(StrEnum):
    """Who shares a project's worker process."""

    PROCESS = "process"
    INTERPRETER = "interpreter"


class HalfStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a project half has done since its project was opened. `busy_ms` is the time inside
    calls, `longest_ms` the longest; `waiting` are calls now; `replaced` counts interpreters that
    did not answer in time and were given up."""

    project_id: str
    calls: int
    failed: int
    busy_ms: float
    longest_ms: float
    waiting: int
    replaced: int


class Priority(StrEnum):
    """Who goes first in the model host."""

    INTERACTIVE = "interactive"
    BACKGROUND = "background"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one model step or one turn. `cached_tokens` is the part of `input_tokens` whose
    keys and values were in the prefix cache."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
        )


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """The one timing schema, milliseconds.

    `total` is the wall time of the turn, `queue` the wait before it began (in the router and in
    the model host), `ttft` from the start of the turn to the first token, `prefill` and `decode`
    summed over model steps, `tools` and `permission_wait` the wall time in tools and in
    questions, `framework` the rest of `total`.
    """

    total: float = 0.0
    queue: float = 0.0
    ttft: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    tools: float = 0.0
    permission_wait: float = 0.0
    framework: float = 0.0


class Outcome(StrEnum):
    """How a tool call ended."""

    OK = "ok"
    FAILED = "failed"
    DENIED = "denied"
    CANCELLED = "cancelled"


class ToolTiming(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One tool call of a turn, milliseconds. `start_ms` counts from the start of the turn,
    `duration_ms` is without `wait_ms`, the wait for a permission. `parent` is the id of the
    `execute_code` it came from."""

    id: str
    tool: str
    start_ms: float
    duration_ms: float
    outcome: Outcome
    isolation: Isolation
    wait_ms: float = 0.0
    parent: str = ""


class ModelTiming(msgspec.Struct, frozen=True, kw_only=True):
    """One model step of a turn, milliseconds; `start_ms` as in `ToolTiming`, `wall_ms` is what
    the worker saw from the request to the last event."""

    start_ms: float
    wall_ms: float
    queue: float
    prefill: float
    decode: float
    usage: Usage


class PromptStyle(StrEnum):
    """How a model is told about its tools."""

    LEARNED = "learned"
    """Not at all: it was trained on them. No system prompt, no schemas."""
    TOOLS = "tools"
    """A system prompt, and the tools' schemas through the chat template."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The model that answers, as an agent needs to know it. Sizes in tokens. `folder` is empty
    for one that another server has. With `check_fences`, Python in fences of an answer must
    parse."""

    name: str
    folder: str
    context_window: int
    prompt_style: PromptStyle
    tool_call_format: str
    max_output_tokens: int
    check_fences: bool = False
