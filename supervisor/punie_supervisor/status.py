"""The status report."""

import os
import time
from typing import Final

import psutil

from punie_protocol.client import (
    ProjectState,
    ProjectStatus,
    StatusReport,
    WorkerState,
    WorkerStatus,
)
from punie_protocol.handshake import version
from punie_protocol.isolation import WorkerLimits
from punie_protocol.limits import PROTOCOL
from punie_protocol.messages.common import Isolation
from punie_supervisor import journal_projects as projects
from punie_supervisor.journal import Journal
from punie_supervisor.keeper import Keeper, KeeperState
from punie_supervisor.models import Models
from punie_supervisor.paths import Paths
from punie_supervisor.registry import Registry
from punie_supervisor.turn import Pending
from punie_supervisor.workers import WorkerPool

MAX_PROJECTS: Final = 1000
"""Projects in a report, in order of their root."""


def resident_bytes(pid: int | None) -> int:
    """Return the resident memory of a process, 0 when there is none."""
    try:
        return psutil.Process(pid).memory_info().rss if pid else 0
    except psutil.Error:
        return 0


class Reporter:
    """Makes reports of this daemon, which started when this object was made."""

    def __init__(
        self,
        paths: Paths,
        journal: Journal,
        models: Models,
        workers: WorkerPool[Pending],
        registry: Registry,
        limits: WorkerLimits,
    ) -> None:
        self._paths = paths
        self._journal = journal
        self._models = models
        self._workers = workers
        self._registry = registry
        self._limits = limits
        self._started = time.monotonic()

    async def report(self) -> StatusReport:
        """Return the state of everything, as of now."""
        rows = await self._journal.run(projects.list_projects, MAX_PROJECTS)
        roots = {row.project.id: row.project.root for row in rows}
        return StatusReport(
            version=version(),
            protocol=PROTOCOL,
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self._started, 3),
            rss_bytes=resident_bytes(os.getpid()),
            socket=str(self._paths.socket),
            home=str(self._paths.home),
            config=str(self._paths.config_file),
            state=str(self._paths.state_dir),
            model=self._models.status(resident_bytes),
            workers=[
                self._worker(keeper, roots)
                for keeper in self._workers.keepers.values()
                if keeper.state is not KeeperState.IDLE
            ],
            projects=[self._project(row) for row in rows],
            servers=self._models.servers.status(),
        )

    def _worker(self, keeper: Keeper, roots: dict[str, str]) -> WorkerStatus:
        id = keeper.spec.id
        live = self._workers.live(id)
        isolation = self._workers.level(id)
        alone = isolation is Isolation.PROCESS
        return WorkerStatus(
            id=id,
            pid=keeper.pid,
            state=WorkerState(keeper.state.value),
            rss_bytes=resident_bytes(keeper.pid),
            restarts=keeper.restarts,
            projects=[roots[id] for id in live.projects if id in roots] if live else [],
            isolation=isolation,
            start=keeper.child.start if keeper.child else None,
            limits=self._limits if alone else None,
            usage=self._workers.watch.usage(live.meter) if live else None,
            draining=self._workers.placement.draining(id),
        )

    def _project(self, row: projects.ProjectSummary) -> ProjectStatus:
        project = row.project
        live = next((w for w in self._workers.having(project.id) if project.id in w.projects), None)
        known = self._registry.known(project.id)
        return ProjectStatus(
            root=project.root,
            isolation=project.isolation,
            state=ProjectState.ACTIVE if live else ProjectState.PASSIVE,
            sessions=row.sessions,
            last_session=row.last_session,
            confined=known.confined if known else project.confined,
            worker=live.id if live else None,
            half=live.halves.get(project.id) if live else None,
            programs=known.programs if known else 0,
            unconfined=project.unconfined,
        )
