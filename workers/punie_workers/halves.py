"""The project half that answers now: another one when the last is quarantined."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from punie_protocol.errors import Internal, PunieError
from punie_workers.half_calls import Deed
from punie_workers.project_half import CALL_TIMEOUT, HalfState, ProjectHalf

MAX_ABANDONED: Final = 3
"""Threads that a worker process bears to lose: each may burn a core until the process ends."""

_log = logging.getLogger(__name__)


class Opened(msgspec.Struct):
    """What the project half opened; the descriptor is the host half's to close."""

    fd: int


class Abandoned:
    """Counts the abandoned halves of this worker process. Past `MAX_ABANDONED` it calls `leave`:
    the supervisor puts a fresh process in its place."""

    def __init__(self, leave: Callable[[], object]) -> None:
        self._leave = leave
        self._count = 0

    def add(self, root: str) -> None:
        """Count one; raises `PunieError` when there shall be no other."""
        self._count += 1
        _log.error("%s: its interpreter hangs; thread %d abandoned", root, self._count)
        if self._count > MAX_ABANDONED:
            self._leave()
            message = f"{self._count} interpreters of this worker hang; it ends"
            raise PunieError(Internal(message=message, hint="try again"))


class Halves:
    """One project's halves, one after the other. Used from one event loop."""

    def __init__(self, root: str, abandoned: Abandoned) -> None:
        self._abandoned = abandoned
        self._half = ProjectHalf(root)
        self._replacing = asyncio.Lock()

    @property
    def root(self) -> str:
        """The project's folder, an absolute real path."""
        return self._half.root

    async def start(self) -> None:
        """Open the first. Raises `PunieError`."""
        await self._half.start()

    async def call[R](
        self,
        request: bytes,
        result: type[R],
        deadline: float = CALL_TIMEOUT,
        *,
        deed: Deed | None = None,
        unclaimed: Callable[[R], None] | None = None,
    ) -> R:
        """Call as `ProjectHalf.call` does, in a half that is not quarantined."""
        async with self._replacing:
            if self._half.state is HalfState.QUARANTINED:
                await self._replace()
        return await self._half.call(request, result, deadline, deed=deed, unclaimed=unclaimed)

    @asynccontextmanager
    async def opened[R: Opened](self, request: bytes, result: type[R]) -> AsyncGenerator[R]:
        """Yield what the call of `request` opened; afterwards, and when it comes too late for
        anybody, it is closed."""
        found = await self.call(request, result, unclaimed=_close)
        try:
            yield found
        finally:
            _close(found)

    def stop(self) -> None:
        """End the half as `ProjectHalf.stop` does."""
        self._half.stop()

    async def _replace(self) -> None:
        old = self._half
        self._abandoned.add(old.root)
        new = ProjectHalf(old.root)
        try:
            await new.start()
        except BaseException:
            new.stop()
            raise
        if old.state is HalfState.STOPPED:  # the project was closed meanwhile
            new.stop()
            return
        old.stop()
        self._half = new


def _close(opened: Opened) -> None:
    os.close(opened.fd)
