"""The router's shell: carries out its instructions with connections, journal and children."""

import asyncio
import itertools
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, Final, assert_never

from msgspec import UNSET

from punie_protocol import jsonrpc
from punie_protocol.client import IsolateReport, SessionMeta
from punie_protocol.errors import (
    Internal,
    Overloaded,
    ProcessLost,
    PunieError,
    TimedOut,
)
from punie_protocol.jsonrpc import Envelope, RpcId
from punie_protocol.messages.common import Isolation
from punie_protocol.messages.to_supervisor import (
    AgentMessage,
    EffectFinished,
    EffectStarted,
    StoreDelta,
    StoreGrant,
    StoreTrust,
)
from punie_supervisor import acp, logs, router, telling
from punie_supervisor import journal_ops as ops
from punie_supervisor.connection import MAX_REQUESTS, Connection
from punie_supervisor.journal import Journal, fault_of
from punie_supervisor.models import Models
from punie_supervisor.registry import Project, Registry
from punie_supervisor.requests import Requests
from punie_supervisor.status import Reporter
from punie_supervisor.stores import Stores
from punie_supervisor.tasks import Tasks
from punie_supervisor.turn import Opening, Pending, Turn
from punie_supervisor.turns import Turns
from punie_supervisor.worker import Worker
from punie_supervisor.workers import FromWorker, WorkerPool

OPENING_TIMEOUT: Final = 60.0
"""Seconds a worker may take to answer ``session/new``."""


