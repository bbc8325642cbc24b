"""The worker: what the supervisor asks for, done. Owns projects, sessions and shared services."""

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any, NoReturn, assert_never

import msgspec

from punie_protocol.errors import (
    InvalidRequest,
    NotFound,
    PunieError,
)
from punie_protocol.link import FrameLink
from punie_protocol.messages.to_supervisor import (
    CommandsTold,
    Pong,
    ProjectFailed,
    ProjectReady,
    PromptDescribed,
)
from punie_protocol.messages.to_worker import (
    AskCommands,
    ClientMessage,
    CloseProject,
    CloseSession,
    DescribePrompt,
    OpenProject,
    OpenSession,
    Ping,
    SessionHistory,
    SetMode,
    SetUnconfined,
    Stop,
    Stored,
    ToWorker,
    TrustProject,
    Welcome,
)
from punie_workers import children, lifetime
from punie_workers.acp_adapter import AcpAdapter
from punie_workers.code_mode import CodeMode
from punie_workers.crumbs import Crumbs
from punie_workers.grounds import Grounds, MakeHalf
from punie_workers.halves import Abandoned
from punie_workers.ledger import Ledger
from punie_workers.model_client import ModelClient
from punie_workers.models import Models
from punie_workers.openings import Openings
from punie_workers.outlet import Outlet
from punie_workers.project import Project
from punie_workers.project_half import ProjectHalf
from punie_workers.prompt_report import describe
from punie_workers.services import Services
from punie_workers.session import Session

_log = logging.getLogger(__name__)

type _Immediate = (
    Welcome
    | OpenProject
    | CloseProject
    | TrustProject
    | SetUnconfined
    | SetMode
    | DescribePrompt
    | AskCommands
    | OpenSession
    | SessionHistory
    | CloseSession
    | ClientMessage
    | Stored
    | Ping
)


