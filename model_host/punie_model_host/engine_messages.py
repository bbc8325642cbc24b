"""What goes into the engine's thread and what comes out of it."""

from dataclasses import dataclass
from typing import NamedTuple

from punie_protocol.messages.to_model_client import ToModelClient
from punie_protocol.messages.to_model_host import Generate
from punie_protocol.messages.to_supervisor import ModelState


class Key(NamedTuple):
    """A request: the link it came on and its id there."""

    link: int
    request_id: int


@dataclass(frozen=True, slots=True)
class Submit:
    """Answer this request. `received` is the engine clock's time of arrival."""

    key: Key
    request: Generate
    received: float


@dataclass(frozen=True, slots=True)
class Cancel:
    """End that request with `Failed` carrying `Cancelled`; nothing when it is over."""

    key: Key


@dataclass(frozen=True, slots=True)
class LoadCommand:
    """Use another model."""

    request_id: int
    model: str


@dataclass(frozen=True, slots=True)
class Quit:
    """End the thread as soon as the present step is done."""


type Command = Submit | Cancel | LoadCommand | Quit


@dataclass(frozen=True, slots=True)
class ToClient:
    """A message for the client behind `key.link`."""

    key: Key
    message: ToModelClient


@dataclass(frozen=True, slots=True)
class ModelIs:
    """The model's state, for the supervisor; `state.model` is what answers now."""

    state: ModelState


@dataclass(frozen=True, slots=True)
class Died:
    """The engine cannot go on; the process has to be replaced."""

    reason: str


type Emission = ToClient | ModelIs | Died