class Switchboard:
    """Joins clients and children. `connect` makes the parts that need it as their outbox."""

    def __init__(
        self,
        journal: Journal,
        registry: Registry,
        routes: router.Router,
        *,
        shut_down: Callable[[str], None],
    ) -> None:
        self._journal = journal
        self._registry = registry
        self._routes = routes
        self._shut_down = shut_down
        self._stores = Stores(journal, registry)
        self._connections: dict[int, Connection] = {}
        self._numbers = itertools.count(1)
        self._workers: WorkerPool[Pending]
        self._turns: Turns
        self._requests: Requests
        self._reporter: Reporter
        self.tasks = Tasks()

    def connect(
        self,
        workers: WorkerPool[Pending],
        models: Models,
        reporter: Reporter,
        requests: Requests,
    ) -> None:
        """Give it the children, before the first client."""
        self._workers = workers
        self._reporter = reporter
        self._requests = requests
        self._turns = Turns(self._journal, self._registry, models, workers, self._routes, self)

    def resume(self, accepted: list[ops.AcceptedPrompt]) -> None:
        """Run the prompts that an earlier daemon accepted, in that order, with nobody attached."""
        for prompt in accepted:
            self.tasks.start(self._turns.resume(prompt), name=f"prompt {prompt.id}")

    # clients

    def number(self) -> int:
        """Return the number of the next connection."""
        return next(self._numbers)

    def joined(self, connection: Connection) -> None:
        """A client came."""
        self._connections[connection.number] = connection

    def left(self, connection: Connection) -> None:
        """A client went; its turns go on."""
        del self._connections[connection.number]
        connection.left()
        self._requests.withdraw(connection.number)
        self._routes.gone(connection.number, time.monotonic())

    async def flush(self) -> None:
        """Wait until every client has what it is owed."""
        await asyncio.gather(*(connection.flush() for connection in self._connections.values()))

    def from_client(self, connection: Connection, body: str | bytes) -> None:
        """Work on a client's message."""
        for instruction in self._routes.from_client(connection.number, body):
            self._do(connection, instruction)

    def _do(  # noqa: C901 (one case an instruction)
        self, connection: Connection, instruction: router.Instruction
    ) -> None:
        match instruction:
            case router.Send() | router.ToAgent():
                self.deliver([instruction])
            case router.Ignored(reason=reason):
                connection.ignored(reason)
            case router.Prompt():
                self._begin(connection, instruction.id, self._turns.prompt, instruction)
            case router.NewSession():
                self._begin(connection, instruction.id, self._new_session, instruction)
            case router.ListSessions(id=id):
                self._answer(connection, id, self._requests.list_sessions, instruction)
            case router.SetMode(id=id):
                self._answer(connection, id, self._requests.set_mode, instruction)
            case router.Unconfined(id=id):
                self._answer(connection, id, self._requests.set_unconfined, instruction)
            case router.Trust(id=id):
                self._answer(connection, id, self._requests.trust, instruction)
            case router.Perf(id=id):
                self._answer(connection, id, self._requests.perf, instruction)
            case router.DescribePrompt(id=id):
                self._answer(connection, id, self._requests.describe_prompt, instruction)
            case router.Commands(id=id):
                self._answer(connection, id, self._requests.commands, instruction)
            case router.Serve(id=id):
                self._answer(connection, id, self._requests.serve, instruction)
            case router.Use(id=id):
                self._begin(connection, id, self._use, connection, instruction)
            case router.Isolate(id=id):
                self._answer(connection, id, self._isolate, instruction)
            case router.Report(id=id):
                self._answer(connection, id, self._reporter.report)
            case router.ShutDown(id=id):
                connection.send(jsonrpc.response(id, {}))
                self._shut_down("a client asked for it")
            case router.CancelSession(session_id=session_id):
                self._turns.cancel_session(session_id)
            case router.CancelRequest(connection=number, id=id):
                self._turns.cancel_request(number, id)
                self._requests.withdraw(number, id)
            case router.StoreUpdate() | router.AgentReply():
                raise AssertionError(instruction)  # these come from agents
            case _:
                assert_never(instruction)

    def _begin[**P](
        self,
        connection: Connection,
        id: RpcId,
        work: Callable[P, Coroutine[Any, Any, object]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        if connection.requests >= MAX_REQUESTS:
            text = f"{MAX_REQUESTS} requests of this connection are under way"
            connection.send(jsonrpc.failure(id, Overloaded(message=text)))
            return
        try:
            begun = work(*args, **kwargs)
        except PunieError as error:
            connection.send(jsonrpc.failure(id, error.error))
            return
        connection.requests += 1
        self.tasks.start(self._guard(connection, id, begun), name=f"request {str(id)[:80]}")

    def _answer[**P](
        self,
        connection: Connection,
        id: RpcId,
        work: Callable[P, Coroutine[Any, Any, object]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """`_begin` work whose result is the answer."""

        async def answer() -> None:
            connection.send(jsonrpc.response(id, await work(*args, **kwargs)))

        self._begin(connection, id, answer)

    async def _guard(
        self, connection: Connection, id: RpcId, work: Coroutine[Any, Any, object]
    ) -> None:
        try:
            await work
        except PunieError as error:
            connection.send(jsonrpc.failure(id, error.error))
        except Exception as error:  # noqa: BLE001 - a defect ends one request, and is logged
            logs.get(connection=connection.number).exception("request.defect")
            fault = Internal(message=f"defect: {error!r}", hint="see: punie logs")
            connection.send(jsonrpc.failure(id, fault))
        finally:
            connection.requests -= 1

    # what clients are sent

    def deliver(self, deliveries: list[router.Delivery]) -> None:
        """Send now, without waiting; who is gone gets nothing."""
        for delivery in deliveries:
            match delivery:
                case router.Send(connection=number, body=body):
                    if connection := self._connections.get(number):
                        connection.send(body)
                case router.ToAgent(worker=number, session_id=session_id, body=body):
                    if worker := self._workers.by_number(number):
                        worker.tell(session_id, body)
                    else:
                        logs.get(session=session_id).info("message.ignored", reason="worker gone")
                case _:
                    assert_never(delivery)

    def attach(self, connection: int, session_id: str) -> None:
        """Attach a connection to a session, if it is still there."""
        if connection in self._connections:
            self.deliver(self._routes.attach(connection, session_id))

    def tick(self) -> None:
        """Look at the clock, about every second."""
        self.deliver(self._routes.tick(time.monotonic()))
        self._workers.tick()

    # requests

    def _use(self, connection: Connection, request: router.Use) -> Coroutine[Any, Any, None]:
        begun = self._requests.use(request, telling.Teller(self, connection.number))

        async def answer() -> None:
            connection.send(jsonrpc.response(request.id, await begun))

        return answer()

    async def _isolate(self, request: router.Isolate) -> IsolateReport:
        project = await self._registry.project(request.params.cwd)
        before, confined = project.isolation, project.confined
        await self._move(project, request.params.isolation)
        return IsolateReport(
            root=project.root, isolation=project.isolation, before=before, confined=confined
        )

    async def _new_session(self, request: router.NewSession) -> None:
        started = time.monotonic()
        project = await self._registry.project(request.params.cwd)
        level = request.params.punie.isolation
        if level is not None and level is not project.isolation:
            await self._move(project, level)
        session_id = uuid.uuid4().hex
        mode = request.params.punie.mode
        await self._journal.run(ops.create_session, session_id, project.id, mode)
        with project.counted():
            try:
                await self._open(request, project, session_id)
            except BaseException:
                self._registry.forget(session_id)
                await self._journal.submit(ops.remove_session, session_id)
                raise
        ms = round((time.monotonic() - started) * 1000)
        logs.get(session=session_id).info("session.created", root=project.root, ms=ms)

    async def _open(self, request: router.NewSession, project: Project, session_id: str) -> None:
        worker = await self._workers.place(project)
        state = ops.SessionState(mode=request.params.punie.mode)
        await worker.open_session(session_id, project.id, state)
        opening = Opening(session_id, request.connection, request.id)
        params = acp.with_punie(request.raw, SessionMeta(session_id=session_id))
        id = worker.request(session_id, acp.SESSION_NEW, params, opening)
        try:
            async with asyncio.timeout(OPENING_TIMEOUT):
                made = await opening.over
        except TimeoutError:
            worker.pending.pop(id, None)  # from a session that is closed no answer is heard
            worker.close_session(session_id, "it did not open in time")
            text = f"the worker did not answer session/new within {OPENING_TIMEOUT:g} s"
            raise PunieError(TimedOut(message=text, limit_s=OPENING_TIMEOUT)) from None
        if not made:
            worker.close_session(session_id, "session/new failed")
            self._registry.forget(session_id)
            await self._journal.run(ops.remove_session, session_id)

    async def _move(self, project: Project, level: Isolation) -> None:
        placed = self._workers.placement.of(project.id)
        await self._registry.set_isolation(project, level)
        if placed is not None and placed.isolation is not project.level:
            self._workers.leave(project, placed, f"it moved to level {level.value}")

    # workers

    async def from_worker(self, worker: Worker[Pending], message: FromWorker) -> None:
        """Work on a worker's message, in order; waits while the journal is behind."""
        if isinstance(message, StoreTrust):
            if worker.has(message.project_id):
                await self._stores.store(worker, message)
            return
        if message.session_id not in worker.sessions:
            logs.get(child=worker.id).info("message.ignored", reason="its session is closed there")
            return
        match message:
            case AgentMessage(session_id=session_id, body=body):
                now = time.monotonic()
                for instruction in self._routes.from_agent(worker.number, session_id, body, now):
                    await self._do_for_agent(worker, instruction)
            case StoreDelta() | StoreGrant() | EffectStarted() | EffectFinished():
                await self._stores.store(worker, message)
            case _:
                assert_never(message)

    async def worker_gone(
        self, worker: Worker[Pending], pending: list[Pending], error: ProcessLost
    ) -> None:
        """End what a dead worker owed, after what it had said."""
        withdrawn = self._routes.worker_gone(worker.number)
        flushed = await self._journal.submit(ops.barrier)
        flushed.add_done_callback(lambda _: self.deliver(withdrawn))
        for one in pending:
            match one:
                case Turn():
                    await self._turns.lost(one, error)
                case Opening():
                    if not one.over.done():
                        one.over.set_exception(PunieError(error))
                case _:
                    assert_never(one)

    async def _do_for_agent(self, worker: Worker[Pending], instruction: router.Instruction) -> None:
        match instruction:
            case router.Send() | router.ToAgent():
                # behind the updates that the journal still has
                flushed = await self._journal.submit(ops.barrier)
                flushed.add_done_callback(lambda _: self.deliver([instruction]))
            case router.StoreUpdate(session_id=session_id, body=body):
                turn = self._turns.of_session(session_id)
                stored = await self._journal.submit(
                    ops.append_update, session_id, turn.prompt_id if turn else None, body
                )
                stored.add_done_callback(lambda done: self._publish(instruction, done))
            case router.AgentReply(id=id, envelope=envelope):
                await self._replied(worker, id, envelope)
            case _:
                raise AssertionError(instruction)  # the others come from clients

    def _publish(self, update: router.StoreUpdate, stored: asyncio.Future[int]) -> None:
        if error := fault_of(stored):
            logs.get(session=update.session_id).error("update.not_stored", reason=error.message)
            self._turns.spoil(update.session_id, error)
            return
        try:
            deliveries = self._routes.update(update.session_id, update.params, stored.result())
        except PunieError as error:
            logs.get(session=update.session_id).error("update.malformed", reason=str(error))
            self._turns.spoil(update.session_id, error.error)
            return
        self.deliver(deliveries)

    async def _replied(self, worker: Worker[Pending], id: int, envelope: Envelope) -> None:
        match worker.pending.pop(id, None):
            case None:
                logs.get(child=worker.id).info("message.ignored", reason=f"answer to {id}")
            case Turn() as turn:
                await self._turns.answered(turn, envelope)
            case Opening() as opening:
                flushed = await self._journal.submit(ops.barrier)
                flushed.add_done_callback(lambda _: self._opened(opening, envelope))
            case other:
                assert_never(other)

    def _opened(self, opening: Opening, envelope: Envelope) -> None:
        if opening.over.done():
            return
        made = envelope.result is not UNSET
        envelope.id = opening.id
        self.deliver([router.Send(opening.connection, jsonrpc.encode(envelope))])
        if made:
            self.attach(opening.connection, opening.session_id)
        opening.over.set_result(made)
