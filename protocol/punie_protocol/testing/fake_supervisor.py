"""A supervisor for one worker process: projects, sessions, what is durable, and crashes."""

import asyncio
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self, assert_never

from punie_protocol.backends import Backend
from punie_protocol.client import BackgroundCommand, PromptReport
from punie_protocol.errors import Internal, InvalidRequest, LinkClosed, PunieError, RemoteError
from punie_protocol.handshake import version
from punie_protocol.limits import PROTOCOL
from punie_protocol.messages.common import Isolation, Limits, Message
from punie_protocol.messages.to_supervisor import (
    AgentMessage,
    CommandsTold,
    DoorIs,
    EffectFinished,
    EffectStarted,
    EngineReport,
    HalfQuarantined,
    Hello,
    ModelState,
    Pong,
    ProgramsRunning,
    ProjectFailed,
    ProjectReady,
    PromptDescribed,
    Ready,
    StoreDelta,
    StoreGrant,
    StoreTrust,
    ToSupervisor,
)
from punie_protocol.messages.to_worker import (
    AskCommands,
    CloseProject,
    CloseSession,
    DescribePrompt,
    OpenProject,
    OpenSession,
    Ping,
    SessionHistory,
    SetMode,
    Stop,
    Stored,
    TrustProject,
    Welcome,
)
from punie_protocol.permissions import Mode, PermissionSettings
from punie_protocol.testing.replies import Replies
from punie_protocol.testing.store import FakeJournal, SessionRecord, StoreMessage
from punie_protocol.testing.waiting import PATIENCE, within
from punie_protocol.testing.worker_process import Command, WorkerProcess, punie_worker

_CHUNK: Final = 4 * 1024 * 1024
"""Bytes of deltas in one message."""


