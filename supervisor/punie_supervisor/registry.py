"""The projects and sessions in use, loaded from the journal when first needed."""

import asyncio
import contextlib
from collections.abc import Generator

from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.messages.common import Isolation
from punie_supervisor import journal_ops as ops
from punie_supervisor import placement
from punie_supervisor.journal import Journal


class Project:
    """A project. `turns` counts its prompts under way, waiting ones too; `trusted` is the digest of
    its own settings as the user trusted them, or empty."""

    def __init__(self, row: ops.ProjectRow) -> None:
        self.id = row.id
        self.root = row.root
        self.isolation = row.isolation
        self.trusted = row.trusted
        self.turns = 0

    @property
    def worker_id(self) -> str:
        """The worker it belongs to."""
        return placement.worker_id(self.id, self.isolation)


class Session:
    """A session. `order` is held by the turn that runs or prepares to; `turns` counts all."""

    def __init__(self, id: str, project: Project) -> None:
        self.id = id
        self.project = project
        self.order = asyncio.Lock()
        self.turns = 0

    @contextlib.contextmanager
    def counted(self) -> Generator[None]:
        """Count a turn, here and in the project, while the context is open."""
        self.turns += 1
        self.project.turns += 1
        try:
            yield
        finally:
            self.turns -= 1
            self.project.turns -= 1


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
        root = await asyncio.to_thread(placement.resolve_root, cwd)
        id = placement.project_id(root)
        return self._known(await self._journal.run(ops.ensure_project, id, root, self._default))

    async def set_isolation(self, project: Project, isolation: Isolation) -> str | None:
        """Move an idle project to another level; return the id of the worker it left, if any.

        Raises `PunieError` (`InvalidRequest`) while a prompt of it is under way.
        """
        async with self._moving:
            if project.isolation is isolation:
                return None
            if project.turns:
                raise PunieError(_busy(project, isolation))
            # Before the journal has it: a prompt that comes meanwhile goes where the project goes.
            left, before = project.worker_id, project.isolation
            project.isolation = isolation
            try:
                await self._journal.run(ops.set_isolation, project.id, isolation)
            except PunieError:
                project.isolation = before
                raise
            return left

    async def set_trust(self, project: Project, digest: str) -> None:
        """Keep the user's trust in a project's own settings; an empty digest ends it."""
        await self._journal.run(ops.set_trust, project.id, digest)
        project.trusted = digest

    def known(self, project_id: str) -> Project | None:
        """Return a project that is in use."""
        return self._projects.get(project_id)

    def forget(self, session_id: str) -> None:
        """Drop a session that was not made after all."""
        self._sessions.pop(session_id, None)

    def sharing(self, worker_id: str) -> list[Project]:
        """Return the projects placed in that worker."""
        return [project for project in self._projects.values() if project.worker_id == worker_id]

    def _known(self, row: ops.ProjectRow) -> Project:
        return self._projects.setdefault(row.id, Project(row))


def _busy(project: Project, isolation: Isolation) -> InvalidRequest:
    return InvalidRequest(
        message=f"{project.root} has a prompt under way at isolation level "
        f"{project.isolation.value}; it cannot move to {isolation.value} now",
        hint="wait for its end, or leave the isolation level out",
    )
