"""What is measured of one request to another model server: it says nothing of its own times."""

import time

from pydantic_ai.messages import FinishReason
from pydantic_ai.usage import RequestUsage

from punie_protocol.messages.common import Usage
from punie_protocol.messages.to_model_client import Finished, StepTimings, StopReason
from punie_workers.totals import ModelTotals

_REASONS: dict[FinishReason | None, StopReason] = {
    "length": StopReason.LENGTH,
    "tool_call": StopReason.TOOL_CALLS,
}


class ServerStep:
    """One request of a turn: `prefill` is the wait for the first event, `decode` the rest; what
    the server queued is part of `prefill`. Begins when it is made. `aside` marks one that is no
    step of the turn's own."""

    def __init__(self, totals: ModelTotals, *, aside: bool) -> None:
        self._totals = totals
        self._aside = aside
        self._begun = time.perf_counter()
        self._first: float | None = None
        self._over = False

    def token(self) -> None:
        """Note that something came."""
        if self._first is None:
            self._first = time.perf_counter()
            if not self._aside:
                self._totals.token()

    def finish(self, usage: RequestUsage, reason: FinishReason | None) -> None:
        """Add what it took to the turn's totals."""
        self._over = True
        now = time.perf_counter()
        first = now if self._first is None else self._first
        prefill, decode = _ms(first - self._begun), _ms(now - first)
        finished = Finished(
            request_id=0,
            stop_reason=_REASONS.get(reason, StopReason.STOP),
            usage=_usage(usage),
            timings=StepTimings(queue=0.0, prefill=prefill, decode=decode),
        )
        add = self._totals.add_aside if self._aside else self._totals.add
        add(finished, self._begun)

    def fail(self, usage: RequestUsage) -> None:
        """Add what one took that failed or was cancelled; nothing when it has ended before."""
        if not self._over:
            self._over = True
            self._totals.add_failed(_usage(usage), self._begun, self._first)


def _usage(usage: RequestUsage) -> Usage:
    return Usage(
        input_tokens=usage.input_tokens,
        cached_tokens=usage.cache_read_tokens,
        output_tokens=usage.output_tokens,
    )


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 3)
