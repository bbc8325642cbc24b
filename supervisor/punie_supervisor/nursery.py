"""Where workers come from: forked, from a spare, or started from nothing.

On Linux a fork server is started with the first worker that is wanted, and forks that one and all
others. Elsewhere a fork is not safe with the system's frameworks; there a spare that has imported
everything waits (66 MB, the memory of a worker) and the next is started when it is taken.
Whatever is not there, gone or late: the worker is started from nothing, slower but the same.
"""

import asyncio
import contextlib
import errno
import sys
import time
from collections.abc import Callable
from typing import Final, assert_never

from punie_protocol.client import WorkerStart
from punie_supervisor import logs, strays
from punie_supervisor.child import Child, ChildState
from punie_supervisor.child_spec import (
    ChildSpec,
    Programs,
    Restart,
    fork_server_spec,
    spare_spec,
)
from punie_supervisor.fork_server import ForkServer, ForkServerState
from punie_supervisor.restart_policy import GiveUp, LetRest, RestartPolicy, StartAgain
from punie_supervisor.tasks import Tasks

WARM_WAIT: Final = 15.0
"""Seconds that a worker waits for a fork server that is getting warm, before it is started from
nothing: that would take nearly as long, and more memory for good."""


def default_start() -> WorkerStart:
    """Return how workers start on this platform."""
    return WorkerStart.FORK if sys.platform == "linux" else WorkerStart.SPARE


class Nursery:
    """Owns the fork server and the spare, from `start` to `close`; workers belong to who asked.

    `servers`: the user has models of other servers; workers then share what those need (16 MB). A
    `way` other than the platform's is for tests and measurements.
    """

    def __init__(
        self,
        programs: Programs | None = None,
        *,
        servers: bool = False,
        way: WorkerStart | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._programs = programs or Programs()
        self._servers = servers
        self._way = way or default_start()
        self._clock = clock
        self._tasks = Tasks()
        self._open = contextlib.ExitStack()
        self._policy = RestartPolicy(Restart.PERMANENT)
        self._not_before = 0.0
        self._starting = asyncio.Lock()
        self._server: ForkServer | None = None
        self._spare: Child | None = None
        self._stopped = False
        self._log = logs.get(child="nursery")

    @property
    def server_pid(self) -> int | None:
        """Pid of the fork server, if there is one."""
        gone = self._server is None or self._server.state is ForkServerState.GONE
        return None if gone or self._server is None else self._server.pid

    async def start(self) -> None:
        """Get ready; no process is started yet."""
        try:
            self._open.enter_context(strays.adopting())
        except OSError as error:  # a forked worker could not become our child
            self._log.warning("nursery.no_orphans", reason=str(error))
            self._way = WorkerStart.SPAWN

    async def spawn(self, spec: ChildSpec) -> Child:
        """Return a new child of `spec`, from the fastest place that has one. Raises `OSError` when
        its program cannot be run, or after `stop`. To be called from the main thread."""
        child = await self._warm_child(spec)
        if child is None and self._stopped:
            raise OSError(errno.ECANCELED, "no worker is started any more")
        return child or await Child.spawn(spec)

    async def _warm_child(self, spec: ChildSpec) -> Child | None:
        if (
            self._stopped or spec.command != Programs().worker
        ):  # another program: nobody has it warm
            return None
        match self._way:
            case WorkerStart.FORK:
                return await self._forked(spec)
            case WorkerStart.SPARE:
                return await self._from_spare(spec)
            case WorkerStart.SPAWN:
                return None
            case _:
                assert_never(self._way)

    async def stop(self) -> None:
        """End the fork server and the spare; who waits for a worker gets none. Idempotent."""
        self._stopped = True
        await self._tasks.cancel()
        async with self._starting:  # one that is being started now is there then
            if self._server is not None:
                await self._server.close()
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.kill("the nursery closes")
            await spare.finish()

    async def close(self) -> None:
        """`stop`, and be given no orphans any more: to be called when all workers have ended."""
        await self.stop()
        self._open.close()

    # forked

    async def _forked(self, spec: ChildSpec) -> Child | None:
        try:
            server = await self._running(spec)
            if server is None or not await _in_time(server):
                return None
            return await server.bear(spec)
        except OSError as error:  # TimeoutError too
            self._log.warning("nursery.not_forked", worker=spec.id, reason=str(error))
            return None

    async def _running(self, spec: ChildSpec) -> ForkServer | None:
        """Return the fork server, started if it may be; ``None``: not now."""
        async with self._starting:
            if self._server is not None and self._server.state is ForkServerState.GONE:
                await self._bury(self._server)
            if self._server is None and not self._stopped and self._may_start():
                warm = fork_server_spec(spec, self._programs, servers=self._servers)
                self._server = await ForkServer.start(warm)
            return self._server

    async def _bury(self, server: ForkServer) -> None:
        self._server = None
        await server.close()
        match self._policy.ended(self._clock(), failed=True):
            case StartAgain(after_s=seconds):
                self._not_before = self._clock() + seconds
            case GiveUp(reason=reason):
                self._log.error("nursery.given_up", reason=f"{server.failure}; {reason}")
            case LetRest():
                pass

    def _may_start(self) -> bool:
        now = self._clock()
        return now >= self._not_before and self._policy.may_start(now)

    # spares

    async def _from_spare(self, spec: ChildSpec) -> Child | None:
        child, self._spare = self._spare, None
        self._tasks.start(self._prepare(spec), name="next spare")
        if child is None:
            return None
        if _is_fit(child, spec):
            child.rename(spec, WorkerStart.SPARE)
            return child
        child.kill("it is not like the worker that is wanted")
        exit = await child.finish()
        self._log.warning("nursery.spare_lost", reason=exit.reason)
        return None

    async def _prepare(self, spec: ChildSpec) -> None:
        """Start the next spare, unless one is there."""
        if self._spare is not None or self._stopped:
            return
        try:
            self._spare = await Child.spawn(spare_spec(spec))
        except OSError as error:
            self._log.warning("nursery.no_spare", reason=str(error))


def _is_fit(spare: Child, spec: ChildSpec) -> bool:
    """Whether the spare lives, and is what a worker of that spec would be."""
    lives = spare.state is not ChildState.ENDED and not spare.link.is_closed
    same = spare.spec.environment == spec.environment and spare.spec.cwd == spec.cwd
    return lives and same


async def _in_time(server: ForkServer) -> bool:
    async with asyncio.timeout(WARM_WAIT):
        return await server.warm()
