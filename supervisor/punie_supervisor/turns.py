"""Prompts, each from its acceptance to its answer.

::

    ACCEPTING ─durable─► WAITING ─forwarded─► RUNNING ──► ENDED
        └────refused────────┴──failed, cancelled──────────▲

A turn waits in the router for the turns before it in its session, for the model and for its
worker. It ends by the worker's answer or the worker's end; its row in the journal is final before
anyone hears of it. All who sent the same prompt id get the answer.
"""

import asyncio
import time
import uuid
from typing import Final, Protocol

from msgspec import UNSET, Raw, UnsetType

from punie_protocol import jsonrpc
from punie_protocol.client import (
    ACCEPTED,
    PROGRESS,
    Accepted,
    Progress,
    PromptMeta,
    ResultMeta,
)
from punie_protocol.errors import (
    Internal,
    InvalidRequest,
    Overloaded,
    PunieError,
    WireError,
)
from punie_protocol.jsonrpc import Envelope, RpcId
from punie_protocol.messages.common import Timings, Usage
from punie_supervisor import acp, logs, router
from punie_supervisor import journal_ops as ops
from punie_supervisor.journal import Journal
from punie_supervisor.journal_ops import PromptState
from punie_supervisor.model import ModelHost
from punie_supervisor.registry import Registry, Session
from punie_supervisor.turn import Pending, Phase, Turn, error_raw
from punie_supervisor.workers import Worker, WorkerPool

MAX_SESSION_TURNS: Final = 16
"""Prompts of one session under way; further ones are refused."""
MAX_PROMPT_ID: Final = 200
PROGRESS_EVERY: Final = 0.25
"""Seconds between two progress notifications of a prompt, at least."""


class Outbox(Protocol):
    """Where deliveries go: the switchboard."""

    def deliver(self, deliveries: list[router.Delivery]) -> None:
        """Send now, without waiting."""
        ...

    def attach(self, connection: int, session_id: str) -> None:
        """Attach a connection, if it is still there."""
        ...


