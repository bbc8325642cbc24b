"""Worker processes: which one lives, what is open in it, what it owes an answer to."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, assert_never

from msgspec import Raw

from punie_protocol import jsonrpc
from punie_protocol.backends import Backend
from punie_protocol.client import PromptReport
from punie_protocol.errors import (
    Internal,
    InvalidRequest,
    LinkClosed,
    ProcessLost,
    ProtocolError,
    PunieError,
    RemoteError,
    TimedOut,
    WireError,
)
from punie_protocol.handshake import version
from punie_protocol.limits import PROTOCOL
from punie_protocol.messages import to_worker
from punie_protocol.messages.common import Limits, Message
from punie_protocol.messages.to_supervisor import (
    AgentMessage,
    EffectFinished,
    EffectStarted,
    Hello,
    ModelState,
    Pong,
    ProjectFailed,
    ProjectReady,
    PromptDescribed,
    Ready,
    StoreDelta,
    StoreGrant,
    StoreTrust,
    ToSupervisor,
)
from punie_protocol.permissions import Mode, PermissionSettings
from punie_supervisor.child import Child, Exit
from punie_supervisor.child_spec import ChildSpec
from punie_supervisor.journal_ops import SessionState
from punie_supervisor.keeper import Dialect, Keeper, KeeperState
from punie_supervisor.registry import Project

OPEN_TIMEOUT: Final = 30.0
"""Seconds a project half may take to start."""
DESCRIBE_TIMEOUT: Final = 30.0
"""Seconds a worker may take to say what a model is told."""

HISTORY_CHUNK: Final = 4 * 1024 * 1024
"""Bytes of deltas in one frame, if there is more than one."""

type FromSession = AgentMessage | StoreDelta | EffectStarted | EffectFinished | StoreGrant
type FromWorker = FromSession | StoreTrust


class Worker[P]:
    """One life of a worker process. `P` is what waits for the answer to a request."""

    def __init__(self, number: int, child: Child, ids: Iterator[int]) -> None:
        self.number = number
        self.id = child.spec.id
        self.pid = child.pid
        self.pending: dict[int, P] = {}
        self.sessions: dict[str, str] = {}
        self._child = child
        self._ids = ids
        self._projects: dict[str, asyncio.Future[None]] = {}
        self._describing: dict[int, asyncio.Future[PromptReport]] = {}

    def send(self, message: Message) -> None:
        """Send. Raises `PunieError` (`ProcessLost`) when it is gone."""
        try:
            self._child.link.send_nowait(message)
        except LinkClosed as error:
            raise PunieError(self.lost(error.reason)) from None

    def request(self, session_id: str, method: str, params: Raw, pending: P) -> int:
        """Send an ACP request and return its id; `pending` is taken out when the answer comes or
        the process ends. Raises like `send`."""
        id = next(self._ids)
        body = jsonrpc.request(id, method, params)
        self.send(to_worker.ClientMessage(session_id=session_id, body=body))
        self.pending[id] = pending
        return id

    def tell(self, session_id: str, body: bytes) -> None:
        """Send any other ACP message; dropped when the process is gone."""
        self.send_if_alive(to_worker.ClientMessage(session_id=session_id, body=body))

    def send_if_alive(self, message: Message) -> None:
        """Send; dropped when the process is gone or falls too far behind."""
        with contextlib.suppress(LinkClosed):
            self._child.link.send_nowait(message)

    async def open_project(self, project: Project) -> None:
        """Have the project's half running. Raises `PunieError`."""
        opened = self._projects.get(project.id)
        if opened is None:
            opened = self._projects[project.id] = asyncio.get_running_loop().create_future()
            self.send(
                to_worker.OpenProject(
                    project_id=project.id,
                    root=project.root,
                    isolation=project.isolation,
                    client_id=project.id,
                    trusted=project.trusted,
                )
            )
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                await asyncio.shield(opened)
        except TimeoutError:
            self.close_project(project.id, "it did not open in time")
            text = f"project {project.root} did not open within {OPEN_TIMEOUT:g} s"
            raise PunieError(TimedOut(message=text, limit_s=OPEN_TIMEOUT)) from None

    async def open_session(self, session_id: str, project_id: str, state: SessionState) -> None:
        """Make a session known there, with its conversation; waits while the worker is slow to
        take a long one. Raises `PunieError`; when it ends early the session is not open."""
        short = sum(map(len, state.deltas)) <= HISTORY_CHUNK
        first, chunks = (state.deltas, []) if short else ([], history_chunks(state.deltas))
        self.sessions[session_id] = project_id
        try:
            self.send(
                to_worker.OpenSession(
                    session_id=session_id,
                    project_id=project_id,
                    deltas=first,
                    mode=state.mode,
                    grants=state.grants,
                    effects=state.effects,
                )
            )
            for chunk in chunks:
                history = to_worker.SessionHistory(session_id=session_id, deltas=chunk)
                await self._child.link.send(history)
        except LinkClosed as error:
            raise PunieError(self.lost(error.reason)) from None
        except BaseException:
            self.close_session(session_id, "its history was not sent")
            raise

    def close_session(self, session_id: str, reason: str) -> None:
        """Make it forget a session."""
        if self.sessions.pop(session_id, None):
            self.send_if_alive(to_worker.CloseSession(session_id=session_id, reason=reason))

    def close_project(self, project_id: str, reason: str) -> None:
        """End the project's half and its sessions there."""
        self.sessions = {s: p for s, p in self.sessions.items() if p != project_id}
        if self._projects.pop(project_id, None):
            self.send_if_alive(to_worker.CloseProject(project_id=project_id, reason=reason))

    def set_mode(self, session_id: str, mode: Mode) -> None:
        """Tell a session's mode, if it is open here."""
        if session_id in self.sessions:
            self.send_if_alive(to_worker.SetMode(session_id=session_id, mode=mode))

    def set_trust(self, project_id: str, digest: str) -> None:
        """Tell that the user's trust has changed, if the project is here."""
        if self.has(project_id):
            self.send_if_alive(to_worker.TrustProject(project_id=project_id, trusted=digest))

    async def describe(self, project_id: str, backend: Backend | None) -> PromptReport:
        """Return what a model is told before the first prompt. Raises `PunieError`."""
        id = next(self._ids)
        answer: asyncio.Future[PromptReport] = asyncio.get_running_loop().create_future()
        self._describing[id] = answer
        try:
            self.send(
                to_worker.DescribePrompt(request_id=id, project_id=project_id, backend=backend)
            )
            async with asyncio.timeout(DESCRIBE_TIMEOUT):
                return await answer
        except TimeoutError:
            text = f"{self.id} did not describe the prompt within {DESCRIBE_TIMEOUT:g} s"
            raise PunieError(TimedOut(message=text, limit_s=DESCRIBE_TIMEOUT)) from None
        finally:
            del self._describing[id]

    def described(self, message: PromptDescribed) -> None:
        """It answered `DescribePrompt`; an answer that nobody waits for is dropped."""
        answer = self._describing.get(message.request_id)
        if answer is None or answer.done():
            return
        if message.report is not None:
            answer.set_result(message.report)
        else:
            fault = message.error or Internal(message=f"{self.id} described nothing")
            _fail(answer, RemoteError(fault))

    def has(self, project_id: str) -> bool:
        """Whether the project runs here, or is about to."""
        return project_id in self._projects

    @property
    def projects(self) -> list[str]:
        """Ids of the projects that run here."""
        return [id for id, opened in self._projects.items() if opened.done()]

    def opened(self, project_id: str, error: WireError | None) -> None:
        """It answered `OpenProject`."""
        future = self._projects.get(project_id)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            del self._projects[project_id]
            _fail(future, RemoteError(error))

    def gone(self, error: ProcessLost) -> list[P]:
        """The process ended: fail what opens, return what waited for an answer."""
        for future in [*self._projects.values(), *self._describing.values()]:
            if not future.done():
                _fail(future, PunieError(error))
        self.sessions.clear()
        pending, self.pending = list(self.pending.values()), {}
        return pending

    def lost(self, reason: str) -> ProcessLost:
        """Return the error for what this process was needed for."""
        return ProcessLost(
            message=f"{self.id} (pid {self.pid}) ended: {reason}",
            hint="send the prompt again; see: punie logs",
            process=self.id,
            pid=self.pid,
        )


