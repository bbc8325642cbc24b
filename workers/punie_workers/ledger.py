"""The worker's end of the journal: what must be durable before a turn goes on.

Only the supervisor writes the journal; here are the messages that ask for it and the wait for the
answer.
"""

import asyncio
import itertools
from collections.abc import Callable
from typing import Final

import msgspec

from punie_protocol.errors import LinkClosed, PunieError, RemoteError, TimedOut, WireError
from punie_protocol.link import FrameLink
from punie_protocol.messages.common import Message
from punie_protocol.messages.to_supervisor import (
    EffectFinished,
    EffectStarted,
    StoreDelta,
    StoreGrant,
    StoreTrust,
)
from punie_protocol.messages.to_worker import Effect, ToWorker
from punie_protocol.permissions import Grant

STORE_TIMEOUT: Final = 10.0
"""Seconds the journal may take."""


class Ledger:
    """Requests to the journal over one link. Every method but the `nowait` ones returns once it is
    on the disk, and raises `PunieError` when it is not, or nobody said so in `STORE_TIMEOUT`."""

    def __init__(self, link: FrameLink[ToWorker]) -> None:
        self._link = link
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[WireError | None]] = {}

    def stored(self, request_id: int, error: WireError | None) -> None:
        """Take the supervisor's answer; one that is too late is dropped."""
        waiting = self._waiting.pop(request_id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(error)

    async def trust(self, project_id: str, digest: str) -> None:
        """Store that the user trusts the project's own settings."""
        await self._store(
            lambda id: StoreTrust(request_id=id, project_id=project_id, digest=digest)
        )

    def of(self, session_id: str) -> SessionLedger:
        """Return the part for one session."""
        return SessionLedger(self, session_id)

    async def _store(self, message: Callable[[int], Message]) -> None:
        request_id = next(self._ids)
        stored: asyncio.Future[WireError | None] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = stored
        try:
            async with asyncio.timeout(STORE_TIMEOUT):
                await self._link.send(message(request_id))
                error = await stored
        except TimeoutError:
            text = f"the journal did not answer within {STORE_TIMEOUT:g} s"
            error = TimedOut(message=text, hint="see: punie logs", limit_s=STORE_TIMEOUT)
            raise PunieError(error) from None
        finally:
            self._waiting.pop(request_id, None)
        if error is not None:
            raise RemoteError(error)

    def _tell(self, message: Callable[[int], Message]) -> None:
        try:
            self._link.send_nowait(message(next(self._ids)))
        except LinkClosed:
            return  # the supervisor is gone, and with it this process


class SessionLedger:
    """What one session stores."""

    def __init__(self, ledger: Ledger, session_id: str) -> None:
        self._ledger = ledger
        self._session_id = session_id

    async def delta(self, prompt_id: str, ordinal: int, data: bytes) -> None:
        """Store a part of the conversation."""
        await self._ledger._store(
            lambda id: StoreDelta(
                request_id=id,
                session_id=self._session_id,
                prompt_id=prompt_id,
                ordinal=ordinal,
                data=data,
            )
        )

    async def grant(self, grant: Grant) -> None:
        """Store an answer that holds for the session."""
        await self._ledger._store(
            lambda id: StoreGrant(request_id=id, session_id=self._session_id, grant=grant)
        )

    async def effect_started(self, prompt_id: str, ordinal: int, effect: Effect) -> None:
        """Store that an effect is about to begin."""
        await self._ledger._store(
            lambda id: EffectStarted(
                request_id=id,
                session_id=self._session_id,
                prompt_id=prompt_id,
                ordinal=ordinal,
                effect_id=effect.effect_id,
                tool=effect.tool,
                arguments=effect.arguments,
            )
        )

    async def effect_finished(self, effect: Effect) -> None:
        """Store how an effect ended."""
        await self._ledger._store(lambda id: self._finished(id, effect))

    def effect_finished_nowait(self, effect: Effect) -> None:
        """Send how an effect ended, for one that was cancelled: nobody waits for the disk."""
        self._ledger._tell(lambda id: self._finished(id, effect))

    def _finished(self, request_id: int, effect: Effect) -> EffectFinished:
        return EffectFinished(
            request_id=request_id,
            session_id=self._session_id,
            effect_id=effect.effect_id,
            ok=bool(effect.ok),
            summary=effect.summary,
        )


def ended(effect: Effect, *, ok: bool, summary: str) -> Effect:
    """Return `effect` with how it ended."""
    return msgspec.structs.replace(effect, ok=ok, summary=summary)
