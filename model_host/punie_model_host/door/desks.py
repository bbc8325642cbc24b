"""What the door needs of the desk: no more than a place among its clients."""

from typing import Protocol

from punie_model_host.desk import Sink
from punie_protocol.engine import EngineStatus
from punie_protocol.messages.common import ModelInfo
from punie_protocol.messages.to_model_host import Generate


class Desk(Protocol):
    """The event loop's end of the engine. `quiet_s` are the seconds since it last said anything of
    a request, 0 while it has none."""

    @property
    def model(self) -> ModelInfo | None: ...

    @property
    def status(self) -> EngineStatus | None: ...

    @property
    def quiet_s(self) -> float: ...

    def enter(self, sink: Sink, room: int, /) -> int:
        """Return the number of a new client, which is refused while the desk has `room` requests
        of all clients together."""
        ...

    def submit(self, client: int, request: Generate, /) -> None:
        """Answer a request through the client's sink, to its `Finished` or `Failed`; also when it
        is refused, then before this returns."""
        ...

    def leave(self, client: int, /) -> None:
        """The client goes: all of its requests are cancelled."""
        ...
