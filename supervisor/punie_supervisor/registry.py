"""The projects and sessions in use, loaded from the journal when first needed."""

import asyncio
import contextlib
import shlex
import time
from collections.abc import Generator

from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.messages.common import Isolation
from punie_supervisor import journal_ops as ops
from punie_supervisor import journal_projects as projects
from punie_supervisor import roots
from punie_supervisor.journal import Journal


class Project:
    """A project. `turns` counts what keeps it where it is: its prompts under way, waiting ones too,
    and other requests. `programs` counts its background commands. The rest is the journal's, see
    `ProjectRow`."""

    def __init__(self, row: projects.ProjectRow) -> None:
        self.id = row.id
        self.root = row.root
        self.isolation = row.isolation
        self.trusted = row.trusted
        self.confined = row.confined
        self.unconfined = row.unconfined
        self.turns = 0
        self.programs = 0
        self._used = time.monotonic()

    @property
    def level(self) -> Isolation:
        """The level at which it runs now."""
        return Isolation.PROCESS if self.confined else self.isolation

    @property
    def idle_s(self) -> float:
        """Seconds since it was last in use; 0 while it is."""
        return 0.0 if self.turns or self.programs else time.monotonic() - self._used

    @contextlib.contextmanager
    def counted(self) -> Generator[None]:
        """Count a turn while the context is open."""
        self.turns += 1
        try:
            yield
        finally:
            self.turns -= 1
            self._used = time.monotonic()

    def running(self, programs: int) -> None:
        """Note how many background commands it has now."""
        self.programs = programs
        self._used = time.monotonic()


class Session:
    """A session. `order` is held by the turn that runs or prepares to; `turns` counts all."""

    def __init__(self, id: str, project: Project) -> None:
        self.id = id
        self.project = project
        self.order = asyncio.Lock()
        self.turns = 0
        self._used = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since it was last in use; 0 while it is."""
        return 0.0 if self.turns else time.monotonic() - self._used

    @contextlib.contextmanager
    def counted(self) -> Generator[None]:
        """Count a turn, here and in the project, while the context is open."""
        self.turns += 1
        try:
            with self.project.counted():
                yield
        finally:
            self.turns -= 1
            self._used = time.monotonic()


class Registry:
    """Every `Project` and `Session` object, one each."""

    def __init__(self, journal: Journal, default: Isolation) -> None:
        self._journal = journal
        self._default = default
        self._projects: dict[str, Project] = {}
        self._sessions: dict[str, Session] = {}
        self._moving = asyncio.Lock()

    async def session(self, session_id: str) -> Session:
        """Return the session. Raises `PunieError` (`NotFound`)."""
        if found := self._sessions.get(session_id):
            return found
        row = await self._journal.run(ops.session, session_id)
        return self._sessions.setdefault(session_id, Session(row.id, self._known(row.project)))

    async def project(self, cwd: str) -> Project:
        """Return the project at `cwd`, made if it is new. Raises `PunieError`."""
        root = await asyncio.to_thread(roots.resolve_root, cwd)
        id = roots.project_id(root)
        return self._known(
            await self._journal.run(projects.ensure_project, id, root, self._default)
        )

    async def set_isolation(self, project: Project, isolation: Isolation) -> None:
        """Move an idle project to another level; it is no longer confined.

        Raises `PunieError` (`InvalidRequest`) while a prompt of it is under way, or a background
        command.
        """
        async with self._moving:
            if project.isolation is isolation and not project.confined:
                return
            if project.turns or project.programs:
                raise PunieError(_busy(project, isolation))
            # Before the journal has it: a prompt that comes meanwhile goes where the project goes.
            before = project.isolation, project.confined
            project.isolation, project.confined = isolation, ""
            try:
                await self._journal.run(projects.set_isolation, project.id, isolation)
            except PunieError:
                project.isolation, project.confined = before
                raise

    async def confine(self, project: Project, reason: str) -> None:
        """Have the project run alone, at once; submitted to the journal, not waited for."""
        project.confined = reason
        await self._journal.submit(projects.confine, project.id, reason)

    async def set_unconfined(self, project: Project, unconfined: bool) -> None:
        """Keep whether its commands may run where there is no sandbox."""
        await self._journal.run(projects.set_unconfined, project.id, unconfined)
        project.unconfined = unconfined

    async def set_trust(self, project: Project, digest: str) -> None:
        """Keep the user's trust in a project's own settings; an empty digest ends it."""
        await self._journal.run(projects.set_trust, project.id, digest)
        project.trusted = digest

    def known(self, project_id: str) -> Project | None:
        """Return a project that is in use."""
        return self._projects.get(project_id)

    def known_session(self, session_id: str) -> Session | None:
        """Return a session that is in use."""
        return self._sessions.get(session_id)

    def forget(self, session_id: str) -> None:
        """Drop a session that was not made after all."""
        self._sessions.pop(session_id, None)

    def _known(self, row: projects.ProjectRow) -> Project:
        return self._projects.setdefault(row.id, Project(row))


def _busy(project: Project, isolation: Isolation) -> InvalidRequest:
    count = project.programs
    running = f"{count} background {'command' if count == 1 else 'commands'}"
    what = "a prompt under way" if project.turns else running
    stop = f"end what runs: punie projects stop {shlex.quote(project.root)}"
    return InvalidRequest(
        message=f"{project.root} has {what} at isolation level "
        f"{project.level.value}; it cannot move to {isolation.value} now",
        hint="wait for its end, or leave the isolation level out" if project.turns else stop,
    )