def history_chunks(deltas: list[bytes]) -> list[list[bytes]]:
    """Cut a conversation into lists of at most `HISTORY_CHUNK` bytes; a longer delta, which came
    in a frame of its own, is alone."""
    chunks: list[list[bytes]] = []
    room = 0
    for delta in deltas:
        if len(delta) > room or not chunks:
            chunks.append([])
            room = HISTORY_CHUNK
        chunks[-1].append(delta)
        room -= len(delta)
    return chunks


def _fail(future: asyncio.Future[Any], error: PunieError) -> None:
    future.set_exception(error)
    future.exception()  # it may be that nobody waits any more


class WorkerEvents[P](Protocol):
    """Who is told what workers say."""

    async def from_worker(self, worker: Worker[P], message: FromWorker) -> None:
        """Work on a message; waiting here slows the worker."""
        ...

    async def worker_gone(self, worker: Worker[P], pending: list[P], error: ProcessLost) -> None:
        """The process ended while it owed these answers."""
        ...


class WorkerPool[P]:
    """Every worker's keeper by id; also their keepers' `Inmate`."""

    def __init__(
        self,
        make_spec: Callable[[str], ChildSpec],
        model_socket: str,
        events: WorkerEvents[P],
        permissions: PermissionSettings,
    ) -> None:
        self.keepers: dict[str, Keeper] = {}
        self._live: dict[str, Worker[P]] = {}
        self._by_number: dict[int, Worker[P]] = {}
        self._make_spec = make_spec
        self._events = events
        self._numbers = itertools.count(1)
        self._ids = itertools.count(1)
        self._dialect = Dialect(
            welcome=to_worker.Welcome(
                protocol=PROTOCOL,
                version=version(),
                limits=Limits(),
                model_socket=model_socket,
                permissions=permissions,
            ),
            ping=lambda nonce: to_worker.Ping(nonce=nonce),
            stop=lambda reason, seconds: to_worker.Stop(reason=reason, deadline_s=seconds),
        )

    def is_ready(self, worker_id: str) -> bool:
        """Whether that worker can take work at once."""
        return worker_id in self._live

    def live(self, worker_id: str) -> Worker[P] | None:
        """Return the present life of that worker."""
        return self._live.get(worker_id)

    def by_number(self, number: int) -> Worker[P] | None:
        """Return that life of a worker, if it goes on."""
        return self._by_number.get(number)

    async def place(self, project: Project) -> Worker[P]:
        """Return the project's worker with the project open in it, started if need be.

        Raises `PunieError`. A worker that dies meanwhile is replaced once.
        """
        try:
            return await self._place(project)
        except PunieError as error:
            if not isinstance(error.error, ProcessLost) or self._is_given_up(project.worker_id):
                raise
        return await self._place(project)

    async def _place(self, project: Project) -> Worker[P]:
        keeper = self.keepers.get(project.worker_id)
        if keeper is None:
            spec = self._make_spec(project.worker_id)
            keeper = self.keepers[spec.id] = Keeper(spec, self._dialect, self)
        child = await keeper.ready()
        worker = self._live.get(project.worker_id)
        if worker is None or worker.pid != child.pid:
            raise PunieError(keeper.lost())
        await worker.open_project(project)
        return worker

    def _is_given_up(self, worker_id: str) -> bool:
        return self.keepers[worker_id].state is KeeperState.FAILED

    async def retire(self, worker_id: str, reason: str) -> None:
        """Stop a worker that nothing is placed in any more."""
        if keeper := self.keepers.pop(worker_id, None):
            await keeper.close(reason)

    async def close(self, reason: str) -> None:
        """Stop every worker, all at once, for good."""
        await asyncio.gather(*(keeper.close(reason) for keeper in self.keepers.values()))

    # the keepers' side

    def ready(self, child: Child) -> None:
        worker = Worker[Any](next(self._numbers), child, self._ids)
        self._live[child.spec.id] = self._by_number[worker.number] = worker

    async def message(self, child: Child, message: ToSupervisor) -> None:
        worker = self._live.get(child.spec.id)
        if worker is None or worker.pid != child.pid:
            raise _unexpected(message)
        match message:
            case ProjectReady(project_id=id):
                worker.opened(id, None)
            case ProjectFailed(project_id=id, error=error):
                worker.opened(id, error)
            case PromptDescribed():
                worker.described(message)
            case (
                AgentMessage()
                | StoreDelta()
                | EffectStarted()
                | EffectFinished()
                | StoreGrant()
                | StoreTrust()
            ):
                await self._events.from_worker(worker, message)
            case ModelState() | Hello() | Ready() | Pong():
                raise _unexpected(message)
            case _:
                assert_never(message)

    async def down(self, child: Child, exit: Exit) -> None:
        worker = self._live.get(child.spec.id)
        if worker is not None and worker.pid == child.pid:
            del self._live[worker.id]
            del self._by_number[worker.number]
            error = worker.lost(exit.reason)
            await self._events.worker_gone(worker, worker.gone(error), error)


def _unexpected(message: ToSupervisor) -> ProtocolError:
    return ProtocolError(
        InvalidRequest(message=f"a worker does not send {type(message).__name__} then")
    )
