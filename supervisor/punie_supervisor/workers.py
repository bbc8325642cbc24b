"""The pool of worker processes: kept alive, filled as `Placement` says, emptied when idle.

A worker ends when nothing is placed in it any more: its projects were idle (they are passive then:
what they need to go on is in the journal, and their next message brings them back), moved, or it
drained. It drains when the tools of a project hang in it, which nothing can stop from outside, and
when it has opened as many projects as it may. When one that several projects share ends by itself,
those that were inside a call of their tools are suspects: each runs alone from then on.
"""

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, assert_never

import msgspec

from punie_protocol.errors import InvalidRequest, ProcessLost, ProtocolError, PunieError
from punie_protocol.handshake import version
from punie_protocol.isolation import SandboxSettings, WorkerLimits
from punie_protocol.limits import PROTOCOL
from punie_protocol.messages import to_worker
from punie_protocol.messages.common import Isolation, Limits
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
from punie_protocol.permissions import PermissionSettings
from punie_supervisor import crumbs, logs
from punie_supervisor.child import Child, Exit
from punie_supervisor.child_spec import ChildSpec
from punie_supervisor.keeper import Birth, Dialect, Keeper, KeeperState
from punie_supervisor.placement import Placed, Placement
from punie_supervisor.registry import Project, Registry
from punie_supervisor.tasks import Tasks
from punie_supervisor.watch import Watch
from punie_supervisor.worker import Worker

DRAIN_GRACE: Final = 300.0
"""Seconds that background commands of a worker that drains may still run."""
PLACE_ATTEMPTS: Final = 3
"""Times a turn is placed anew when its worker is lost, or drains, before the turn has begun."""

type FromSession = AgentMessage | StoreDelta | EffectStarted | EffectFinished | StoreGrant
type FromWorker = FromSession | StoreTrust


