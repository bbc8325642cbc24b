"""What all programs of one sandbox use together, and its end when that is too much.

The kernel's own limits hold for each process, and the one on their number not for root. So the
whole is counted from outside, now and then: what ends a fork bomb, or an allocation spread over
many processes, is this.
"""

import asyncio
import sys
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from punie_workers.sandbox.confinement import ProgramLimits

INTERVAL_S: Final = 0.1
"""Seconds between two counts."""


class Census(msgspec.Struct, frozen=True):
    """How many processes live in a sandbox, bytes of memory they and its temporary folders hold,
    and CPU seconds that those alive have used, and those that they saw the end of."""

    processes: int
    memory: int
    cpu_s: float


class Over(msgspec.Struct, frozen=True):
    """A limit that all programs of a sandbox, or of all that share one, together went over:
    ``processes``, ``memory`` or ``cpu``."""

    what: str
    limit: int
    actual: int

    @property
    def message(self) -> str:
        """Return it in words."""
        if self.what == "memory":
            took, limit = self.actual // 1024**2, self.limit // 1024**2
            return f"the programs took {took} MB of memory together, {limit} MB are allowed"
        if self.what == "cpu":
            return f"the programs took {self.actual} s of CPU together, {self.limit} s are allowed"
        return f"{self.actual} processes ran at once, {self.limit} are allowed"


class Replaced(msgspec.Struct, frozen=True):
    """A protected path in whose place somebody outside put another: a program in the sandbox may
    have changed that one already."""

    path: str

    @property
    def message(self) -> str:
        """Return it in words."""
        return f"'{self.path}' was replaced from outside, which takes its protection away"


class Shared:
    """What all sandboxes that share their limits use, as each was last counted."""

    def __init__(self) -> None:
        self._found: dict[int, Census] = {}

    def count(self, process_pid: int, found: Census) -> None:
        """One was counted."""
        self._found[process_pid] = found

    def forget(self, process_pid: int) -> None:
        """One has ended."""
        self._found.pop(process_pid, None)

    def known(self) -> list[int]:
        """Return those that have not ended."""
        return list(self._found)

    def with_others(self, process_pid: int) -> Census:
        """Return what they use together; of one that is not the largest, what it uses itself: the
        largest is to end. CPU is each one's own."""
        found = self._found[process_pid]
        others = [one for pid, one in list(self._found.items()) if pid != process_pid]
        processes, memory = found.processes, found.memory
        if all(one.processes <= processes for one in others):
            processes += sum(one.processes for one in others)
        if all(one.memory <= memory for one in others):
            memory += sum(one.memory for one in others)
        return Census(processes, memory, found.cpu_s)


def _nothing() -> None:
    return None


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

    def __init__(
        self,
        limits: ProgramLimits,
        how: Counting | None = None,
        replaced: Callable[[], str | None] = _nothing,
        shared: Shared | None = None,
    ) -> None:
        """`replaced` is that of the `Confined` which was started; `shared` is of all sandboxes that
        have `limits` together."""
        self._limits = limits
        self._how = how or counting()
        self._replaced = replaced
        self._shared = shared or Shared()

    async def watch(self, process_pid: int) -> Over | Replaced | None:
        """Look until the process that was started as the sandbox has ended (``None``), is over
        a limit, or can change what was protected: then everything in the sandbox was killed, and
        the process ends by itself."""
        try:
            while self._how.runs(process_pid):
                if wrong := await asyncio.to_thread(self._look, process_pid):
                    self._how.end(process_pid)
                    return wrong
                await asyncio.sleep(INTERVAL_S)
        finally:
            self._shared.forget(process_pid)
        return None

    def _look(self, process_pid: int) -> Over | Replaced | None:
        """Return what is wrong. Memory is counted exactly only once it seems to be too much."""
        if path := self._replaced():
            return Replaced(path)
        self._shared.count(process_pid, self._how.census(process_pid, exact=False))
        over = self.judged(self._shared.with_others(process_pid))
        if over is None or over.what != "memory":
            return over
        for pid in self._shared.known():
            self._shared.count(pid, self._how.census(pid, exact=True))
        return self.judged(self._shared.with_others(process_pid))

    def judged(self, found: Census) -> Over | None:
        """Return the limit that `found` is over. Pure."""
        limits = self._limits
        if found.processes > limits.processes:
            return Over("processes", limits.processes, found.processes)
        if found.memory > limits.memory:
            return Over("memory", limits.memory, found.memory)
        if limits.together_s is not None and found.cpu_s > limits.together_s:
            return Over("cpu", limits.together_s, int(found.cpu_s))
        return None
