"""One prompt under way, and one session being opened: what waits for a worker's answer."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Final

import msgspec
from msgspec import UNSET, Raw

from punie_protocol import jsonrpc
from punie_protocol.backends import Backend
from punie_protocol.errors import ProcessLost, WireError
from punie_protocol.jsonrpc import RpcError, RpcErrorData, RpcId
from punie_supervisor.child_spec import MODEL_HOST
from punie_supervisor.worker import Worker

MAX_RESUMES: Final = 2
"""Times a turn goes on after its worker was lost; what kills a worker each time ends then."""


class Phase(StrEnum):
    """Where a turn is."""

    ACCEPTING = "accepting"
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


_TRANSITIONS: Final = {
    Phase.ACCEPTING: {Phase.WAITING, Phase.ENDED},
    Phase.WAITING: {Phase.RUNNING, Phase.ENDED},
    Phase.RUNNING: {Phase.WAITING, Phase.ENDED},
    Phase.ENDED: set(),
}


class Turn:
    """One prompt under way. `waiters` are the connections and request ids to answer, `held` gives
    back what it took: its place in the session, the model. `request_id` is its worker's, `backend`
    the server that answers instead of the model host. `resumes` counts the workers it lost and
    went on after, `begun` says that one had it, `stored` are its deltas by then; `left` that nobody
    sees it through any more."""

    def __init__(self, prompt_id: str, session_id: str, model: str | None, params: Raw) -> None:
        self.prompt_id = prompt_id
        self.session_id = session_id
        self.model = model
        self.params = params
        self.phase = Phase.ACCEPTING
        self.waiters: list[tuple[int, RpcId]] = []
        self.worker: Worker[Pending] | None = None
        self.request_id = 0
        self.backend: Backend | None = None
        self.resumes = 0
        self.begun = False
        self.stored = 0
        self.left = False
        self.queue_ms = 0.0
        self.fault: WireError | None = None
        self.cancelled = False
        self.held = contextlib.ExitStack()
        self.preparation: asyncio.Task[Worker[Pending]] | None = None
        self.ended = asyncio.Event()
        self._news = asyncio.Event()
        self.started = time.monotonic()
        self.last_progress = 0.0

    def become(self, phase: Phase) -> None:
        """Change phase; an edge that the table lacks is a defect."""
        assert phase in _TRANSITIONS[self.phase], (self.prompt_id, self.phase, phase)
        self.phase = phase

    def may_resume(self, error: WireError) -> bool:
        """Whether it goes on after `error`: a worker was lost, and not for the last time. One that
        was given up has no pid, and there will be no other; one over a limit would be again."""
        if not isinstance(error, ProcessLost) or error.limit:
            return False
        lost = error.process != MODEL_HOST and error.pid != 0
        hindered = self.left or self.cancelled or self.fault is not None
        return lost and not hindered and self.resumes < MAX_RESUMES

    def resume(self) -> None:
        """Go on with another worker: wakes who waits in `lost_or_ended`."""
        if self.phase is Phase.RUNNING:
            self.become(Phase.WAITING)
        self.resumes += 1
        self.worker = self.preparation = None
        self._news.set()

    def end(self) -> None:
        """It is answered."""
        self.ended.set()
        self._news.set()

    async def lost_or_ended(self) -> bool:
        """Wait until it is to go on with another worker: true; or is answered: false."""
        await self._news.wait()
        self._news.clear()
        return not self.ended.is_set()

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


def with_fault(error: Raw, change: Callable[[WireError], WireError]) -> Raw:
    """Return a JSON-RPC error object with another `WireError`, if it carries one; what else it
    carries stays."""
    try:
        body = msgspec.json.decode(error, type=RpcError)
    except msgspec.MsgspecError:
        return error
    if body.data is UNSET or body.data.punie is UNSET:
        return error
    fault = change(body.data.punie)
    if fault is body.data.punie:
        return error
    data = msgspec.structs.replace(body.data, punie=fault)
    return Raw(msgspec.json.encode(RpcError(code=body.code, message=fault.message, data=data)))


def error_raw(error: WireError) -> Raw:
    """Return a JSON-RPC error object that carries `error` whole."""
    body = RpcError(code=jsonrpc.PUNIE_ERROR, message=error.message, data=RpcErrorData(punie=error))
    return Raw(msgspec.json.encode(body))