class Turns:
    """Every turn under way."""

    def __init__(
        self,
        journal: Journal,
        registry: Registry,
        model: ModelHost,
        workers: WorkerPool[Pending],
        routes: router.Router,
        outbox: Outbox,
    ) -> None:
        self._journal = journal
        self._registry = registry
        self._model = model
        self._workers = workers
        self._routes = routes
        self._outbox = outbox
        self._turns: dict[str, Turn] = {}

    async def prompt(self, request: router.Prompt) -> None:
        """Work on a prompt until it is answered; never raises but for cancellation."""
        waiter = (request.connection, request.id)
        meta = request.params.punie
        prompt_id = meta.prompt_id if meta.prompt_id is not None else uuid.uuid4().hex
        session_id = request.params.session_id
        if running := self._turns.get(prompt_id):
            await self._join(running, session_id, waiter)
            return
        turn = self._turns[prompt_id] = Turn(prompt_id, session_id, meta.model, request.raw)
        turn.waiters.append(waiter)
        try:
            await self._run(turn)
        except PunieError as error:
            await self._fail(turn, error.error)
        except Exception as error:  # noqa: BLE001 - a defect ends one prompt, and is logged
            logs.get(prompt=prompt_id).exception("prompt.defect")
            await self._fail(turn, Internal(message=f"defect: {error!r}", hint="see: punie logs"))
        finally:
            self._forget(turn)

    def of_session(self, session_id: str) -> Turn | None:
        """Return the turn that a worker runs for the session."""
        return next(
            (
                turn
                for turn in self._turns.values()
                if turn.phase is Phase.RUNNING and turn.session_id == session_id
            ),
            None,
        )

    def cancel_session(self, session_id: str) -> None:
        """Cancel every prompt of a session."""
        for turn in list(self._turns.values()):
            if turn.session_id == session_id:
                self._cancel(turn)

    def cancel_request(self, connection: int, id: RpcId) -> None:
        """Cancel the prompt that this request waits for; any other id is ignored."""
        for turn in list(self._turns.values()):
            if (connection, id) in turn.waiters:
                self._cancel(turn)

    def spoil(self, session_id: str, error: WireError) -> None:
        """The running turn's updates cannot be kept: end it with that error."""
        if (turn := self.of_session(session_id)) and turn.fault is None:
            turn.fault = error
            self._cancel(turn)

    async def answered(self, turn: Turn, envelope: Envelope) -> None:
        """The worker answered: journal it, then answer everyone who waits."""
        if turn.fault is not None:
            await self._end(turn, PromptState.FAILED, None, error_raw(turn.fault))
        elif envelope.result is not UNSET:
            await self._end(turn, PromptState.DONE, envelope.result, None)
        elif envelope.error is not UNSET:
            await self._end(turn, PromptState.FAILED, None, envelope.error)
        else:
            fault = Internal(message="the worker's answer has neither result nor error")
            await self._end(turn, PromptState.FAILED, None, error_raw(fault))

    async def lost(self, turn: Turn, error: WireError) -> None:
        """Its worker ended."""
        await self._end(turn, PromptState.INTERRUPTED, None, error_raw(error))

    async def _join(self, turn: Turn, session_id: str, waiter: tuple[int, RpcId]) -> None:
        if turn.session_id != session_id:
            self._answer([waiter], None, error_raw(_elsewhere(turn.prompt_id)))
            return
        turn.waiters.append(waiter)
        if turn.phase is not Phase.ACCEPTING:
            self._say_accepted(turn, [waiter])
        await turn.ended.wait()

    async def _run(self, turn: Turn) -> None:
        if not 0 < len(turn.prompt_id) <= MAX_PROMPT_ID:
            text = f"promptId must have 1 to {MAX_PROMPT_ID} characters"
            raise PunieError(InvalidRequest(message=text))
        session = await self._registry.session(turn.session_id)
        known = await self._accept(turn, session)
        if known is not None:
            self._replay(turn, session, known)
            return
        turn.become(Phase.WAITING)
        logs.get(session=session.id, prompt=turn.prompt_id).info("prompt.accepted", ms=turn.ms)
        self._say_accepted(turn, turn.waiters)
        if not turn.cancelled:
            turn.preparation = asyncio.create_task(self._prepare(turn, session))
            await asyncio.wait([turn.preparation])
        if turn.cancelled or turn.preparation is None:
            await self._end_cancelled(turn, session)
        else:
            await self._forward(turn, session, turn.preparation.result())
        await turn.ended.wait()

    async def _accept(self, turn: Turn, session: Session) -> ops.PromptRow | None:
        if session.turns >= MAX_SESSION_TURNS:
            text = f"session {session.id} has {session.turns} prompts under way already"
            raise PunieError(Overloaded(message=text, hint="wait for one of them to end"))
        turn.session = session
        session.turns += 1
        session.project.turns += 1
        return await self._journal.run(
            ops.accept_prompt,
            turn.prompt_id,
            session.id,
            bytes(turn.params),
            acp.title(turn.params),
        )

    async def _prepare(self, turn: Turn, session: Session) -> Worker[Pending]:
        await session.order.acquire()
        turn.holds_order = True
        await self._model.usable(
            turn.model, lambda text, done, total: self._progress(turn, text, done, total)
        )
        if not self._workers.is_ready(session.project.worker_id):
            self._progress(turn, "starting worker", 0, 0)
        worker = await self._workers.place(session.project)
        if session.id not in worker.sessions:
            deltas = await self._journal.run(ops.deltas, session.id)
            worker.open_session(session.id, session.project.id, deltas)
        return worker

    async def _forward(self, turn: Turn, session: Session, worker: Worker[Pending]) -> None:
        await self._journal.submit(ops.mark_running, turn.prompt_id)
        turn.worker = worker
        turn.become(Phase.RUNNING)
        meta = PromptMeta(prompt_id=turn.prompt_id, queue_ms=turn.ms)
        params = acp.with_punie(turn.params, meta)
        turn.params = Raw(b"")  # up to 8 MB, and the journal has it
        worker.request(session.id, acp.SESSION_PROMPT, params, turn)

    def _cancel(self, turn: Turn) -> None:
        turn.cancelled = True
        if turn.phase is Phase.WAITING and turn.preparation is not None:
            turn.preparation.cancel()
        elif turn.phase is Phase.RUNNING and turn.worker is not None:
            body = jsonrpc.notification(acp.SESSION_CANCEL, {"sessionId": turn.session_id})
            turn.worker.tell(turn.session_id, body)

    async def _end_cancelled(self, turn: Turn, session: Session) -> None:
        meta = ResultMeta(
            prompt_id=turn.prompt_id,
            model=self._model.name,
            isolation=session.project.isolation,
            usage=Usage(),
            timings_ms=Timings(total=turn.ms, queue=turn.ms),
        )
        result = {"stopReason": "cancelled", "_meta": {"punie": meta}}
        await self._end(turn, PromptState.DONE, jsonrpc.raw(result), None)

    async def _fail(self, turn: Turn, error: WireError) -> None:
        if turn.phase is Phase.ENDED:
            return
        if turn.phase is Phase.ACCEPTING:
            turn.become(Phase.ENDED)
            self._answer(turn.waiters, None, error_raw(error))
            return
        await self._end(turn, PromptState.FAILED, None, error_raw(error))

    async def _end(
        self, turn: Turn, state: PromptState, result: Raw | None, error: Raw | None
    ) -> None:
        if turn.phase is Phase.ENDED:
            return
        turn.become(Phase.ENDED)
        reason = acp.stop_reason(result) if result is not None else None
        log = logs.get(session=turn.session_id, prompt=turn.prompt_id)

        def durable(stored: asyncio.Future[None]) -> None:
            if not stored.cancelled() and (fault := stored.exception()):
                log.error("prompt.not_stored", reason=str(fault))
            log.info("prompt.done", state=state.value, stop_reason=reason, ms=turn.ms)
            self._outbox.deliver(self._routes.turn_ended(turn.session_id))
            self._answer(turn.waiters, result, error)
            turn.ended.set()

        stored = await self._journal.submit(
            ops.finish_prompt,
            turn.prompt_id,
            state,
            reason,
            None if result is None else bytes(result),
            None if error is None else bytes(error),
        )
        stored.add_done_callback(durable)

    def _replay(self, turn: Turn, session: Session, row: ops.PromptRow) -> None:
        turn.become(Phase.ENDED)
        if row.session_id != session.id:
            self._answer(turn.waiters, None, error_raw(_elsewhere(turn.prompt_id)))
        elif row.state in ops.OPEN:
            fault = Internal(message=f"prompt {turn.prompt_id} was lost while punie stopped")
            self._answer(turn.waiters, None, error_raw(fault))
        else:
            self._say_accepted(turn, turn.waiters)
            response, error = row.response, row.error
            self._answer(
                turn.waiters,
                Raw(response) if response is not None else None,
                Raw(error) if error is not None else None,
            )

    def _answer(
        self, waiters: list[tuple[int, RpcId]], result: Raw | None, error: Raw | None
    ) -> None:
        there: Raw | UnsetType = UNSET if result is None else result
        fault: Raw | UnsetType = UNSET if error is None else error
        self._outbox.deliver(
            [
                router.Send(to, jsonrpc.encode(Envelope(id=id, result=there, error=fault)))
                for to, id in waiters
            ]
        )

    def _say_accepted(self, turn: Turn, waiters: list[tuple[int, RpcId]]) -> None:
        id = turn.session_id
        body = jsonrpc.notification(ACCEPTED, Accepted(session_id=id, prompt_id=turn.prompt_id))
        for connection in sorted({connection for connection, _ in waiters}):
            self._outbox.attach(connection, id)
            self._outbox.deliver([router.Send(connection, body)])

    def _progress(self, turn: Turn, text: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - turn.last_progress < PROGRESS_EVERY:
            return
        turn.last_progress = now
        progress = Progress(session_id=turn.session_id, text=text, done=done, total=total)
        body = jsonrpc.notification(PROGRESS, progress)
        self._outbox.deliver([router.Send(connection, body) for connection in turn.connections])

    def _forget(self, turn: Turn) -> None:
        del self._turns[turn.prompt_id]
        turn.ended.set()
        if turn.preparation is not None:
            turn.preparation.cancel()
        if turn.session is not None:
            turn.session.turns -= 1
            turn.session.project.turns -= 1
            if turn.holds_order:
                turn.session.order.release()


def _elsewhere(prompt_id: str) -> InvalidRequest:
    return InvalidRequest(message=f"prompt {prompt_id} belongs to another session")
