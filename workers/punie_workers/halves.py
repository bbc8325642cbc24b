"""The project half that answers now: another one when the last hangs or broke."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from punie_protocol.errors import Internal, PunieError
from punie_protocol.messages.common import HalfStatus
from punie_workers.half import CALL_TIMEOUT, Half, HalfState, Hung, Tally
from punie_workers.half_calls import Deed, NeverBegun
from punie_workers.project_half import ProjectHalf

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


def _nobody(operation: str, seconds: float) -> None:
    """Tell nobody."""


class Halves:
    """One project's halves, one after the other. Used from one event loop.

    `make` says where they run. `on_quarantined` is called once, on the loop, for each half that
    hangs, with the operation and the seconds it has been inside.
    """

    def __init__(
        self,
        root: str,
        abandoned: Abandoned,
        make: Callable[[str], Half] = ProjectHalf,
        on_quarantined: Callable[[str, float], object] = _nobody,
    ) -> None:
        self._abandoned = abandoned
        self._make = make
        self._on_quarantined = on_quarantined
        self._before = Tally()
        self._replaced = 0
        self._counted: Half | None = None
        self._half = self._new(root)
        self._replacing = asyncio.Lock()

    @property
    def root(self) -> str:
        """The project's folder, an absolute real path."""
        return self._half.root

    def status(self, project_id: str) -> HalfStatus:
        """Return what was done since `start`; what a half still does when another has taken its
        place is not in it."""
        before, now = self._before, self._half.tally
        return HalfStatus(
            project_id=project_id,
            calls=before.calls + now.calls,
            failed=before.failed + now.failed,
            busy_ms=(before.busy_s + now.busy_s) * 1000,
            longest_ms=max(before.longest_s, now.longest_s) * 1000,
            waiting=self._half.waiting,
            replaced=self._replaced,
        )

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
        """Call as `Half.call` does, in a half that is not quarantined: a call that had not begun
        in one that is begins anew, with its whole deadline, in the next."""
        while True:
            half = await self._usable()
            try:
                return await half.call(request, result, deadline, deed=deed, unclaimed=unclaimed)
            except NeverBegun:
                if self._half.state is HalfState.STOPPED:
                    raise

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
        """End the half as `Half.stop` does."""
        self._half.stop()

    def join(self, timeout: float) -> None:
        """Block until the half has ended as `Half.join` does; never on the loop."""
        self._half.join(timeout)

    async def _usable(self) -> Half:
        async with self._replacing:
            if self._half.state is HalfState.QUARANTINED:
                await self._replace()
            return self._half

    async def renew(self) -> None:
        """Put a fresh half in the place of the present one, whose memory goes back once the calls
        under way there have ended. Raises `PunieError`, and then the present one stays."""
        async with self._replacing:
            if self._half.state is HalfState.RUNNING:
                await self._replace()

    async def _replace(self) -> None:
        old = self._half
        if old.hangs and old is not self._counted:  # its successor may have failed before
            self._counted = old
            self._abandoned.add(old.root)
        new = self._new(old.root)
        try:
            await new.start()
        except BaseException:
            new.stop()
            if new.hangs:
                self._abandoned.add(new.root)
            raise
        if old.state is HalfState.STOPPED:  # the project was closed meanwhile
            new.stop()
            return
        old.stop()
        self._before.add(old.tally)
        self._replaced += old.hangs
        self._half = new

    def _new(self, root: str) -> Half:
        half = self._make(root)
        half.on_hung = self._hung
        return half

    def _hung(self, half: Half, hung: Hung) -> None:
        _log.error("%s: %s hangs since %g s", half.root, hung.operation, hung.seconds)
        self._on_quarantined(hung.operation, hung.seconds)


def _close(opened: Opened) -> None:
    os.close(opened.fd)
