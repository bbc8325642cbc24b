"""Prompts, each from its acceptance to its answer.

::

                        ┌────worker lost────┐
    ACCEPTING ─durable─► WAITING ─forwarded─► RUNNING ──► ENDED
        └────refused────────┴──failed, cancelled──────────▲

A turn waits in the router for the turns before it in its session, for the model and for its
worker. It ends by the worker's answer; its row in the journal is final before anyone hears of it.
All who sent the same prompt id get the answer. One that no worker had begun when the daemon
stopped is taken up by the next daemon, where it begins WAITING.

A turn whose worker process ends goes on in the next one, `MAX_RESUMES` times: it keeps its place in
the session and its model, the session is opened with what the journal has of it, and the prompt is
sent again with `Resume`. One that is cancelled, and one that the daemon's end interrupts, does not;
nor one that has used its attempts up: it may be what kills the worker.
"""

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw

from punie_protocol import jsonrpc
from punie_protocol.client import (
    PromptMeta,
    ResultMeta,
    Resume,
)
from punie_protocol.errors import (
    Internal,
    InvalidRequest,
    Overloaded,
    ProcessLost,
    PunieError,
    WireError,
)
from punie_protocol.jsonrpc import Envelope, RpcId
from punie_protocol.messages.common import Timings, Usage
from punie_supervisor import acp, logs, router, telling
from punie_supervisor import journal_ops as ops
from punie_supervisor.journal import Journal, fault_of
from punie_supervisor.journal_ops import PromptState
from punie_supervisor.models import Models
from punie_supervisor.registry import Registry, Session
from punie_supervisor.telling import Outbox
from punie_supervisor.turn import MAX_RESUMES, Pending, Phase, Turn, error_raw, with_fault
from punie_supervisor.worker import Worker
from punie_supervisor.workers import WorkerPool

MAX_SESSION_TURNS: Final = 16
"""Prompts of one session under way; further ones are refused."""
MAX_PROMPT_ID: Final = 200


