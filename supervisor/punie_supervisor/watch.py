"""Whether workers keep to their limits: looked at every `EVERY` seconds while one has a turn, and
every `EVERY_IDLE` seconds while there are any. A look costs 1.6 ms of CPU time a worker.

`Meter` and `over` are pure; `Watch` samples in a thread, so that the loop does not wait for it.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final

from punie_protocol.client import WorkerUsage
from punie_protocol.isolation import WorkerLimits
from punie_supervisor import logs, usage
from punie_supervisor.usage import Sample

EVERY: Final = 2.0
EVERY_IDLE: Final = 10.0
_MB: Final = 1024 * 1024

type Sampler = Callable[[int], Sample]


def over(used: WorkerUsage, limits: WorkerLimits) -> str:
    """Return why a worker that uses so much is to be ended, or nothing. Says what it used, what it
    may, and the setting."""
    memory_mb = used.memory_bytes / _MB
    if memory_mb > limits.memory_mb:
        return _reason(f"{memory_mb:.0f} MB of memory", "memory_mb", limits.memory_mb)
    if used.cpu_s > limits.cpu_s:
        return _reason(f"{used.cpu_s:.0f} s of CPU time", "cpu_s", limits.cpu_s)
    if used.processes > limits.processes:
        return _reason(f"{used.processes} processes", "processes", limits.processes)
    if used.files > limits.files:
        return _reason(f"{used.files} open files in one process", "files", limits.files)
    return ""


def _reason(used: str, name: str, limit: float) -> str:
    return f"it used {used}, over limits.{name} = {limit:g}"


class Meter:
    """One life of a worker process: CPU time counts from when its first turn began, or its last
    ended. The mark is what the last sample said, so what was used since then counts too."""

    def __init__(self, pid: int, limits: WorkerLimits | None) -> None:
        self.pid = pid
        self.limits = limits
        self.used: WorkerUsage | None = None
        self._turns = 0
        self._cpu_s = 0.0
        self._mark = 0.0

    @property
    def has_turn(self) -> bool:
        """Whether a turn runs there."""
        return self._turns > 0

    def turn_began(self) -> None:
        """A turn began there."""
        self._turns += 1
        if self._turns == 1:
            self._mark = self._cpu_s

    def turn_ended(self) -> None:
        """A turn ended there."""
        self._turns = max(0, self._turns - 1)
        if not self._turns:
            self._mark = self._cpu_s

    def take(self, sample: Sample) -> str:
        """Note what it uses now; return why it is to be ended, or nothing. A process that exits
        takes its CPU time along if nobody waited for it: time never runs back here."""
        self._cpu_s = max(self._cpu_s, sample.cpu_s)
        self.used = WorkerUsage(
            memory_bytes=sample.memory_bytes,
            cpu_s=self._cpu_s - self._mark,
            processes=sample.processes,
            files=sample.files,
        )
        return over(self.used, self.limits) if self.limits is not None else ""


class Watch:
    """Watches the workers between `began` and `ended`, from `start` to `close`.

    `kill` is called, on the loop, with the id of a worker over one of its limits, and the reason.
    """

    def __init__(
        self,
        kill: Callable[[str, str], object],
        *,
        sampler: Sampler = usage.sample,
        every_s: float = EVERY,
    ) -> None:
        self._kill = kill
        self._sampler = sampler
        self._every_s = every_s
        self._meters: dict[str, Meter] = {}
        self._some = asyncio.Event()
        self._turn = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look. While there are no workers nothing runs."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="watch")

    async def close(self) -> None:
        """Look no more. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def began(self, worker_id: str, pid: int, limits: WorkerLimits | None) -> None:
        """A worker process has begun; without limits it is only looked at."""
        self._meters[worker_id] = Meter(pid, limits)
        self._some.set()

    def ended(self, worker_id: str) -> None:
        """It is over."""
        self._meters.pop(worker_id, None)
        self._settle()

    def turn_began(self, worker_id: str) -> None:
        """A turn began in that worker."""
        if meter := self._meters.get(worker_id):
            meter.turn_began()
            self._turn.set()

    def turn_ended(self, worker_id: str) -> None:
        """A turn ended in that worker."""
        if meter := self._meters.get(worker_id):
            meter.turn_ended()
            self._settle()

    def usage(self, worker_id: str) -> WorkerUsage | None:
        """Return what that worker used at the last look."""
        meter = self._meters.get(worker_id)
        return meter.used if meter else None

    async def look(self) -> None:
        """Look once, now."""
        meters = list(self._meters.items())
        pids = [meter.pid for _, meter in meters]
        samples = await asyncio.to_thread(_samples, self._sampler, pids)
        for (id, meter), sample in zip(meters, samples, strict=True):
            if self._meters.get(id) is meter and (reason := meter.take(sample)):
                logs.get().warning("worker.over_limit", worker=id, reason=reason)
                self._kill(id, reason)

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            await self._pause()
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - the limits hold for the others, and next time
                logs.get().exception("watch.failed")

    async def _pause(self) -> None:
        """Wait for the time of the next look; with the first turn after a while, that is now."""
        if self._turn.is_set():
            await asyncio.sleep(self._every_s)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._every_s * EVERY_IDLE / EVERY):
                await self._turn.wait()

    def _settle(self) -> None:
        """Forget what there is no more."""
        if not self._meters:
            self._some.clear()
        if not any(meter.has_turn for meter in self._meters.values()):
            self._turn.clear()


def _samples(sampler: Sampler, pids: Sequence[int]) -> list[Sample]:
    return [sampler(pid) for pid in pids]
