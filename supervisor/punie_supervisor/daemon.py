"""The daemon: its parts, started in order and stopped in reverse."""

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Final

from punie_protocol.backends import is_backend
from punie_protocol.client import Drafting
from punie_protocol.engine import EngineSettings
from punie_protocol.errors import ProcessLost
from punie_supervisor import child_spec, logs
from punie_supervisor import journal_ops as ops
from punie_supervisor.child_spec import Programs
from punie_supervisor.config import EMBEDDED, Config
from punie_supervisor.door import Door
from punie_supervisor.drafting import NOTHING, applied
from punie_supervisor.journal import Journal
from punie_supervisor.listener import listen
from punie_supervisor.model import ModelHost
from punie_supervisor.models import Models
from punie_supervisor.nursery import Nursery
from punie_supervisor.paths import Paths
from punie_supervisor.registry import Registry
from punie_supervisor.requests import Requests
from punie_supervisor.router import Router
from punie_supervisor.servers import Servers
from punie_supervisor.status import Reporter
from punie_supervisor.switchboard import Switchboard
from punie_supervisor.turn import Pending, error_raw
from punie_supervisor.workers import Surroundings, WorkerPool

SHUTDOWN_TIMEOUT: Final = 4.5
"""Seconds from the wish to stop until the rest is killed."""
TICK: Final = 1.0
"""Seconds between two looks at the clock."""
FLUSH_TIMEOUT: Final = 0.5
"""Seconds for clients to take their last messages."""


class Daemon:
    """One daemon, run once. `model` and `drafting` go before the config's. Raises `PunieError` when
    they do not go together."""

    def __init__(
        self,
        paths: Paths,
        config: Config,
        *,
        model: str | None = None,
        drafting: Drafting = NOTHING,
        rest: bool = False,
        programs: Programs | None = None,
        environ: Mapping[str, str] | None = None,
        question_timeout: float | None = None,
    ) -> None:
        self._paths = paths
        self._config = config
        self._model = model or config.model
        self._engine = applied(config.engine, drafting)
        self._rest = rest
        self._programs = programs or Programs()
        self._environ = os.environ if environ is None else environ
        self._question_timeout = question_timeout or config.permissions.wait_s
        self._stop = asyncio.Event()
        self._reason = ""

    def stop(self, reason: str) -> None:
        """Ask `run` to end. Idempotent."""
        self._reason = self._reason or reason
        self._stop.set()

    async def run(self, listening: Callable[[], None]) -> None:
        """Serve until `stop`; `listening` is called once clients can connect.

        Raises `PunieError` when the journal or the socket cannot be used. Ends within 5 s of
        `stop`.
        """
        journal = await Journal.open(self._paths.journal)
        try:
            lost = await journal.run(ops.interrupt_running_prompts, _interrupted())
            if lost:
                logs.get().warning("prompts.interrupted", count=lost)
            await self._serve(journal, listening)
        finally:
            await journal.close()

    async def _serve(self, journal: Journal, listening: Callable[[], None]) -> None:
        registry = Registry(journal, self._config.isolation)
        models = self._models()
        elsewhere = is_backend(self._model) or bool(self._config.servers)
        nursery = Nursery(self._programs, servers=elsewhere)
        routes = Router(question_timeout=self._question_timeout)
        board = Switchboard(journal, registry, routes, shut_down=self.stop)
        workers = WorkerPool[Pending](
            self._worker_spec, self._surroundings(), registry, board, birth=nursery.spawn
        )
        board.connect(
            workers,
            models,
            Reporter(self._paths, journal, models, workers, registry, self._config.limits),
            Requests(journal, self._paths.journal, registry, workers, models),
        )
        accepted = await journal.run(ops.accepted_prompts)
        await nursery.start()
        workers.start()
        ticking = asyncio.create_task(self._tick(board))
        deadline = asyncio.get_running_loop().time() + SHUTDOWN_TIMEOUT
        try:
            board.resume(accepted)
            async with listen(self._paths.socket, board):
                models.start(rest=self._rest)
                logs.get(pid=os.getpid()).info("daemon.listening", socket=str(self._paths.socket))
                listening()
                await self._stop.wait()
                logs.get(pid=os.getpid()).info("daemon.stopping", reason=self._reason)
                deadline = asyncio.get_running_loop().time() + SHUTDOWN_TIMEOUT
                await self._flush(board)
        finally:
            ticking.cancel()
            await self._end(board, nursery, workers, models, deadline)
            await self._end_nursery(nursery)
            # What a worker had and did not end in time. A broken journal must not fail the stop.
            await journal.submit(ops.interrupt_running_prompts, _interrupted())

    async def _flush(self, board: Switchboard) -> None:
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT):
                await board.flush()
        except TimeoutError:
            logs.get().warning("clients.not_flushed")

    async def _end(
        self,
        board: Switchboard,
        nursery: Nursery,
        workers: WorkerPool[Pending],
        models: Models,
        deadline: float,
    ) -> None:
        reason = self._reason or "the daemon failed"
        await board.tasks.cancel()
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.gather(workers.close(reason), nursery.stop())
                await asyncio.gather(models.host.close(reason), models.servers.close())
        except TimeoutError:
            workers.end_now("it did not stop in time")
            models.host.keeper.end_now("it did not stop in time")
            models.servers.kill("it did not stop in time")
        logs.get(pid=os.getpid()).info("daemon.stopped", reason=reason)

    async def _end_nursery(self, nursery: Nursery) -> None:
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT):
                await nursery.close()
        except TimeoutError:
            logs.get().warning("nursery.not_closed")

    async def _tick(self, board: Switchboard) -> None:
        while True:
            await asyncio.sleep(TICK)
            try:
                board.tick()
            except Exception:  # noqa: BLE001 - a defect is logged, and the clock goes on
                logs.get().exception("tick.defect")

    def _models(self) -> Models:
        ours = [name for name in (self._model, self._config.model) if not is_backend(name)]
        host = ModelHost(
            self._model_host_spec,
            ours[0] if ours else EMBEDDED,
            self._engine,
            fallback=None if is_backend(self._config.model) else self._config.model,
            door=Door(self._paths.openai_key, self._config.engine.openai_port),
        )
        servers = Servers(self._config.servers, str(self._paths.run_dir), self._environ)
        return Models(host, servers, self._model)

    def _surroundings(self) -> Surroundings:
        paths, config = self._paths, self._config
        ours = (paths.run_dir, paths.state_dir, paths.config_dir, paths.data_dir)
        return Surroundings(
            model_socket=str(paths.model_socket),
            permissions=config.permissions,
            sandbox=config.sandbox,
            variables={
                name: self._environ[name]
                for name in config.sandbox.environment
                if name in self._environ
            },
            limits=config.limits,
            hidden=[str(folder) for folder in ours],
            run_dir=paths.run_dir,
            idle_s=config.idle_s,
        )

    def _model_host_spec(self, model: str, settings: EngineSettings) -> child_spec.ChildSpec:
        return child_spec.model_host_spec(
            self._paths, model, self._environ, self._programs, settings
        )

    def _worker_spec(self, id: str) -> child_spec.ChildSpec:
        return child_spec.worker_spec(id, self._paths, self._environ, self._programs)


def _interrupted() -> bytes:
    error = ProcessLost(
        message="punie stopped while this prompt was under way",
        hint="send it again",
        process="supervisor",
        pid=os.getpid(),
    )
    return bytes(error_raw(error))
