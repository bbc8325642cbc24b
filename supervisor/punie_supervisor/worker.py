"""One life of a worker process: what is open in it, what it owes an answer to."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Raw

from punie_protocol import jsonrpc
from punie_protocol.backends import Backend
from punie_protocol.client import BackgroundCommand, PromptReport
from punie_protocol.errors import (
    Internal,
    LinkClosed,
    Overloaded,
    ProcessLost,
    PunieError,
    RemoteError,
    TimedOut,
    WireError,
)
from punie_protocol.limits import MAX_HALVES
from punie_protocol.messages import to_worker
from punie_protocol.messages.common import HalfStatus, Isolation, Message
from punie_protocol.messages.to_supervisor import CommandsTold, Pong, PromptDescribed
from punie_protocol.permissions import Mode
from punie_supervisor.child import Child
from punie_supervisor.journal_ops import SessionState
from punie_supervisor.registry import Project

OPEN_TIMEOUT: Final = 30.0
"""Seconds a project half may take to start."""
DESCRIBE_TIMEOUT: Final = 30.0
"""Seconds a worker may take to say what a model is told."""
COMMANDS_TIMEOUT: Final = 8.0
"""Seconds a worker may take to end its background commands: less than clients wait for us."""

HISTORY_CHUNK: Final = 4 * 1024 * 1024
"""Bytes of deltas in one frame, if there is more than one."""


class Worker[P]:
    """One life of a worker process. `P` is what waits for the answer to a request; `slots` are the
    bytes of its projects in the breadcrumb file, never given twice; `programs` counts the
    background commands of each; `over` is the limit that it is ended for, in words."""

    def __init__(self, number: int, child: Child, isolation: Isolation, ids: Iterator[int]) -> None:
        self.number = number
        self.isolation = isolation
        self.slots: dict[str, int] = {}
        self.halves: dict[str, HalfStatus] = {}
        self.programs: dict[str, int] = {}
        self.id = child.spec.id
        self.pid = child.pid
        self.over = ""
        self.drained_at: float | None = None
        self.pending: dict[int, P] = {}
        self.sessions: dict[str, str] = {}
        self.meter = f"{self.id} (pid {self.pid})"
        self._child = child
        self._opened = 0
        self._retired = ""
        self._ids = ids
        self._projects: dict[str, asyncio.Future[None]] = {}
        self._asked: dict[int, asyncio.Future[Any]] = {}

    def send(self, message: Message) -> None:
        """Send. Raises `PunieError` (`ProcessLost`) when it is gone, or told to go."""
        if self._retired:
            raise PunieError(self.lost(self._retired))
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
        opened = self._projects.get(project.id) or self._begin_to_open(project)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OPEN_TIMEOUT):
                await asyncio.shield(opened)
        if not opened.done():
            self.close_project(project.id, "it did not open in time")
            text = f"project {project.root} did not open within {OPEN_TIMEOUT:g} s"
            # For all who wait: the time of another must not close what is opened next.
            _fail(opened, PunieError(TimedOut(message=text, limit_s=OPEN_TIMEOUT)))
        opened.result()

    def _begin_to_open(self, project: Project) -> asyncio.Future[None]:
        if self.is_used_up:
            text = f"{self.id} has opened {MAX_HALVES} projects, as many as one process may"
            raise PunieError(Overloaded(message=text, hint="send the prompt again"))
        slot, self._opened = self._opened, self._opened + 1
        self.send(
            to_worker.OpenProject(
                project_id=project.id,
                root=project.root,
                isolation=self.isolation,
                client_id=project.id,
                trusted=project.trusted,
                slot=slot,
                unconfined=project.unconfined,
            )
        )
        self.slots[project.id] = slot
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._projects[project.id] = opened
        return opened

    @property
    def is_used_up(self) -> bool:
        """Whether it can open no further project, ever."""
        return self._opened >= MAX_HALVES

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
        self.slots.pop(project_id, None)
        self.halves.pop(project_id, None)
        self.programs.pop(project_id, None)
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

    def set_unconfined(self, project_id: str, unconfined: bool) -> None:
        """Tell whether commands may run where there is no sandbox, if the project is here."""
        if self.has(project_id):
            self.send_if_alive(
                to_worker.SetUnconfined(project_id=project_id, unconfined=unconfined)
            )

    async def describe(self, project_id: str, backend: Backend | None) -> PromptReport:
        """Return what a model is told before the first prompt. Raises `PunieError`."""
        id = next(self._ids)
        wanted = to_worker.DescribePrompt(request_id=id, project_id=project_id, backend=backend)
        return await self._ask(id, wanted, DESCRIBE_TIMEOUT, "describe the prompt")

    async def commands(self, project_id: str, *, stop: bool) -> list[BackgroundCommand]:
        """Return the background commands of a project here, ended first when `stop`. Raises
        `PunieError`."""
        id = next(self._ids)
        wanted = to_worker.AskCommands(request_id=id, project_id=project_id, stop=stop)
        return await self._ask(id, wanted, COMMANDS_TIMEOUT, "answer for its background commands")

    async def _ask(self, id: int, wanted: Message, limit_s: float, what: str) -> Any:
        """Return the answer to a request of ours. Raises `PunieError`."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[id] = answer
        try:
            self.send(wanted)
            async with asyncio.timeout(limit_s):
                return await answer
        except TimeoutError:
            text = f"{self.id} did not {what} within {limit_s:g} s"
            raise PunieError(TimedOut(message=text, limit_s=limit_s)) from None
        finally:
            del self._asked[id]

    def answered(self, message: PromptDescribed | CommandsTold) -> None:
        """It answered a request of ours; an answer that nobody waits for is dropped."""
        answer = self._asked.get(message.request_id)
        if answer is None or answer.done():
            return
        result = message.report if isinstance(message, PromptDescribed) else message.commands
        if message.error is None and result is not None:
            answer.set_result(result)
        else:
            fault = message.error or Internal(message=f"{self.id} described nothing")
            _fail(answer, RemoteError(fault))

    @property
    def is_busy(self) -> bool:
        """Whether it owes anybody an answer."""
        return bool(self.pending or self._asked)

    def heard(self, pong: Pong) -> None:
        """It answered a ping: keep what its projects' tools have done."""
        self.halves = {half.project_id: half for half in pong.halves if self.has(half.project_id)}

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
        for future in [*self._projects.values(), *self._asked.values()]:
            if not future.done():
                _fail(future, PunieError(error))
        self.sessions.clear()
        pending, self.pending = list(self.pending.values()), {}
        return pending

    def lost(self, reason: str) -> ProcessLost:
        """Return the error for what this process was needed for."""
        hint = "send the prompt again; see: punie logs"
        if self.over:
            hint = "ask for less at once, or raise that limit in the config file"
        return ProcessLost(
            message=f"{self.id} (pid {self.pid}) ended: {reason}",
            hint=hint,
            process=self.id,
            pid=self.pid,
            limit=self.over,
        )

    def retire(self, reason: str) -> None:
        """It is told to end: nothing can be begun there any more, for it would get lost."""
        self._retired = reason

    def end_for(self, limit: str) -> None:
        """Kill it: it is over a limit, and `limit` says which."""
        self.over = limit
        self._child.kill(limit)


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