class Worker:
    """Serves one supervisor until it says `Stop` or the link ends."""

    def __init__(
        self,
        link: FrameLink[ToWorker],
        welcome: Welcome,
        make_half: MakeHalf = ProjectHalf,
        code: CodeMode | None = None,
    ) -> None:
        self._link = link
        self._ledger = Ledger(link)
        self._models = Models(ModelClient(welcome.model_socket))
        self._services = Services(
            self._models, code or CodeMode(), self._ledger, welcome.permissions
        )
        self._projects: dict[str, Project] = {}
        self._sessions: dict[str, Session] = {}
        self._unusable: dict[str, PunieError] = {}
        self._openings = Openings()
        children.hand_on(welcome.variables)
        crumbs = Crumbs(welcome.crumbs)
        self._grounds = Grounds(
            ledger=self._ledger,
            abandoned=Abandoned(partial(_leave_worn_out, crumbs)),
            crumbs=crumbs,
            sandbox=welcome.sandbox,
            hidden=tuple(welcome.hidden),
            make_half=make_half,
            tell=link.send_nowait,
            limits=welcome.limits_of_process,
        )
        self._adapter = AcpAdapter(self._find)
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> str:
        """Handle messages in order; return why it is over: the supervisor's reason, or the
        link's."""
        stop = await self._read()
        if stop is None:
            return await self._link.wait_closed()
        reading = asyncio.create_task(self._read(), name="reading while stopping")
        await self._stop(stop.reason, stop.deadline_s)
        reading.cancel()
        return stop.reason

    async def _read(self) -> Stop | None:
        """Handle messages until a `Stop`, or the end. Opening a project holds up what comes for
        that project, as it depends on it."""
        async for message in self._link:
            if isinstance(message, Stop):
                return message
            self._take(message)
        return None

    def _take(self, message: _Immediate) -> None:
        if not isinstance(message, Stored | Ping | Welcome) and self._openings.keep(message):
            return
        match message:
            case OpenProject():
                self._openings.begin(message.project_id)
                self._spawn(self._open_project(message))
            case ClientMessage(session_id=session_id, body=body):
                outlet = Outlet(self._link, session_id)
                self._adapter.take(session_id, body, outlet.send_nowait)
            case Stored(request_id=request_id, error=error):
                self._ledger.stored(request_id, error)
            case OpenSession() | SessionHistory() | CloseSession() | SetMode():
                self._take_of_session(message)
            case (
                CloseProject() | TrustProject() | SetUnconfined() | DescribePrompt() | AskCommands()
            ):
                self._take_of_project(message)
            case Ping(nonce=nonce):
                busy = sum(session.is_busy for session in self._sessions.values())
                halves = [project.status for project in self._projects.values()]
                self._link.send_nowait(Pong(nonce=nonce, busy=busy, halves=halves))
            case Welcome():
                _log.warning("a second welcome")
            case _:
                assert_never(message)

    def _take_of_session(
        self, message: OpenSession | SessionHistory | CloseSession | SetMode
    ) -> None:
        match message:
            case OpenSession():
                self._open_session(message)
            case SessionHistory(session_id=session_id, deltas=deltas):
                self._restore(session_id, deltas)
            case CloseSession(session_id=session_id, reason=reason):
                self._close_session(session_id, reason)
            case SetMode(session_id=session_id, mode=mode):
                if session := self._sessions.get(session_id):
                    session.set_mode(mode)
            case _:
                assert_never(message)

    def _take_of_project(
        self,
        message: CloseProject | TrustProject | SetUnconfined | DescribePrompt | AskCommands,
    ) -> None:
        match message:
            case CloseProject(project_id=project_id, reason=reason):
                self._close_project(project_id, reason)
            case TrustProject(project_id=project_id, trusted=trusted):
                if project := self._projects.get(project_id):
                    project.settings.trusted = trusted
            case SetUnconfined(project_id=project_id, unconfined=unconfined):
                if project := self._projects.get(project_id):
                    project.unconfined = unconfined
            case DescribePrompt():
                self._spawn(self._describe(message))
            case AskCommands():
                self._spawn(self._tell_commands(message))
            case _:
                assert_never(message)

    async def _open_project(self, wanted: OpenProject) -> None:
        try:
            await self._opened(wanted)
        finally:
            for message in self._openings.end(wanted.project_id):
                self._take(message)

    async def _opened(self, wanted: OpenProject) -> None:
        try:
            if wanted.project_id in self._projects:
                message = f"project {wanted.project_id} is open already"
                raise PunieError(InvalidRequest(message=message))
            project = await Project.open(wanted, self._grounds)
        except PunieError as error:
            self._link.send_nowait(ProjectFailed(project_id=wanted.project_id, error=error.error))
            return
        self._projects[wanted.project_id] = project
        self._link.send_nowait(
            ProjectReady(project_id=wanted.project_id, activate_ms=project.activate_ms)
        )

    def _close_project(self, project_id: str, reason: str) -> None:
        """Forget the project and its sessions at once; their turns end in the background."""
        project = self._projects.pop(project_id, None)
        if project is None:
            return
        sessions = [one for one in self._sessions.values() if one.project is project]
        for session in sessions:
            del self._sessions[session.session_id]
        self._spawn(_end(sessions, reason, project))

    def _open_session(self, wanted: OpenSession) -> None:
        session_id = wanted.session_id
        self._unusable.pop(session_id, None)
        try:
            self._sessions[session_id] = self._session(wanted)
        except PunieError as error:
            _log.error("session %s: %s", session_id, error)
            self._unusable[session_id] = error

    def _session(self, wanted: OpenSession) -> Session:
        session_id = wanted.session_id
        if session_id in self._sessions:
            raise PunieError(InvalidRequest(message=f"session {session_id} is open already"))
        project = self._project(wanted.project_id)
        return Session(wanted, project, self._services, Outlet(self._link, session_id))

    def _project(self, project_id: str) -> Project:
        if project := self._projects.get(project_id):
            return project
        message = f"project {project_id} is not open here"
        raise PunieError(NotFound(message=message, what="project"))

    def _restore(self, session_id: str, deltas: list[bytes]) -> None:
        """Take more of the conversation of the session just opened, unless that failed."""
        session = self._sessions.get(session_id)
        if session is None or session_id in self._unusable:
            return
        try:
            session.restore(deltas)
        except PunieError as error:
            _log.error("session %s: %s", session_id, error)
            self._unusable[session_id] = error
            del self._sessions[session_id]

    def _close_session(self, session_id: str, reason: str) -> None:
        self._unusable.pop(session_id, None)
        if session := self._sessions.pop(session_id, None):
            self._spawn(_end([session], reason))

    def _find(self, session_id: str) -> Session:
        if session := self._sessions.get(session_id):
            return session
        if error := self._unusable.get(session_id):
            raise error
        message = f"session {session_id[:100]!r} is not open here"
        raise PunieError(NotFound(message=message, what="session"))

    async def _describe(self, wanted: DescribePrompt) -> None:
        """Answer what a model is told in that project."""
        answer = PromptDescribed(request_id=wanted.request_id)
        try:
            project = self._project(wanted.project_id)
            info = await self._models.info(wanted.backend)
            parts = await project.settings.parts()
            report = await describe(self._models, info, wanted.backend, parts)
            answer = msgspec.structs.replace(answer, report=report)
        except PunieError as error:
            answer = msgspec.structs.replace(answer, error=error.error)
        self._link.send_nowait(answer)

    async def _tell_commands(self, wanted: AskCommands) -> None:
        """Answer what runs in the background in that project, or end it."""
        answer = CommandsTold(request_id=wanted.request_id)
        try:
            tools = self._project(wanted.project_id).tools
            found = await tools.background(stop=wanted.stop)
            answer = msgspec.structs.replace(answer, commands=found)
        except PunieError as error:
            answer = msgspec.structs.replace(answer, error=error.error)
        self._link.send_nowait(answer)

    async def _stop(self, reason: str, deadline_s: float) -> None:
        """Cancel every turn; what was durable stays, prompts are answered while there is time."""
        try:
            async with asyncio.timeout(deadline_s / 2):
                await _end(list(self._sessions.values()), reason)
        except TimeoutError:
            _log.warning("turns were still under way at the deadline")
        for project in self._projects.values():
            project.close()
        await self._services.code.close()
        await self._models.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("a background task failed", exc_info=error)


def _leave_worn_out(crumbs: Crumbs) -> NoReturn:
    """Whose tools hang was told at once; who is in a call by chance is no suspect."""
    crumbs.wipe()
    lifetime.leave(lifetime.WORN_OUT)


async def _end(sessions: list[Session], reason: str, project: Project | None = None) -> None:
    """Close sessions together, then the project they were of."""
    await asyncio.gather(*(session.close(reason) for session in sessions))
    if project is not None:
        project.close()
