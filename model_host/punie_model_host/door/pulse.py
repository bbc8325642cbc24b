"""Signs of life in a stream, and an eye on its reader."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from punie_model_host.door.limits import PULSE, SEND_DEADLINE


class Pulse:
    """A timer for one stream, as a context manager round it: it looks every `interval` seconds.
    `wrote` and `writing` are set by the stream's task. `quiet` is called when nothing was written
    since the look before; `stuck` when one write is under way at more looks than `SEND_DEADLINE`
    has of `PULSE`."""

    def __init__(
        self, quiet: Callable[[], None], stuck: Callable[[], None], interval: float
    ) -> None:
        self._quiet = quiet
        self._stuck = stuck
        self._interval = interval
        self._patience = round(SEND_DEADLINE / PULSE)
        self._waited = 0
        self.writing = False
        self.wrote = False

    def __enter__(self) -> Self:
        self._arm()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._beat)

    def _beat(self) -> None:
        self._arm()
        self._waited = self._waited + 1 if self.writing else 0
        if self._waited > self._patience:
            self._stuck()
        elif not self.writing and not self.wrote:
            self._quiet()
        self.wrote = False
