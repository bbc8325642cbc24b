"""One call of a project half: who waits for it, what became of it, and who takes what it opened."""

import asyncio
from collections.abc import Callable
from enum import StrEnum

from punie_protocol import interp_codec
from punie_protocol.errors import Internal, PunieError, TimedOut, ToolFailed
from punie_workers.interp import wire
from punie_workers.interp.failures import Kind


class Broken(Exception):
    """Says how the project half itself failed, not the operation."""


class NeverBegun(PunieError):
    """The half was quarantined while the call waited in it: it may be repeated in another."""

    def __init__(self) -> None:
        message = "the tools of this project hang; the call had not begun"
        super().__init__(Internal(message=message, hint="try again"))


type Answer = bytes | Broken | NeverBegun
"""What comes back: a raw reply, or why there is none."""


class DeedState(StrEnum):
    """``PENDING``, then one of the others for good."""

    PENDING = "pending"
    DONE = "done"
    NOT_DONE = "not done"
    UNKNOWN = "unknown"


class Deed:
    """What became of one call with effects. Used from the loop."""

    def __init__(self) -> None:
        self.state = DeedState.PENDING

    @property
    def happened(self) -> bool:
        """Whether it was done, or may have been."""
        return self.state in (DeedState.DONE, DeedState.UNKNOWN)


class Call[R]:
    """A request, the type of its result, and its `answer`. Used from the loop.

    `begun` is the loop's time when it went inside, 0 before. `timer` is its deadline's.
    """

    timer: asyncio.TimerHandle

    def __init__(
        self, request: bytes, result: type[R], unclaimed: Callable[[R], None] | None
    ) -> None:
        self.request = request
        self.answer: Answer | None = None
        self.begun = 0.0
        self._result = result
        self._unclaimed = unclaimed
        self._waiter: asyncio.Future[None] | None = None
        self._left = False
        self._expired = False

    @property
    def is_over(self) -> bool:
        """Whether nobody needs to wait any more: it is answered, or too late."""
        return self.answer is not None or self._expired

    async def wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Return once it is over. One waits at a time."""
        if not self.is_over:
            self._waiter = loop.create_future()
            await self._waiter

    def leave(self) -> None:
        """Nobody waits for the result any more: once it is there, it is the `unclaimed` one."""
        self._left = True
        if self.answer is not None:
            self._give()

    def finish(self, answer: Answer) -> None:
        """Take the answer."""
        self.answer = answer
        self._wake()
        if self._left:
            self._give()

    def expire(self) -> None:
        """It is too late."""
        self._expired = True
        self._wake()

    def value(self) -> R:
        """Return the typed result of the answer that is there. Raises `PunieError`."""
        answer = self.answer
        match answer:
            case bytes():
                return interp_codec.decode_reply(answer, self._result)
            case NeverBegun():
                raise answer
            case _:
                message = f"the project's interpreter failed: {answer}"
                raise PunieError(Internal(message=message))

    def settle(self, deed: Deed) -> R:
        """Return the result as `value` does, and note in `deed` what became of it."""
        try:
            value = self.value()
        except PunieError as error:
            if isinstance(error.error, ToolFailed) or not self.begun:
                deed.state = DeedState.NOT_DONE
                raise
            raise unknown(error.error.message, deed) from error
        deed.state = DeedState.DONE
        return value

    def too_late(self, deadline: float, deed: Deed | None) -> PunieError:
        """Leave, and return the error of the caller."""
        self.leave()
        if not self.begun:
            message = f"other tools of this project took longer than {deadline:g} s"
            return PunieError(TimedOut(message=message, hint="try again", limit_s=deadline))
        message = f"the tools of this project gave no answer within {deadline:g} s"
        if deed is None:
            return PunieError(TimedOut(message=message, limit_s=deadline))
        return unknown(message, deed)

    def operation(self) -> str:
        """Return the name of what was asked for."""
        return wire.decode_request(self.request)[0]

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _give(self) -> None:
        """Hand the result over; a failure has none."""
        give, self._unclaimed = self._unclaimed, None
        if give is None:
            return
        try:
            value = self.value()
        except PunieError:
            return
        give(value)


def unknown(message: str, deed: Deed) -> PunieError:
    """Note that nobody knows whether it was done, and return the error that says so."""
    deed.state = DeedState.UNKNOWN
    message = f"{message}; whether it was done is unknown: look before you do it again"
    return PunieError(ToolFailed(kind=Kind.OUTCOME_UNKNOWN, message=message))
