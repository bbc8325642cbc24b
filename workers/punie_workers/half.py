"""One project half, wherever it runs: start, call, deadline, stop, statistics.

A place for it (an interpreter of this process, this interpreter itself; it could be a container or
another machine) says how bytes get there and back: three methods of `Half`. What a call promises
is the same in each.

What is inside the project half cannot be stopped from outside. A call that has been inside too long
quarantines the half, and `Halves` opens another one. A call that only waited too long behind
others does not: it is withdrawn, and nothing hangs.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import Any, Final

import msgspec

from punie_protocol import interp_codec
from punie_protocol.errors import Internal, Overloaded, PunieError
from punie_workers.half_calls import Answer, Call, Deed, DeedState, NeverBegun

MAX_WAITING: Final = 64
START_TIMEOUT: Final = 10.0
CALL_TIMEOUT: Final = 30.0


class HalfState(StrEnum):
    """``NEW`` -> ``RUNNING`` -> ``STOPPED``; from ``RUNNING`` also -> ``QUARANTINED``."""

    NEW = "new"
    RUNNING = "running"
    QUARANTINED = "quarantined"
    STOPPED = "stopped"


_NEXT: Final[dict[HalfState, frozenset[HalfState]]] = {
    HalfState.NEW: frozenset({HalfState.RUNNING, HalfState.QUARANTINED, HalfState.STOPPED}),
    HalfState.RUNNING: frozenset({HalfState.QUARANTINED, HalfState.STOPPED}),
    HalfState.QUARANTINED: frozenset({HalfState.STOPPED}),
    HalfState.STOPPED: frozenset(),
}


class Tally(msgspec.Struct):
    """What was done: calls that ended, those of them that ended in an error, and the seconds they
    were inside the project half, together and of the longest."""

    calls: int = 0
    failed: int = 0
    busy_s: float = 0.0
    longest_s: float = 0.0

    def count(self, seconds: float) -> None:
        """Add a call."""
        self.calls += 1
        self.busy_s += seconds
        self.longest_s = max(self.longest_s, seconds)

    def add(self, other: Tally) -> None:
        """Add what another half did."""
        self.calls += other.calls
        self.failed += other.failed
        self.busy_s += other.busy_s
        self.longest_s = max(self.longest_s, other.longest_s)


class Hung(msgspec.Struct, frozen=True):
    """A call that does not come back: its operation, and for how many seconds."""

    operation: str
    seconds: float


class Half(ABC):
    """One project's half. Used from the event loop that it was made on; owned by who made it, until
    `stop`."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.state = HalfState.NEW
        self.tally = Tally()
        self.on_hung: Callable[[Half, Hung], object] = lambda half, hung: None
        """Called once, on the loop, when a call is given up for lost, be it of a stopped half."""
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Call[Any]] = deque()
        self._inside: Call[Any] | None = None
        self.hangs = False
        """Whether a call was given up for lost: what runs it is abandoned."""
        self._ended = False

    @property
    def waiting(self) -> int:
        """Calls that have not ended yet."""
        return len(self._queue) + self._is_inside

    @property
    def _is_inside(self) -> bool:
        return self._inside is not None

    async def start(self) -> None:
        """Bring it up and open the root in it, within `START_TIMEOUT`. Raises `PunieError`."""
        try:
            self._begin()
        except (OSError, RuntimeError) as error:  # no descriptor left, or no thread
            message = f"the tools of {self.root} cannot be started: {error}"
            hint = "wait until other projects are idle, or raise limits.files in the config file"
            raise PunieError(Internal(message=message, hint=hint)) from None
        self._move(HalfState.RUNNING)
        request = interp_codec.encode_request("open", {"root": self.root})
        await self.call(request, dict, START_TIMEOUT)

    async def call[R](
        self,
        request: bytes,
        result: type[R],
        deadline: float = CALL_TIMEOUT,
        *,
        deed: Deed | None = None,
        unclaimed: Callable[[R], None] | None = None,
    ) -> R:
        """Return the typed reply to `request` within `deadline` seconds of now.

        Raises `PunieError`: `ToolFailed` from the operation, `Overloaded` when too many calls
        wait, `TimedOut` past the deadline, `NeverBegun` when the half is quarantined while the call
        waits. Cancelled or too late, a call that has not begun never runs. One that has cannot be
        stopped: its reply is dropped, or given to `unclaimed`, on the loop.

        With a `deed` the call has effects, and the deed tells afterwards whether they happened;
        cancelled after it has begun, this waits for its end, at most until the deadline. When
        that cannot be known, it raises `ToolFailed` of kind ``outcome_unknown``.
        """
        self._check()
        call = Call(request, result, unclaimed)
        call.timer = self._loop.call_later(deadline, self._expire, call, deadline)
        self._queue.append(call)
        self._next()
        try:
            await call.wait(self._loop)
        except asyncio.CancelledError:
            call.leave()
            if not call.begun:
                self._drop(call)
            elif deed is not None:
                await self._see_out(call, deed)
            raise
        try:
            if call.answer is None:
                raise call.too_late(deadline, deed)
            return call.value() if deed is None else call.settle(deed)
        except PunieError:
            self.tally.failed += 1
            raise

    def stop(self) -> None:
        """End the half once the calls so far are done; later ones fail. Does not wait; of a
        quarantined half it may never come to that. Idempotent."""
        began = self.state is not HalfState.NEW
        self.state = HalfState.STOPPED
        if began:
            self._next()

    # what a place for it does

    @abstractmethod
    def join(self, timeout: float) -> None:
        """Block until what `stop` ends has ended, `timeout` seconds at most; never on the loop."""

    @abstractmethod
    def _begin(self) -> None:
        """Bring it up, without waiting; what fails later is the answer to the calls. Raises
        `OSError` and `RuntimeError`, and then nothing is left."""

    @abstractmethod
    def _send(self, request: bytes) -> None:
        """Send the one request that is inside, without waiting: its answer goes to `_finish`."""

    @abstractmethod
    def _end(self) -> None:
        """No other request will be sent: end after the one that may be inside, without waiting."""

    def _finish(self, answer: Answer) -> None:
        """Take the answer to the call inside, on the loop."""
        call, self._inside = self._inside, None
        if call is None:
            return
        call.timer.cancel()
        self.tally.count(self._loop.time() - call.begun)
        call.finish(answer)
        self._next()

    def _lost(self, answer: Answer) -> None:
        """What runs the calls is gone, on the loop: `answer` says why to the one inside."""
        self._quarantine()
        self._finish(answer)

    # one after the other

    def _next(self) -> None:
        """Send the next call when none is inside, or end."""
        if self._queue and self._inside is None:
            call = self._inside = self._queue.popleft()
            call.begun = self._loop.time()
            self._send(call.request)
        if not self._queue and self.state is HalfState.STOPPED and not self._ended:
            self._ended = True
            self._end()

    def _drop(self, call: Call[Any]) -> None:
        """A call that has not begun never does."""
        call.timer.cancel()
        if call in self._queue:
            self._queue.remove(call)

    # deadlines

    def _expire(self, call: Call[Any], deadline: float) -> None:
        """The time of a call is over: tell who waits for it. Whether the half hangs depends on
        how long the call has been inside: most of it may have been the queue's."""
        call.expire()
        if not call.begun:
            self._drop(call)
            return
        inside = self._loop.time() - call.begun
        if inside < deadline / 2:
            call.timer = self._loop.call_later(deadline - inside, self._expire, call, deadline)
        elif not self.hangs:
            self.hangs = True
            self._quarantine()
            self.on_hung(self, Hung(call.operation(), inside))

    def _quarantine(self) -> None:
        """Take no more calls; those that have not begun never do, and may be repeated elsewhere."""
        self._move(HalfState.QUARANTINED)
        for call in list(self._queue):
            self._drop(call)
            call.finish(NeverBegun())
        self._next()

    async def _see_out(self, call: Call[Any], deed: Deed) -> None:
        """Wait for a call whose caller is cancelled, through further cancellations: the caller
        raises `asyncio.CancelledError` once the truth is known."""
        while not call.is_over:
            with suppress(asyncio.CancelledError):
                await call.wait(self._loop)
        if call.answer is None:
            deed.state = DeedState.UNKNOWN
            return
        with suppress(PunieError):  # the deed tells
            call.settle(deed)

    def _check(self) -> None:
        if self.state is not HalfState.RUNNING:
            message = f"the tools of this project are {self.state}"
            raise PunieError(Internal(message=message, hint="try again"))
        if self.waiting >= MAX_WAITING:
            message = f"{MAX_WAITING} tool calls of this project wait already"
            raise PunieError(Overloaded(message=message))

    def _move(self, state: HalfState) -> None:
        if state in _NEXT[self.state]:
            self.state = state
