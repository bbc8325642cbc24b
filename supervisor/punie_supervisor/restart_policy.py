"""When an ended child is started again. Pure: events and the clock in, a decision out.

Erlang's rule: more than `intensity` restarts within `period_s` seconds and the child is given
up. The first restart in a period is immediate, each further one waits twice as long.
"""

from collections import deque
from typing import Final

import msgspec

from punie_supervisor.child_spec import Restart

FIRST_BACKOFF: Final = 0.25
"""Seconds before the second restart of a period."""
MAX_BACKOFF: Final = 30.0
"""Longest wait, seconds."""


class StartAgain(msgspec.Struct, frozen=True):
    """Start the child again after `after_s` seconds."""

    after_s: float


class LetRest(msgspec.Struct, frozen=True):
    """It ended as it may; nothing to do until it is wanted again."""


class GiveUp(msgspec.Struct, frozen=True):
    """It fails too often; `RestartPolicy.may_start` says when it may be tried again."""

    reason: str


type Decision = StartAgain | LetRest | GiveUp


class RestartPolicy:
    """The restarts of one child."""

    def __init__(self, restart: Restart, *, intensity: int = 5, period_s: float = 180.0) -> None:
        self._restart = restart
        self._intensity = intensity
        self._period_s = period_s
        self._restarts: deque[float] = deque()

    def ended(self, now: float, *, failed: bool, hopeless: bool = False) -> Decision:
        """Decide after an end nobody asked for. `hopeless`: the next start must fail too."""
        self._forget(now)
        if hopeless:
            self._restarts.extend([now] * self._intensity)  # as if all had been tried
            return GiveUp("it cannot work with this daemon; run: punie restart")
        match self._restart:
            case Restart.TEMPORARY:
                return LetRest()
            case Restart.TRANSIENT if not failed:
                return LetRest()
            case _:
                return self._again(now)

    def may_start(self, now: float) -> bool:
        """Whether a given-up child may be tried again: its period has passed."""
        self._forget(now)
        return len(self._restarts) < self._intensity

    def forgive(self) -> None:
        """Forget the past: what failed will be started differently."""
        self._restarts.clear()

    def _again(self, now: float) -> Decision:
        if len(self._restarts) >= self._intensity:
            times = f"{self._intensity} restarts within {self._period_s:g} s"
            again = "what needs it tries again once that time has passed, or after: punie restart"
            return GiveUp(f"{times} did not help; {again}")
        nth = len(self._restarts)
        self._restarts.append(now)
        return StartAgain(min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** (nth - 1)) if nth else 0.0)

    def _forget(self, now: float) -> None:
        while self._restarts and now - self._restarts[0] >= self._period_s:
            self._restarts.popleft()
