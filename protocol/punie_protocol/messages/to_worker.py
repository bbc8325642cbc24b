"""Messages that a worker receives from the supervisor, on its control socket."""

import msgspec

from punie_protocol.backends import Backend
from punie_protocol.errors import WireError
from punie_protocol.isolation import SandboxSettings, WorkerLimits
from punie_protocol.messages.common import Isolation, Limits, Message
from punie_protocol.permissions import Grant, Mode, PermissionSettings


class Welcome(Message, frozen=True, tag="welcome"):
    """Answer to `Hello`. `model_socket` is the absolute path of the model host's socket,
    `permissions` and `sandbox` are what the user's config file says. `limits_of_process` hold for
    a worker of one project, ``None`` for one that several share. `crumbs` is the absolute path of
    its breadcrumb file (`limits.MAX_HALVES` bytes), `hidden` are folders that no program may see:
    our own state and sockets. `variables` are those of the daemon's environment that `sandbox`
    names: for programs, never for the worker itself."""

    protocol: int
    version: str
    limits: Limits
    model_socket: str
    permissions: PermissionSettings
    sandbox: SandboxSettings = SandboxSettings()
    limits_of_process: WorkerLimits | None = None
    crumbs: str = ""
    hidden: list[str] = msgspec.field(default_factory=list[str])
    variables: dict[str, str] = msgspec.field(default_factory=dict[str, str])


class OpenProject(Message, frozen=True, tag="open_project"):
    """Start the project half for `root`, an absolute real path. `client_id` is the opaque
    fairness key for the model host, `trusted` the digest of the project's own settings as the
    user trusted them, or empty. `slot` is the index of its byte in the breadcrumb file.
    `unconfined`: the user said that its commands may run where there is no sandbox. Answered by
    `ProjectReady` or `ProjectFailed`."""

    project_id: str
    root: str
    isolation: Isolation
    client_id: str
    trusted: str
    slot: int = 0
    unconfined: bool = False


class TrustProject(Message, frozen=True, tag="trust_project"):
    """The user's trust in the project's own settings has changed; empty: there is none."""

    project_id: str
    trusted: str


class SetUnconfined(Message, frozen=True, tag="set_unconfined"):
    """Whether the user lets the project's commands run where there is no sandbox has changed."""

    project_id: str
    unconfined: bool


class CloseProject(Message, frozen=True, tag="close_project"):
    """Cancel its turns, forget its sessions, end its interpreter. No answer."""

    project_id: str
    reason: str


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call with effects, as `EffectStarted` and `EffectFinished` told it. `ok` is ``None``
    for one that did not finish: its outcome is not known."""

    effect_id: str
    tool: str
    arguments: bytes
    ok: bool | None
    summary: str


class OpenSession(Message, frozen=True, tag="open_session"):
    """Make a session known, with its conversation so far: deltas in order of their ordinal,
    as they were in `StoreDelta`; what does not fit follows in `SessionHistory`. `effects` are
    those of the step after the last delta, `mode` is ``None`` while nobody set one. Comes before
    the first `ClientMessage` of the session."""

    session_id: str
    project_id: str
    deltas: list[bytes]
    mode: Mode | None = None
    grants: list[Grant] = msgspec.field(default_factory=list[Grant])
    effects: list[Effect] = msgspec.field(default_factory=list[Effect])


class SessionHistory(Message, frozen=True, tag="session_history"):
    """More deltas for the `OpenSession` just before, in order: a long conversation does not fit
    into one frame."""

    session_id: str
    deltas: list[bytes]


class SetMode(Message, frozen=True, tag="set_mode"):
    """The session's permission mode from now on, also of a turn under way."""

    session_id: str
    mode: Mode


class DescribePrompt(Message, frozen=True, tag="describe_prompt"):
    """What is a model told before the first prompt of a session in that project? `backend` as in
    ``_meta.punie`` of a prompt. Answered by `PromptDescribed`."""

    request_id: int
    project_id: str
    backend: Backend | None = None


class AskCommands(Message, frozen=True, tag="ask_commands"):
    """Which background commands of that project run? `stop`: end them first. Answered by
    `CommandsTold`."""

    request_id: int
    project_id: str
    stop: bool = False


class CloseSession(Message, frozen=True, tag="close_session"):
    """Cancel its turn and forget it. No answer."""

    session_id: str
    reason: str


class ClientMessage(Message, frozen=True, tag="client_message"):
    """An ACP message from a client: JSON bytes whose id the supervisor made unique for this
    worker. ``session/new`` names the session in ``_meta.punie.sessionId``, ``session/prompt``
    the prompt in ``_meta.punie.promptId``."""

    session_id: str
    body: bytes


class Stored(Message, frozen=True, tag="stored"):
    """What the worker asked with that id to be stored is on the disk, or why not."""

    request_id: int
    error: WireError | None = None


class Ping(Message, frozen=True, tag="ping"):
    """Liveness of the loop; answered by `Pong` with the same nonce."""

    nonce: int


class Stop(Message, frozen=True, tag="stop"):
    """Cancel what runs and exit within `deadline_s`."""

    reason: str
    deadline_s: float


type ToWorker = (
    Welcome
    | OpenProject
    | TrustProject
    | SetUnconfined
    | CloseProject
    | OpenSession
    | SessionHistory
    | SetMode
    | DescribePrompt
    | AskCommands
    | CloseSession
    | ClientMessage
    | Stored
    | Ping
    | Stop
)
