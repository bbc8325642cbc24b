"""What the steps of one turn took."""

import time
from collections.abc import Generator
from contextlib import contextmanager

import msgspec

from punie_protocol.messages.common import ModelTiming, Usage
from punie_protocol.messages.to_model_client import Finished, StepTimings, StopReason


class ModelTotals(msgspec.Struct):
    """What the model reported, summed over the steps of one turn, failed ones and summaries too;
    milliseconds. `started` (of the turn) and `first_token` are `time.perf_counter` readings.
    `stop_reason` is that of the last answer."""

    usage: Usage = Usage()
    queue: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    first_token: float | None = None
    stop_reason: StopReason | None = None
    started: float = msgspec.field(default_factory=time.perf_counter)
    steps: list[ModelTiming] = msgspec.field(default_factory=list[ModelTiming])

    def add(self, finished: Finished, begun: float) -> None:
        """Take the end of a step of the turn; `begun` is the reading when it was asked for."""
        self.add_aside(finished, begun)
        self.stop_reason = finished.stop_reason

    def add_aside(self, finished: Finished, begun: float) -> None:
        """Take the end of a request that is no step of the turn's own."""
        self._add(finished.usage, finished.timings, begun)

    def add_failed(self, usage: Usage, begun: float, first: float | None = None) -> None:
        """Take the end of a step that failed or was cancelled. What it took was spent on waiting
        for the model: `prefill` until the reading `first`, when something came, `decode` since."""
        now = time.perf_counter()
        until = now if first is None else first
        timings = StepTimings(queue=0.0, prefill=_ms(until - begun), decode=_ms(now - until))
        self._add(usage, timings, begun)

    def add_unsent(self, begun: float) -> None:
        """Take a step whose request never reached the model: it waited for a connection."""
        queue = _ms(time.perf_counter() - begun)
        self._add(Usage(), StepTimings(queue=queue, prefill=0.0, decode=0.0), begun)

    @contextmanager
    def queueing(self) -> Generator[None]:
        """Count as `queue`, of no step, while the context is open."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.queue += _ms(time.perf_counter() - begun)

    def _add(self, usage: Usage, timings: StepTimings, begun: float) -> None:
        self.usage += usage
        self.queue += timings.queue
        self.prefill += timings.prefill
        self.decode += timings.decode
        self.steps.append(
            ModelTiming(
                start_ms=_ms(begun - self.started),
                wall_ms=_ms(time.perf_counter() - begun),
                queue=timings.queue,
                prefill=timings.prefill,
                decode=timings.decode,
                usage=usage,
            )
        )

    def token(self) -> None:
        """Note that a token came."""
        if self.first_token is None:
            self.first_token = time.perf_counter()


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 3)