class Turns:
    """Every turn under way."""

    def __init__(
        self,
        journal: Journal,
        registry: Registry,
        models: Models,
        workers: WorkerPool[Pending],
        routes: router.Router,
        outbox: Outbox,
    ) -> None:
        self._journal = journal
        self._registry = registry
        self._models = models
        self._workers = workers
        self._routes = routes
        self._outbox = outbox
        self._turns: dict[str, Turn] = {}

    def prompt(self, request: router.Prompt) -> Coroutine[Any, Any, object]:
        """Take a prompt at once, so that a cancel right behind it finds it; return the work on it,
        which ends when it is answered. Raises `PunieError` when another session has its id, or its
        model can be no model."""
        waiter = (request.connection, request.id)
        meta = request.params.punie
        self._models.check(meta.model)
        prompt_id = meta.prompt_id if meta.prompt_id is not None else uuid.uuid4().hex
        session_id = request.params.session_id
        if turn := self._turns.get(prompt_id):
            if turn.session_id != session_id:
                raise PunieError(_elsewhere(prompt_id))
            turn.waiters.append(waiter)
            if turn.phase is not Phase.ACCEPTING:
                telling.accepted(self._outbox, turn, [waiter])
            return turn.ended.wait()
        params = acp.from_a_client(request.raw, meta)
        turn = self._turns[prompt_id] = Turn(prompt_id, session_id, meta.model, params)
        turn.waiters.append(waiter)
        return self._see_through(turn)

    async def resume(self, accepted: ops.AcceptedPrompt) -> None:
        """Work on a prompt that an earlier daemon accepted and no worker has begun."""
        params = Raw(accepted.body)
        model = acp.params(params, acp.Prompt).punie.model
        turn = Turn(accepted.id, accepted.session_id, model, params)
        turn.become(Phase.WAITING)
        self._turns[accepted.id] = turn
        await self._see_through(turn)

    async def _see_through(self, turn: Turn) -> None:
        try:
            await self._run_or_fail(turn, self._run)
            while await turn.lost_or_ended():
                await self._run_or_fail(turn, self._run_again)
        finally:
            turn.left = True
            if turn.preparation is not None:
                turn.preparation.cancel()
            turn.held.close()

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
        if turn := self.of_session(session_id):
            self._spoil(turn, error)

    async def answered(self, turn: Turn, envelope: Envelope) -> None:
        """The worker answered: journal it, then answer everyone who waits."""
        if turn.worker is not None:
            self._workers.turn_ended(turn.worker)
        if turn.fault is not None:
            await self._end(turn, PromptState.FAILED, None, error_raw(turn.fault))
        elif envelope.result is not UNSET:
            await self._end(turn, PromptState.DONE, envelope.result, None)
        elif envelope.error is not UNSET:
            error = self._explained(turn, envelope.error)
            await self._end(turn, PromptState.FAILED, None, error)
        else:
            fault = Internal(message="the worker's answer has neither result nor error")
            await self._end(turn, PromptState.FAILED, None, error_raw(fault))

    def _explained(self, turn: Turn, error: Raw) -> Raw:
        """Return a worker's error with what is known of a server that we started for it."""
        if turn.backend is None:
            return error
        return with_fault(error, partial(self._models.servers.explained, turn.backend))

    async def lost(self, turn: Turn, error: ProcessLost) -> None:
        """Its worker ended: it goes on with another, or ends with that error; a cancelled one ends
        as cancelled, that is what was asked for."""
        if turn.may_resume(error):
            turn.resume()
        elif turn.cancelled and turn.fault is None:
            await self._end_cancelled(turn, await self._registry.session(turn.session_id))
        else:
            if turn.resumes:
                text = f"{error.message}; this prompt lost {turn.resumes + 1} workers"
                error = msgspec.structs.replace(error, message=text)
            await self._end(turn, PromptState.INTERRUPTED, None, error_raw(error))

    async def _run_or_fail(
        self, turn: Turn, run: Callable[[Turn], Coroutine[Any, Any, None]]
    ) -> None:
        try:
            await run(turn)
        except PunieError as error:
            if turn.phase is Phase.WAITING and turn.may_resume(error.error):
                turn.resume()
            else:
                await self._fail(turn, error.error)
        except Exception as error:  # noqa: BLE001 - a defect ends one prompt, and is logged
            logs.get(prompt=turn.prompt_id).exception("prompt.defect")
            await self._fail(turn, Internal(message=f"defect: {error!r}", hint="see: punie logs"))

    async def _run(self, turn: Turn) -> None:
        if not 0 < len(turn.prompt_id) <= MAX_PROMPT_ID:
            text = f"promptId must have 1 to {MAX_PROMPT_ID} characters"
            raise PunieError(InvalidRequest(message=text))
        session = await self._registry.session(turn.session_id)
        if turn.phase is Phase.ACCEPTING and session.turns >= MAX_SESSION_TURNS:
            text = f"session {session.id} has {session.turns} prompts under way already"
            raise PunieError(Overloaded(message=text, hint="wait for one of them to end"))
        turn.held.enter_context(session.counted())
        if turn.phase is Phase.ACCEPTING and not await self._accept(turn, session):
            return
        await self._start(turn, session, self._prepare)

    async def _run_again(self, turn: Turn) -> None:
        session = await self._registry.session(turn.session_id)
        log = logs.get(session=session.id, prompt=turn.prompt_id)
        log.warning("prompt.resumed", attempt=turn.resumes)
        turn.last_progress = 0.0
        text = f"the worker was lost: going on in another ({turn.resumes} of {MAX_RESUMES})"
        telling.progress(self._outbox, turn, text, 0, 0)
        await self._start(turn, session, self._prepare_again)

    async def _start(
        self,
        turn: Turn,
        session: Session,
        prepare: Callable[[Turn, Session], Coroutine[Any, Any, Worker[Pending]]],
    ) -> None:
        if not turn.cancelled:
            turn.preparation = asyncio.create_task(prepare(turn, session))
            await asyncio.wait([turn.preparation])
        if turn.fault is not None:
            raise PunieError(turn.fault)
        if turn.cancelled or turn.preparation is None:
            await self._end_cancelled(turn, session)
        else:
            self._forward(turn, session, turn.preparation.result())

    async def _accept(self, turn: Turn, session: Session) -> bool:
        """Make it durable; return false when its id was known and it is answered."""
        known = await self._journal.run(
            ops.accept_prompt,
            turn.prompt_id,
            session.id,
            bytes(turn.params),
            acp.title(turn.params),
        )
        if known is not None:
            self._replay(turn, known)
            return False
        turn.become(Phase.WAITING)
        logs.get(session=session.id, prompt=turn.prompt_id).info("prompt.accepted", ms=turn.ms)
        telling.accepted(self._outbox, turn, turn.waiters)
        return True

    async def _prepare(self, turn: Turn, session: Session) -> Worker[Pending]:
        await session.order.acquire()
        turn.held.callback(session.order.release)
        await self._obtain_model(turn)
        return await self._place(turn, session)

    async def _prepare_again(self, turn: Turn, session: Session) -> Worker[Pending]:
        if turn.backend is not None:
            await self._obtain_model(turn)  # it may have been lost too; our host's is still held
        worker = await self._place(turn, session)
        begun = await self._journal.run(ops.begun_prompt, turn.prompt_id)
        turn.params, turn.stored = Raw(begun.body), begun.stored
        return worker

    async def _obtain_model(self, turn: Turn) -> None:
        turn.backend = await self._models.obtain(
            turn.model,
            lambda text, done, total: telling.progress(self._outbox, turn, text, done, total),
            turn.held,
        )

    async def _place(self, turn: Turn, session: Session) -> Worker[Pending]:
        if not self._workers.is_ready(session.project):
            telling.progress(self._outbox, turn, "starting worker", 0, 0)
        worker = await self._workers.place(session.project)
        if session.id not in worker.sessions:
            if elsewhere := self._workers.of_session(session.id):
                elsewhere.close_session(session.id, "it goes on in another worker")
            state = await self._journal.run(ops.session_state, session.id)
            await worker.open_session(session.id, session.project.id, state)
        await self._mark_running(turn)
        return worker

    async def _mark_running(self, turn: Turn) -> None:
        # Not waited for: whatever the worker stores comes behind it in the journal. But a prompt
        # that stays "accepted" there would run again after a restart, so it must not go on.
        def check(marked: asyncio.Future[None]) -> None:
            if fault := fault_of(marked):
                self._spoil(turn, fault)

        marked = await self._journal.submit(ops.mark_running, turn.prompt_id)
        marked.add_done_callback(check)

    def _forward(self, turn: Turn, session: Session, worker: Worker[Pending]) -> None:
        # Nothing is awaited between the look at `cancelled` and RUNNING: no cancel gets lost.
        resume = Resume(attempt=turn.resumes, stored=turn.stored) if turn.begun else None
        turn.queue_ms = turn.queue_ms or turn.ms
        meta = PromptMeta(
            prompt_id=turn.prompt_id, queue_ms=turn.queue_ms, backend=turn.backend, resume=resume
        )
        params = acp.with_punie(turn.params, meta)
        turn.params = Raw(b"")  # up to 8 MB, and the journal has it
        turn.request_id = worker.request(session.id, acp.SESSION_PROMPT, params, turn)
        self._workers.turn_began(worker)
        turn.worker, turn.begun = worker, True
        turn.become(Phase.RUNNING)

    def _spoil(self, turn: Turn, error: WireError) -> None:
        if turn.fault is None:
            turn.fault = error
            self._cancel(turn)

    def _cancel(self, turn: Turn) -> None:
        turn.cancelled = True
        if turn.phase is Phase.WAITING and turn.preparation is not None:
            turn.preparation.cancel()
        elif turn.phase is Phase.RUNNING and turn.worker is not None:
            body = jsonrpc.notification(acp.CANCEL_REQUEST, {"requestId": turn.request_id})
            turn.worker.tell(turn.session_id, body)

    async def _end_cancelled(self, turn: Turn, session: Session) -> None:
        meta = ResultMeta(
            prompt_id=turn.prompt_id,
            model=turn.model or self._models.name,
            isolation=session.project.level,
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
            self._conclude(turn, None, error_raw(error))
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
            self._outbox.deliver(self._routes.turn_ended(turn.session_id))
            if fault := fault_of(stored):
                log.error("prompt.not_stored", reason=fault.message)
                self._conclude(turn, None, error_raw(fault))
            else:
                log.info("prompt.done", state=state.value, stop_reason=reason, ms=turn.ms)
                self._conclude(turn, result, error)

        stored = await self._journal.submit(
            ops.finish_prompt,
            turn.prompt_id,
            state,
            reason,
            None if result is None else bytes(result),
            None if error is None else bytes(error),
        )
        stored.add_done_callback(durable)

    def _replay(self, turn: Turn, row: ops.PromptRow) -> None:
        turn.become(Phase.ENDED)
        if row.session_id != turn.session_id:
            self._conclude(turn, None, error_raw(_elsewhere(turn.prompt_id)))
        elif row.state in ops.OPEN:
            text = f"the outcome of prompt {turn.prompt_id} could not be stored"
            fault = Internal(message=text, hint="send it again with another promptId")
            self._conclude(turn, None, error_raw(fault))
        else:
            telling.accepted(self._outbox, turn, turn.waiters)
            response, error = row.response, row.error
            self._conclude(
                turn,
                Raw(response) if response is not None else None,
                Raw(error) if error is not None else None,
            )

    def _conclude(self, turn: Turn, result: Raw | None, error: Raw | None) -> None:
        # Forgotten before it is answered: its id, sent again from now on, is the journal's matter.
        del self._turns[turn.prompt_id]
        telling.answer(self._outbox, turn.waiters, result, error)
        turn.end()


def _elsewhere(prompt_id: str) -> InvalidRequest:
    return InvalidRequest(message=f"prompt {prompt_id} belongs to another session")
