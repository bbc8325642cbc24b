"""What goes into the engine's thread and what comes out of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from punie_model_host.facts import ModelFacts
from punie_protocol.engine import EngineSettings, EngineStatus
from punie_protocol.messages.to_model_client import ToModelClient
from punie_protocol.messages.to_model_host import Generate
from punie_protocol.messages.to_supervisor import ModelState

if TYPE_CHECKING:
    from punie_model_host.prepare import Prepared


class Key(NamedTuple):
    """A request: the link it came on and its id there."""

    link: int
    request_id: int


@dataclass(frozen=True, slots=True)
class Submit:
    """Answer this request. `received` is the engine clock's time of arrival; `prepared` is the
    request read for the model that answered then, None when there was none."""

    key: Key
    request: Generate
    received: float
    prepared: Prepared | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """End that request with `Failed` carrying `Cancelled`; nothing when it is over."""

    key: Key


@dataclass(frozen=True, slots=True)
class Refused:
    """A request of `client_id` was refused before it came here, with an error of that kind."""

    client_id: str
    kind: str


@dataclass(frozen=True, slots=True)
class LoadCommand:
    """Use this model, with these settings of the engine if they are given."""

    request_id: int
    model: str
    settings: EngineSettings | None = None


@dataclass(frozen=True, slots=True)
class Quit:
    """End the thread as soon as the present step is done; until `deadline`, on the engine's clock,
    it may save what a next start can use."""

    deadline: float


type Command = Submit | Cancel | Refused | LoadCommand | Quit


@dataclass(frozen=True, slots=True)
class ToClient:
    """A message for the client behind `key.link`."""

    key: Key
    message: ToModelClient


@dataclass(frozen=True, slots=True)
class ModelIs:
    """The model's state, for the supervisor; `state.model` is what answers now, `facts` are what
    other threads may know of it."""

    state: ModelState
    facts: ModelFacts | None


@dataclass(frozen=True, slots=True)
class StatusIs:
    """How the engine is doing."""

    status: EngineStatus


@dataclass(frozen=True, slots=True)
class Closed:
    """The thread ended as it was asked to."""


@dataclass(frozen=True, slots=True)
class Died:
    """The engine cannot go on; the process has to be replaced."""

    reason: str


type Emission = ToClient | ModelIs | StatusIs | Closed | Died