class FakeSupervisor:
    """``async with FakeSupervisor(model_socket) as worker``; the process is gone after it.

    `journal` is what was stored, `received` every message of the worker. What it breaks of the
    protocol fails whatever waits for it then, and later.
    """

    def __init__(
        self,
        model_socket: Path | str,
        *,
        command: Command = punie_worker,
        permissions: PermissionSettings | None = None,
    ) -> None:
        self.journal = FakeJournal()
        self.received: list[ToSupervisor] = []
        self._welcome = Welcome(
            protocol=PROTOCOL,
            version=version(),
            limits=Limits(),
            model_socket=str(model_socket),
            permissions=permissions or PermissionSettings(),
        )
        self._command = command
        self._ids = itertools.count(1)
        self._replies = Replies()
        self._projects: dict[str, OpenProject] = {}
        self._worker: WorkerProcess | None = None
        self._reader: asyncio.Task[None] | None = None
        self._kill_at: int | None = None
        self._is_dying = False

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._end()

    # the process

    @property
    def worker(self) -> WorkerProcess:
        """The worker process of now."""
        if self._worker is None:
            raise PunieError(Internal(message="no worker was started", hint="use: async with"))
        return self._worker

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.worker.process.pid

    @property
    def hello(self) -> Hello:
        """What it said of itself."""
        return self.worker.hello

    async def send(self, message: Message) -> None:
        """Send the worker any message."""
        await self.worker.link.send(message)

    async def wait_ended(self, within: float = 5.0) -> int:
        """Return the exit status of a worker that ends by itself."""
        return await self.worker.ended(within)

    async def stop(self, deadline_s: float = 2.0) -> int:
        """Ask the worker to stop and return its exit status."""
        await self.send(Stop(reason="test", deadline_s=deadline_s))
        return await self.wait_ended()

    async def ping(self) -> Pong:
        """Return the answer to a ping."""
        nonce = next(self._ids)
        answer: asyncio.Future[Pong] = self._replies.expect("pong", nonce)
        await self.send(Ping(nonce=nonce))
        return await within(answer, "answer to a ping")

    # projects

    async def open_project(
        self,
        root: Path | str,
        project_id: str = "p1",
        isolation: Isolation = Isolation.PROCESS,
        *,
        trusted: str = "",
    ) -> ProjectReady | ProjectFailed:
        """Open a project and return the worker's answer."""
        message = OpenProject(
            project_id=project_id,
            root=_real(root),
            isolation=isolation,
            client_id=f"client-{project_id}",
            trusted=trusted,
        )
        self.journal.trusts[project_id] = trusted
        self._projects[project_id] = message
        return await self._open(message)

    async def trust_project(self, digest: str, project_id: str = "p1") -> None:
        """Say that the user trusts the project's settings of that digest; empty: none."""
        self.journal.trusts[project_id] = digest
        await self.send(TrustProject(project_id=project_id, trusted=digest))

    async def describe_prompt(
        self, project_id: str = "p1", backend: Backend | None = None
    ) -> PromptReport:
        """Return what a model is told there. Raises `RemoteError` with the worker's reason."""
        id = next(self._ids)
        answer: asyncio.Future[PromptDescribed] = self._replies.expect("prompt", id)
        await self.send(DescribePrompt(request_id=id, project_id=project_id, backend=backend))
        described = await within(answer, f"description of the prompt of {project_id}")
        if described.report is None:
            raise RemoteError(described.error or Internal(message="neither report nor error"))
        return described.report

    async def commands(
        self, project_id: str = "p1", *, stop: bool = False
    ) -> list[BackgroundCommand]:
        """Return the background commands there, ended when `stop`. Raises `RemoteError`."""
        id = next(self._ids)
        answer: asyncio.Future[CommandsTold] = self._replies.expect("commands", id)
        await self.send(AskCommands(request_id=id, project_id=project_id, stop=stop))
        told = await within(answer, f"background commands of {project_id}")
        if told.error is not None:
            raise RemoteError(told.error)
        return told.commands

    async def close_project(self, project_id: str = "p1") -> None:
        """Close a project; there is no answer."""
        self._projects.pop(project_id, None)
        await self.send(CloseProject(project_id=project_id, reason="test"))

    # sessions

    async def open_session(
        self,
        session_id: str = "s1",
        project_id: str = "p1",
        deltas: list[bytes] | None = None,
        *,
        mode: Mode | None = None,
    ) -> None:
        """Make a session known, with a conversation so far."""
        record = SessionRecord(project_id=project_id, mode=mode)
        record.deltas = list(deltas or [])
        record.prompts = [""] * len(record.deltas)
        self.journal.sessions[session_id] = record
        await self._send_session(session_id, record)

    async def send_history(self, deltas: list[bytes], session_id: str = "s1") -> None:
        """Send more of the conversation of the session just opened."""
        record = self.journal.session(session_id)
        record.deltas += deltas
        record.prompts += [""] * len(deltas)
        await self.send(SessionHistory(session_id=session_id, deltas=deltas))

    async def set_mode(self, mode: Mode, session_id: str = "s1") -> None:
        """Set the permission mode of a session."""
        self.journal.session(session_id).mode = mode
        await self.send(SetMode(session_id=session_id, mode=mode))

    async def close_session(self, session_id: str = "s1") -> None:
        """Close a session; there is no answer. What was stored of it stays."""
        await self.send(CloseSession(session_id=session_id, reason="test"))

    # crashes

    async def kill(self) -> None:
        """End the worker as ``kill -9`` does. What it had sent by then is stored."""
        self._kill(self.worker)
        await self.lost()

    def kill_at(self, count: int) -> None:
        """Kill the worker once it has sent `count` messages from now on. The last one is still
        stored, but not answered."""
        self._kill_at = len(self.received) + count

    async def lost(self, seconds: float = PATIENCE) -> None:
        """Wait until the worker is gone and all that it sent is taken."""
        if self._reader is not None:
            await within(asyncio.shield(self._reader), "end of the worker's link", seconds)
        await self.worker.ended(seconds)

    async def restart(self) -> None:
        """Start another worker with what was stored: the projects, and their sessions with
        deltas, mode, grants and the effects of the open step."""
        if self.worker.process.poll() is None:
            await self.kill()
        await self._end()
        await self._start()
        for project_id, opened in self._projects.items():
            trusted = self.journal.trusts[project_id]
            again = OpenProject(
                project_id=project_id,
                root=opened.root,
                isolation=opened.isolation,
                client_id=opened.client_id,
                trusted=trusted,
            )
            if isinstance(failed := await self._open(again), ProjectFailed):
                raise RemoteError(failed.error)
        for session_id, record in self.journal.sessions.items():
            if record.project_id in self._projects:
                await self._send_session(session_id, record)

    # below

    async def _start(self) -> None:
        self._kill_at, self._is_dying = None, False
        self._worker = await WorkerProcess.start(self._command, self._welcome)
        self._replies.open()
        self._reader = asyncio.create_task(self._read(self._worker))

    async def _end(self) -> None:
        if self._worker is not None:
            try:
                await self._worker.end()
            finally:
                await asyncio.gather(self._reader or asyncio.sleep(0), return_exceptions=True)

    async def _open(self, message: OpenProject) -> ProjectReady | ProjectFailed:
        answer: asyncio.Future[ProjectReady | ProjectFailed]
        answer = self._replies.expect("project", message.project_id)
        await self.send(message)
        return await within(answer, f"answer to opening project {message.project_id}")

    async def _send_session(self, session_id: str, record: SessionRecord) -> None:
        first, *more = [*_chunks(record.deltas)] or [[]]
        await self.send(
            OpenSession(
                session_id=session_id,
                project_id=record.project_id,
                deltas=first,
                mode=record.mode,
                grants=record.grants,
                effects=record.open_effects(),
            )
        )
        for chunk in more:
            await self.send(SessionHistory(session_id=session_id, deltas=chunk))

    async def _read(self, worker: WorkerProcess) -> None:
        why: PunieError = LinkClosed(f"the worker {worker.process.pid} is gone")
        try:
            async for message in worker.link:
                self.received.append(message)
                if self._kill_at is not None and len(self.received) >= self._kill_at:
                    self._kill(worker)
                await self._take(message)
        except PunieError as error:
            why = error
        except Exception as error:  # noqa: BLE001 - whatever it is, who waits is told
            why = PunieError(Internal(message=f"the fake client failed: {error!r}"))
        finally:
            self._replies.close(why)

    async def _take(self, message: ToSupervisor) -> None:
        match message:
            case AgentMessage():
                await self._agent_message(message)
            case StoreDelta() | EffectStarted() | EffectFinished() | StoreGrant() | StoreTrust():
                await self._store(message)
            case ProjectReady(project_id=id) | ProjectFailed(project_id=id):
                self._replies.deliver("project", id, message)
            case Pong(nonce=nonce):
                self._replies.deliver("pong", nonce, message)
            case PromptDescribed(request_id=id):
                self._replies.deliver("prompt", id, message)
            case CommandsTold(request_id=id):
                self._replies.deliver("commands", id, message)
            case HalfQuarantined() | ProgramsRunning():
                pass  # kept in `received`
            case Hello() | Ready() | ModelState() | EngineReport() | DoorIs():
                what = type(message).__name__
                raise PunieError(InvalidRequest(message=f"the worker sent {what} after its start"))
            case _:
                assert_never(message)

    async def _store(self, message: StoreMessage) -> None:
        error = self.journal.store(message)
        await self._reply(Stored(request_id=message.request_id, error=error))

    def _kill(self, worker: WorkerProcess) -> None:
        self._is_dying = True
        worker.kill()

    async def _reply(self, message: Message) -> None:
        """Answer the worker, if it lives. To write to one that was killed would break the link
        before all that it sent is read."""
        if self._is_dying:
            return
        try:
            await self.send(message)
        except LinkClosed:
            self._is_dying = True

    async def _agent_message(self, message: AgentMessage) -> None:
        """What the agent says to clients: this one has none."""


def _real(root: Path | str) -> str:
    return os.path.realpath(root)


def _chunks(deltas: list[bytes]) -> Iterator[list[bytes]]:
    """Yield the deltas in lists that fit into a frame."""
    chunk: list[bytes] = []
    size = 0
    for delta in deltas:
        if chunk and size + len(delta) > _CHUNK:
            yield chunk
            chunk, size = [], 0
        chunk.append(delta)
        size += len(delta)
    if chunk:
        yield chunk