class WorkerEvents[P](Protocol):
    """Who is told what workers say."""

    async def from_worker(self, worker: Worker[P], message: FromWorker) -> None:
        """Work on a message; waiting here slows the worker."""
        ...

    async def worker_gone(self, worker: Worker[P], pending: list[P], error: ProcessLost) -> None:
        """The process ended while it owed these answers."""
        ...


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What every worker is told of its place: see `to_worker.Welcome`. `run_dir` has the breadcrumb
    files; a project that is idle for `idle_s` seconds becomes passive."""

    model_socket: str
    permissions: PermissionSettings
    sandbox: SandboxSettings
    variables: dict[str, str]
    limits: WorkerLimits
    hidden: list[str]
    run_dir: Path
    idle_s: float


class WorkerPool[P]:
    """Every worker's keeper by id; also their keepers' `Inmate`."""

    def __init__(
        self,
        make_spec: Callable[[str], ChildSpec],
        around: Surroundings,
        registry: Registry,
        events: WorkerEvents[P],
        *,
        birth: Birth | None = None,
    ) -> None:
        self.keepers: dict[str, Keeper] = {}
        self.placement = Placement()
        self._levels: dict[str, Isolation] = {}
        self._live: dict[str, Worker[P]] = {}
        self._by_pid: dict[int, Worker[P]] = {}
        self._retiring: set[Keeper] = set()
        self._make_spec = make_spec
        self._around = around
        self._registry = registry
        self._events = events
        self._birth = birth
        self._numbers = itertools.count(1)
        self._ids = itertools.count(1)
        self._tasks = Tasks()
        self.watch = Watch(self._over_limit)
        self._dialect = Dialect(
            welcome=self._welcome,
            ping=lambda nonce: to_worker.Ping(nonce=nonce),
            stop=lambda reason, seconds: to_worker.Stop(reason=reason, deadline_s=seconds),
        )
        crumbs.clear(around.run_dir)

    def start(self) -> None:
        """Begin to watch over the limits."""
        self.watch.start()

    # who is where

    def is_ready(self, project: Project) -> bool:
        """Whether a turn of the project can begin at once."""
        placed = self.placement.of(project.id)
        return placed is not None and placed.worker_id in self._live

    def level(self, worker_id: str) -> Isolation:
        """Return the level of the projects in that worker."""
        return self._levels[worker_id]

    def live(self, worker_id: str) -> Worker[P] | None:
        """Return the present life of that worker."""
        return self._live.get(worker_id)

    def by_number(self, number: int) -> Worker[P] | None:
        """Return that life of a worker, if it goes on."""
        return next((one for one in self._by_pid.values() if one.number == number), None)

    def having(self, project_id: str) -> list[Worker[P]]:
        """Return the workers where the project is open, or about to be: one that drains, too."""
        return [worker for worker in self._live.values() if worker.has(project_id)]

    def of_session(self, session_id: str) -> Worker[P] | None:
        """Return the worker where the session is open."""
        return next((one for one in self._live.values() if session_id in one.sessions), None)

    # placing

    async def place(self, project: Project) -> Worker[P]:
        """Return the project's worker with the project open in it, started if need be. The caller
        has the project counted. Raises `PunieError`.

        When the worker is lost meanwhile, or drains, another is looked for, `PLACE_ATTEMPTS` times
        in all. One that several share and that was given up is no place for anybody; but one that
        never came up was not brought down by a project, and another would be no better.
        """
        for _ in range(PLACE_ATTEMPTS - 1):
            try:
                return await self._place(project)
            except PunieError as error:
                if not await self._may_try_again(project, error):
                    raise
        return await self._place(project)

    async def _place(self, project: Project) -> Worker[P]:
        placed = self.placement.assign(project.id, project.level)
        child = await self._keeper(placed).ready()
        worker = self._live.get(placed.worker_id)
        if worker is None or worker.pid != child.pid:
            raise PunieError(self._keeper(placed).lost())
        if worker.is_used_up and not worker.has(project.id):
            self.drain(worker.id, "it has opened as many projects as one process may")
            return await self._place(project)
        await worker.open_project(project)
        return worker

    async def _may_try_again(self, project: Project, error: PunieError) -> bool:
        if not isinstance(error.error, ProcessLost):
            return False
        placed = self.placement.of(project.id)
        keeper = self.keepers.get(placed.worker_id) if placed else None
        if keeper is None or keeper.state is not KeeperState.FAILED:
            return True
        if placed is None or placed.isolation is Isolation.PROCESS or not keeper.was_ready:
            return False
        await self._confine(project.id, f"{placed.worker_id} was given up: {keeper.failure}")
        return True

    def _keeper(self, placed: Placed) -> Keeper:
        keeper = self.keepers.get(placed.worker_id)
        if keeper is None:
            spec = self._make_spec(placed.worker_id)
            self._levels[spec.id] = placed.isolation
            keeper = Keeper(spec, self._dialect, self, birth=self._birth)
            self.keepers[spec.id] = keeper
        return keeper

    def _welcome(self, child: Child) -> to_worker.Welcome:
        alone = self._levels[child.spec.id] is Isolation.PROCESS
        return to_worker.Welcome(
            protocol=PROTOCOL,
            version=version(),
            limits=Limits(),
            model_socket=self._around.model_socket,
            permissions=self._around.permissions,
            sandbox=self._around.sandbox,
            limits_of_process=self._around.limits if alone else None,
            crumbs=str(crumbs.make(self._around.run_dir, child.pid)),
            hidden=self._around.hidden,
            variables=self._around.variables,
        )

    def turn_began(self, worker: Worker[P]) -> None:
        """A turn was given to that worker."""
        self.watch.turn_began(worker.meter)

    def turn_ended(self, worker: Worker[P]) -> None:
        """That worker has answered a turn: if it drains, its last one ends it at once, as what
        hangs there may burn a core."""
        self.watch.turn_ended(worker.meter)
        if self.placement.draining(worker.id):
            self._retire_empty("nothing is left to do in it")

    # leaving

    def leave(self, project: Project, placed: Placed, reason: str) -> None:
        """Close the project in the worker where it was placed; that ends if nobody is left."""
        if self.placement.of(project.id) == placed:
            self.placement.leave(project.id)
        if worker := self._live.get(placed.worker_id):
            worker.close_project(project.id, reason)
            self._count_programs(project.id)
        self._retire_empty(reason)

    def drain(self, worker_id: str, reason: str) -> None:
        """Have turns that begin from now on find another worker than that one, which ends once it
        has nothing to do."""
        if self.placement.drain(worker_id, reason):
            if worker := self._live.get(worker_id):
                worker.drained_at = asyncio.get_running_loop().time()
            logs.get(child=worker_id).warning("worker.draining", reason=reason)

    def tick(self) -> None:
        """Look, about every second, for what is idle, empty or drained."""
        for id in self.placement.projects:
            project, placed = self._registry.known(id), self.placement.of(id)
            if project and placed and project.idle_s >= self._around.idle_s:
                logs.get(root=project.root).info("project.passive", after_s=round(project.idle_s))
                self.leave(project, placed, "it is idle")
        for worker in self._live.values():
            for id in list(worker.sessions):
                session = self._registry.known_session(id)
                if session and session.idle_s >= self._around.idle_s:
                    worker.close_session(id, "it is idle")
        self._retire_empty("nothing is left to do in it")

    def _retire_empty(self, reason: str) -> None:
        for id in [id for id in self.keepers if self._is_empty(id)]:
            keeper = self.keepers.pop(id)
            why = self.placement.draining(id) or reason
            if worker := self._live.pop(id, None):
                worker.retire(why)
            self.placement.retired(id)
            self._retiring.add(keeper)
            self._tasks.start(self._retire(keeper, why), name=f"retire {id}")

    def _is_empty(self, worker_id: str) -> bool:
        worker = self._live.get(worker_id)
        if worker is not None and (worker.is_busy or self._waits_for_programs(worker)):
            return False
        return bool(self.placement.draining(worker_id)) or not self.placement.sharing(worker_id)

    def _waits_for_programs(self, worker: Worker[P]) -> bool:
        """Whether background commands keep it: one that drains may burn a core meanwhile."""
        now = asyncio.get_running_loop().time()
        late = worker.drained_at is not None and now - worker.drained_at > DRAIN_GRACE
        return any(worker.programs.values()) and not late

    async def _retire(self, keeper: Keeper, reason: str) -> None:
        await keeper.close(reason)
        self._retiring.discard(keeper)

    async def close(self, reason: str) -> None:
        """Stop every worker, all at once, for good."""
        await self.watch.close()
        keepers = [*self.keepers.values(), *self._retiring]
        await asyncio.gather(*(keeper.close(reason) for keeper in keepers))

    def end_now(self, reason: str) -> None:
        """SIGKILL every worker, for good: what `close` did not come to in time."""
        for keeper in [*self.keepers.values(), *self._retiring]:
            keeper.end_now(reason)

    # the keepers' side

    def ready(self, child: Child) -> None:
        isolation = self._levels[child.spec.id]
        worker = Worker[Any](next(self._numbers), child, isolation, self._ids)
        self._live[child.spec.id] = self._by_pid[child.pid] = worker
        alone = isolation is Isolation.PROCESS
        self.watch.began(worker.meter, child.pid, self._around.limits if alone else None)

    def pong(self, child: Child, pong: Pong) -> None:
        if worker := self._by_pid.get(child.pid):
            worker.heard(pong)

    async def message(self, child: Child, message: ToSupervisor) -> None:
        worker = self._by_pid.get(child.pid)
        if worker is None:
            raise _unexpected(message)
        match message:
            case ProjectReady(project_id=id):
                worker.opened(id, None)
            case ProjectFailed(project_id=id, error=error):
                worker.opened(id, error)
            case PromptDescribed() | CommandsTold():
                worker.answered(message)
            case HalfQuarantined():
                await self._quarantined(worker, message)
            case ProgramsRunning(project_id=id, count=count):
                if worker.has(id):
                    worker.programs[id] = count
                    self._count_programs(id)
            case (
                AgentMessage()
                | StoreDelta()
                | EffectStarted()
                | EffectFinished()
                | StoreGrant()
                | StoreTrust()
            ):
                await self._events.from_worker(worker, message)
            case ModelState() | EngineReport() | DoorIs() | Hello() | Ready() | Pong():
                raise _unexpected(message)
            case _:
                assert_never(message)

    async def down(self, child: Child, exit: Exit) -> None:
        left = crumbs.take(self._around.run_dir, child.pid)
        worker = self._by_pid.pop(child.pid, None)
        if worker is None:
            return
        if self._live.get(worker.id) is worker:
            del self._live[worker.id]
        self.watch.ended(worker.meter)
        error = worker.lost(exit.reason)
        for id in crumbs.suspects(left, worker.slots):
            await self._suspect(worker, id, exit)
        for id in worker.programs:
            self._count_programs(id)
        await self._events.worker_gone(worker, worker.gone(error), error)

    def _count_programs(self, project_id: str) -> None:
        """A project may have some in a worker that drains, and in its next one."""
        if project := self._registry.known(project_id):
            counts = (worker.programs.get(project_id, 0) for worker in self._by_pid.values())
            project.running(sum(counts))

    def _over_limit(self, meter: str, reason: str) -> None:
        for worker in self._by_pid.values():
            if worker.meter == meter:
                worker.end_for(reason)

    async def _suspect(self, worker: Worker[P], project_id: str, exit: Exit) -> None:
        if worker.isolation is Isolation.INTERPRETER and not exit.asked:
            text = f"its tools were at work when {worker.id} (pid {worker.pid}) ended"
            await self._confine(project_id, f"{text}: {exit.reason}")

    async def _quarantined(self, worker: Worker[P], message: HalfQuarantined) -> None:
        where = self._registry.known(message.project_id)
        root = where.root if where else message.project_id
        text = f"{message.operation} of {root} did not end within {message.seconds:g} s"
        if worker.isolation is Isolation.INTERPRETER:
            await self._confine(message.project_id, text)
        self.drain(worker.id, text)

    async def _confine(self, project_id: str, reason: str) -> None:
        """From its next turn on the project runs alone."""
        project = self._registry.known(project_id)
        if project is not None and not project.confined:
            logs.get(root=project.root).warning("project.confined", reason=reason)
            await self._registry.confine(project, reason)


def _unexpected(message: ToSupervisor) -> ProtocolError:
    return ProtocolError(
        InvalidRequest(message=f"a worker does not send {type(message).__name__} then")
    )
