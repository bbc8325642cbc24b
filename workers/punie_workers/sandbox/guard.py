"""What all programs of one sandbox use together, and its end when that is too much.

The kernel's own limits hold for each process, and the one on their number not for root. So the
whole is counted from outside, now and then: what ends a fork bomb, or an allocation spread over
many processes, is this.
"""

import asyncio
import sys
from typing import Final, Protocol

import msgspec

from punie_workers.sandbox.confinement import ProgramLimits

INTERVAL_S: Final = 0.1
"""Seconds between two counts."""


class Census(msgspec.Struct, frozen=True):
    """How many processes live in a sandbox, bytes of memory they and its temporary folders hold,
    and CPU seconds that those alive have used."""

    processes: int
    memory: int
    cpu_s: float


class Over(msgspec.Struct, frozen=True):
    """A limit that all programs of a sandbox together went over: ``processes`` or ``memory``."""

    what: str
    limit: int
    actual: int

    @property
    def message(self) -> str:
        """Return it in words."""
        if self.what == "memory":
            took, limit = self.actual // 1024**2, self.limit // 1024**2
            return f"the programs took {took} MB of memory together, {limit} MB are allowed"
        return f"{self.actual} processes ran at once, {self.limit} are allowed"


class Counting(Protocol):
    """How an operating system tells of a sandbox, by the process that was started as one."""

    def census(self, process_pid: int, *, exact: bool) -> Census:
        """Count. Unless `exact`, which takes a while for large processes, memory that processes
        share may count for each of them."""
        ...

    def runs(self, process_pid: int) -> bool:
        """Whether it runs still: one that has ended stays in the table until its parent asks."""
        ...

    def end(self, process_pid: int) -> None:
        """Kill everything in it."""
        ...


def counting() -> Counting:
    """Return the way of this machine."""
    if sys.platform == "linux":
        from punie_workers.sandbox.counting_linux import Linux

        return Linux()
    from punie_workers.sandbox.counting_anywhere import Anywhere

    return Anywhere()


class Guard:
    """Watches one sandbox. Holds nothing between two counts."""

    def __init__(self, limits: ProgramLimits, how: Counting | None = None) -> None:
        self._limits = limits
        self._how = how or counting()

    async def watch(self, process_pid: int) -> Over | None:
        """Count until the process that was started as the sandbox has ended (``None``), or is over
        a limit: then everything in the sandbox was killed, and the process ends by itself."""
        while self._how.runs(process_pid):
            if over := await asyncio.to_thread(self._look, process_pid):
                self._how.end(process_pid)
                return over
            await asyncio.sleep(INTERVAL_S)
        return None

    def _look(self, process_pid: int) -> Over | None:
        """Return the limit that the sandbox is over. Memory is counted exactly only once it seems
        to be too much."""
        over = self.judged(self._how.census(process_pid, exact=False))
        if over is None or over.what != "memory":
            return over
        return self.judged(self._how.census(process_pid, exact=True))

    def judged(self, found: Census) -> Over | None:
        """Return the limit that `found` is over. Pure."""
        limits = self._limits
        if found.processes > limits.processes:
            return Over("processes", limits.processes, found.processes)
        if found.memory > limits.memory:
            return Over("memory", limits.memory, found.memory)
        return None
