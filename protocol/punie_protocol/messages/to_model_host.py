"""Messages that the model host receives: from the supervisor on its control socket, and from
clients (workers) on its own socket."""

import msgspec

from punie_protocol.engine import EngineSettings
from punie_protocol.messages.common import Limits, Message, Priority, Role


class Welcome(Message, frozen=True, tag="welcome"):
    """Supervisor's answer to the host's `Hello`."""

    protocol: int
    version: str
    limits: Limits


class LoadModel(Message, frozen=True, tag="load_model"):
    """Supervisor: use `model` from now on: a name (``embedded``, or a folder of the models
    directory) or an absolute path. It is checked before the present one is given up. With
    `settings` the engine has those from then on; the same model may be loaded again for them.
    Answered by `ModelState` messages with the same `request_id`."""

    request_id: int
    model: str
    settings: EngineSettings | None = None


class Ping(Message, frozen=True, tag="ping"):
    """Supervisor: liveness; answered by `Pong`."""

    nonce: int


class Stop(Message, frozen=True, tag="stop"):
    """Supervisor: cancel what runs and exit within `deadline_s`."""

    reason: str
    deadline_s: float


class OpenDoor(Message, frozen=True, tag="open_door"):
    """Supervisor: serve the HTTP door at this port of the loopback interface (0: any that is free)
    to whoever has `key`. A door that is open is closed first, unless port and key are the same.
    Answered by `DoorIs`."""

    request_id: int
    port: int
    key: str


class CloseDoor(Message, frozen=True, tag="close_door"):
    """Supervisor: end the HTTP door; its requests are cancelled. Answered by `DoorIs`."""

    request_id: int


type ControlToModelHost = Welcome | LoadModel | OpenDoor | CloseDoor | Ping | Stop


class ClientHello(Message, frozen=True, tag="client_hello"):
    """First message of a client; answered by `ModelWelcome` or `Refused`."""

    protocol: int
    version: str
    role: Role
    pid: int
    limits: Limits


class ToolCallPart(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call in a conversation. `arguments` is the JSON text of an object."""

    call_id: str
    name: str
    arguments: str


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="role"):
    """Base of the messages of a conversation."""


class SystemMessage(ChatMessage, frozen=True, tag="system"):
    """Instructions."""

    text: str


class UserMessage(ChatMessage, frozen=True, tag="user"):
    """What the user says."""

    text: str


class AssistantMessage(ChatMessage, frozen=True, tag="assistant"):
    """What the model said and called."""

    text: str = ""
    thinking: str = ""
    tool_calls: list[ToolCallPart] = []


class ToolMessage(ChatMessage, frozen=True, tag="tool"):
    """The result of one tool call."""

    call_id: str
    name: str
    text: str


type AnyChatMessage = SystemMessage | UserMessage | AssistantMessage | ToolMessage


class ToolSchema(msgspec.Struct, frozen=True, kw_only=True):
    """A tool as the model sees it. `parameters` is the JSON text of an
    object schema."""

    name: str
    description: str
    parameters: str


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to sample; ``None`` means as the model's profile says. `logit_bias` is added to the
    logits of those token ids. `xtc_*` are of "exclude top choices": with that probability, of
    several tokens over the threshold only the least likely is kept."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    max_tokens: int | None = None
    stop: list[str] = []


class Generate(Message, frozen=True, tag="generate"):
    """Client: answer this conversation. Answered by a stream that ends with `Finished` or
    `Failed`. `request_id` is unique on the link; `client_id` is the fairness key and
    `conversation_id` a hint for the prefix cache, both opaque.

    With a `prompt`, text or token ids, that is gone on with as it is: no template, no tools, no
    tool calls in what comes out; `messages` and `tools` are empty then.

    With `must_call` the answer is a call: of the tool of that name, or, if it is empty, of any.
    With `one_call` the answer ends with its first call."""

    request_id: int
    client_id: str
    conversation_id: str
    priority: Priority
    messages: list[AnyChatMessage]
    tools: list[ToolSchema] = msgspec.field(default_factory=list[ToolSchema])
    sampling: Sampling = Sampling()
    prompt: str | list[int] | None = None
    must_call: str | None = None
    one_call: bool = False


class CancelGenerate(Message, frozen=True, tag="cancel_generate"):
    """Client: stop that request; it ends with `Failed` carrying `Cancelled`, unless it had ended.
    An unknown id is ignored: the answer may have crossed this message."""

    request_id: int


class CountTokens(Message, frozen=True, tag="count_tokens"):
    """Client: how many tokens these messages and tools are, rendered as for `Generate` without
    the opening of an answer. Answered by `TokenCount` or `Failed`."""

    request_id: int
    messages: list[AnyChatMessage]
    tools: list[ToolSchema] = msgspec.field(default_factory=list[ToolSchema])


type ClientToModelHost = ClientHello | Generate | CancelGenerate | CountTokens
