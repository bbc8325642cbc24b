"""Messages that a worker receives from the supervisor, on its control socket."""

from punie_protocol.errors import WireError
from punie_protocol.messages.common import Isolation, Limits, Message


class Welcome(Message, frozen=True, tag="welcome"):
    """Answer to `Hello`. `model_socket` is the absolute path of the model host's socket."""

    protocol: int
    version: str
    limits: Limits
    model_socket: str


class OpenProject(Message, frozen=True, tag="open_project"):
    """Start the project half for `root`, an absolute real path. `client_id` is the opaque
    fairness key for the model host. Answered by `ProjectReady` or `ProjectFailed`."""

    project_id: str
    root: str
    isolation: Isolation
    client_id: str


class CloseProject(Message, frozen=True, tag="close_project"):
    """Cancel its turns, forget its sessions, end its interpreter. No answer."""

    project_id: str
    reason: str


class OpenSession(Message, frozen=True, tag="open_session"):
    """Make a session known, with its conversation so far: deltas in order of their ordinal,
    as they were in `StoreDelta`; what does not fit follows in `SessionHistory`. Comes before the
    first `ClientMessage` of the session."""

    session_id: str
    project_id: str
    deltas: list[bytes]


class SessionHistory(Message, frozen=True, tag="session_history"):
    """More deltas for the `OpenSession` just before, in order: a long conversation does not fit
    into one frame."""

    session_id: str
    deltas: list[bytes]


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
    """`StoreDelta`, `EffectStarted` or `EffectFinished` of that id is on the disk, or why not."""

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
    | CloseProject
    | OpenSession
    | SessionHistory
    | CloseSession
    | ClientMessage
    | Stored
    | Ping
    | Stop
)
