"""One prompt under way, and one session being opened: what waits for a worker's answer."""

import asyncio
import contextlib
import time
from enum import StrEnum
from typing import Final

import msgspec
from msgspec import Raw

from punie_protocol import jsonrpc
from punie_protocol.errors import WireError
from punie_protocol.jsonrpc import RpcError, RpcErrorData, RpcId
from punie_supervisor.workers import Worker


class Phase(StrEnum):
    """Where a turn is."""

    ACCEPTING = "accepting"
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


_TRANSITIONS: Final = {
    Phase.ACCEPTING: {Phase.WAITING, Phase.ENDED},
    Phase.WAITING: {Phase.RUNNING, Phase.ENDED},
    Phase.RUNNING: {Phase.ENDED},
    Phase.ENDED: set(),
}


class Turn:
    """One prompt under way. `waiters` are the connections and request ids to answer, `held` gives
    back what it took: its place in the session, the model. `request_id` is its worker's."""

    def __init__(self, prompt_id: str, session_id: str, model: str | None, params: Raw) -> None:
        self.prompt_id = prompt_id
        self.session_id = session_id
        self.model = model
        self.params = params
        self.phase = Phase.ACCEPTING
        self.waiters: list[tuple[int, RpcId]] = []
        self.worker: Worker[Pending] | None = None
        self.request_id = 0
        self.fault: WireError | None = None
        self.cancelled = False
        self.held = contextlib.ExitStack()
        self.preparation: asyncio.Task[Worker[Pending]] | None = None
        self.ended = asyncio.Event()
        self.started = time.monotonic()
        self.last_progress = 0.0

    def become(self, phase: Phase) -> None:
        """Change phase; an edge that the table lacks is a defect."""
        assert phase in _TRANSITIONS[self.phase], (self.prompt_id, self.phase, phase)
        self.phase = phase

    @property
    def ms(self) -> float:
        """Milliseconds since it came."""
        return round((time.monotonic() - self.started) * 1000, 1)

    @property
    def connections(self) -> list[int]:
        """Who waits for it, each once."""
        return sorted({connection for connection, _ in self.waiters})


class Opening:
    """A ``session/new`` that its worker has not answered yet."""

    def __init__(self, session_id: str, connection: int, id: RpcId) -> None:
        self.session_id = session_id
        self.connection = connection
        self.id = id
        self.over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()


type Pending = Turn | Opening


def error_raw(error: WireError) -> Raw:
    """Return a JSON-RPC error object that carries `error` whole."""
    body = RpcError(code=jsonrpc.PUNIE_ERROR, message=error.message, data=RpcErrorData(punie=error))
    return Raw(msgspec.json.encode(body))
