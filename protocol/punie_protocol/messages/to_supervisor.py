"""Messages that the supervisor receives from its children, on the control socket."""

from enum import StrEnum

import msgspec

from punie_protocol.client import BackgroundCommand, PromptReport
from punie_protocol.engine import EngineStatus
from punie_protocol.errors import WireError
from punie_protocol.messages.common import HalfStatus, Limits, Message, ModelInfo, Role
from punie_protocol.permissions import Grant


class Hello(Message, frozen=True, tag="hello"):
    """First message of a child: who it is and what it speaks."""

    protocol: int
    version: str
    role: Role
    pid: int
    limits: Limits


class Ready(Message, frozen=True, tag="ready"):
    """The child can take work. For a worker and for a model host whose socket listens (its model
    may still be loading, see `ModelState`)."""


class ProjectReady(Message, frozen=True, tag="project_ready"):
    """Answer to `OpenProject`: its interpreter runs. `activate_ms` is what that took."""

    project_id: str
    activate_ms: float


class ProjectFailed(Message, frozen=True, tag="project_failed"):
    """Answer to `OpenProject`: it cannot be opened."""

    project_id: str
    error: WireError


class AgentMessage(Message, frozen=True, tag="agent_message"):
    """An ACP message from the agent to the clients of a session: response, request or
    notification, JSON bytes. The supervisor rewrites its id and adds ``_meta.punie.seq``."""

    session_id: str
    body: bytes


class StoreDelta(Message, frozen=True, tag="store_delta"):
    """New model messages of a conversation, to be durable before the turn goes on.

    `data` is pydantic-ai's own JSON of a list of messages; `ordinal` counts deltas per session
    from 0 without gaps. Answered by `Stored`.
    """

    request_id: int
    session_id: str
    prompt_id: str
    ordinal: int
    data: bytes


class EffectStarted(Message, frozen=True, tag="effect_started"):
    """A tool with effects is about to begin; it begins after `Stored`. `ordinal` is that of the
    next delta: an effect whose ordinal no delta has belongs to a step that is not over."""

    request_id: int
    session_id: str
    prompt_id: str
    ordinal: int
    effect_id: str
    tool: str
    arguments: bytes


class EffectFinished(Message, frozen=True, tag="effect_finished"):
    """That tool ended. Answered by `Stored`."""

    request_id: int
    session_id: str
    effect_id: str
    ok: bool
    summary: str


class StoreGrant(Message, frozen=True, tag="store_grant"):
    """An answer that holds for the rest of the session. Answered by `Stored`."""

    request_id: int
    session_id: str
    grant: Grant


class StoreTrust(Message, frozen=True, tag="store_trust"):
    """The user trusts the project's own settings as they are: `digest` is of those files'
    content. Answered by `Stored`."""

    request_id: int
    project_id: str
    digest: str


class HalfQuarantined(Message, frozen=True, tag="half_quarantined"):
    """A project half did not answer within `seconds`: it cannot be stopped, so this process is to
    take no new turns and to end once those under way have."""

    project_id: str
    operation: str
    seconds: float


class ProgramsRunning(Message, frozen=True, tag="programs_running"):
    """How many background commands of a project run now; sent at each change. A project with one
    is not idle."""

    project_id: str
    count: int


class PromptDescribed(Message, frozen=True, tag="prompt_described"):
    """Answer to `DescribePrompt`: `report` is there unless `error` says why not."""

    request_id: int
    report: PromptReport | None = None
    error: WireError | None = None


class CommandsTold(Message, frozen=True, tag="commands_told"):
    """Answer to `AskCommands`: those that run, or were ended; `error` says why it could not."""

    request_id: int
    commands: list[BackgroundCommand] = msgspec.field(default_factory=list[BackgroundCommand])
    error: WireError | None = None


class Load(StrEnum):
    """State of a model."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class ModelState(Message, frozen=True, tag="model_state"):
    """What the model host's model is doing; sent at each change and during a load.

    `done_bytes` of `total_bytes` are read while `state` is LOADING. `model` is what can be used
    right now, also after a failed switch to another; `error` explains FAILED. `request_id` is
    that of the `LoadModel` it answers, -1 for the first load.
    """

    request_id: int
    state: Load
    name: str
    done_bytes: int = 0
    total_bytes: int = 0
    model: ModelInfo | None = None
    error: WireError | None = None


class EngineReport(Message, frozen=True, tag="engine_report"):
    """The model host's engine as it is now; sent at most once a second, while it changes."""

    engine: EngineStatus


class DoorIs(Message, frozen=True, tag="door_is"):
    """Answer to `OpenDoor` and `CloseDoor`; with `request_id` -1 the door ended by itself. `port`
    is where it is open, None when it is closed, `error` then says why if that was not asked
    for."""

    request_id: int
    port: int | None = None
    error: WireError | None = None


class Pong(Message, frozen=True, tag="pong"):
    """Answer to `Ping`. `busy` counts turns (worker) or requests (model host) under way; `halves`
    are a worker's, one a project that is open."""

    nonce: int
    busy: int
    halves: list[HalfStatus] = msgspec.field(default_factory=list[HalfStatus])


type ToSupervisor = (
    Hello
    | Ready
    | ProjectReady
    | ProjectFailed
    | AgentMessage
    | StoreDelta
    | EffectStarted
    | EffectFinished
    | StoreGrant
    | StoreTrust
    | HalfQuarantined
    | ProgramsRunning
    | PromptDescribed
    | CommandsTold
    | ModelState
    | EngineReport
    | DoorIs
    | Pong
)
