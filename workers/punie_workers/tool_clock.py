"""How the time of a turn's tool calls is counted, and what is kept of each."""

import time
from collections.abc import Generator
from contextlib import contextmanager

from punie_protocol.limits import MAX_TURN_CALLS
from punie_protocol.messages.common import Isolation, Outcome, ToolTiming


class ToolClock:
    """Wall time with at least one call running (`tools`) or, instead, waiting for a permission
    (`waiting`), in seconds. The two never count the same moment: a question stops the other."""

    def __init__(self, isolation: Isolation, started: float) -> None:
        self.tools = 0.0
        self.waiting = 0.0
        self.count = 0
        self._begun = 0
        self._timings: list[ToolTiming] = []
        self._isolation: Isolation = isolation
        self._started = started
        self._running = 0
        self._asking = 0
        self._since = 0.0

    @property
    def timings(self) -> list[ToolTiming]:
        """The first `MAX_TURN_CALLS` calls, in order of their start."""
        return sorted(self._timings, key=lambda one: one.start_ms)

    @contextmanager
    def call(
        self, call_id: str, tool: str, parent: ToolCallClock | None
    ) -> Generator[ToolCallClock]:
        """Count one call while the context is open."""
        one = ToolCallClock(self, call_id, tool, parent)
        is_kept = self._begun < MAX_TURN_CALLS  # a program begins before its calls and ends last
        self._begun += 1
        self._move(running=1)
        try:
            yield one
        finally:
            self._move(running=-1)
            self.count += 1
            if is_kept:
                self._timings.append(one.timing(self._started, self._isolation))

    @contextmanager
    def asking(self) -> Generator[None]:
        """Count a wait for a permission while the context is open."""
        self._move(asking=1)
        try:
            yield
        finally:
            self._move(asking=-1)

    def _move(self, *, running: int = 0, asking: int = 0) -> None:
        now = time.perf_counter()
        if self._asking:
            self.waiting += now - self._since
        elif self._running:
            self.tools += now - self._since
        self._since = now
        self._running += running
        self._asking += asking


class ToolCallClock:
    """One call. `outcome` is set by who runs it."""

    def __init__(
        self, clock: ToolClock, call_id: str, tool: str, parent: ToolCallClock | None
    ) -> None:
        self.id = call_id
        self.tool = tool
        self.parent = parent
        self.outcome = Outcome.OK
        self._clock = clock
        self._begun = time.perf_counter()
        self._waited = 0.0

    @contextmanager
    def asking(self) -> Generator[None]:
        """Count a wait for a permission of this call, and of those it is nested in."""
        begun = time.perf_counter()
        with self._clock.asking():
            try:
                yield
            finally:
                self._wait(time.perf_counter() - begun)

    def _wait(self, seconds: float) -> None:
        self._waited += seconds
        if self.parent is not None:
            self.parent._wait(seconds)

    @property
    def parent_id(self) -> str | None:
        """The id of the call it is nested in."""
        return self.parent.id if self.parent else None

    @property
    def wait_ms(self) -> float:
        """Milliseconds waited for permissions so far."""
        return self._waited * 1000

    @property
    def duration_ms(self) -> float:
        """Milliseconds so far, without the waits."""
        return (time.perf_counter() - self._begun - self._waited) * 1000

    def timing(self, started: float, isolation: Isolation) -> ToolTiming:
        """Return what is kept; `started` is the start of the turn."""
        return ToolTiming(
            id=self.id,
            tool=self.tool,
            start_ms=round((self._begun - started) * 1000, 3),
            duration_ms=round(self.duration_ms, 3),
            outcome=self.outcome,
            isolation=isolation,
            wait_ms=round(self.wait_ms, 3),
            parent=self.parent_id or "",
        )
