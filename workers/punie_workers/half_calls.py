"""One call of a project half, between the loop that waits for it and the thread that runs it.

Whoever claims a call first has it: the thread, then it runs; or its caller, then it never does.
"""

import asyncio
import threading
from collections.abc import Callable
from enum import StrEnum

from punie_protocol import interp_codec
from punie_protocol.errors import Internal, PunieError, TimedOut, ToolFailed
from punie_workers.interp.failures import Kind

type Answer = bytes | Exception
"""What the thread brings back: a raw reply, or how the interpreter itself failed."""


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
    """A request, the type of its result, and its `reply`, set on the loop; never an exception."""

    def __init__(self, request: bytes, result: type[R], loop: asyncio.AbstractEventLoop) -> None:
        self.request = request
        self.reply: asyncio.Future[Answer] = loop.create_future()
        self.left = False
        self._begun = False
        self._result = result
        self._claim = threading.Lock()

    def begin(self) -> bool:
        """Claim the call for the thread; whether it may run."""
        self._begun = self._claim.acquire(blocking=False)
        return self._begun

    def withdraw(self) -> bool:
        """Claim the call for its caller, who no longer waits; whether it never runs."""
        self.left = True
        return self._claim.acquire(blocking=False)

    def value(self) -> R:
        """Return the typed result of the reply that is there. Raises `PunieError`."""
        answer = self.reply.result()
        if isinstance(answer, Exception):
            message = f"the project's interpreter failed: {answer}"
            raise PunieError(Internal(message=message))
        return interp_codec.decode_reply(answer, self._result)

    def settle(self, deed: Deed) -> R:
        """Return the result as `value` does, and note in `deed` what became of it."""
        try:
            value = self.value()
        except PunieError as error:
            if isinstance(error.error, ToolFailed) or not self._begun:
                deed.state = DeedState.NOT_DONE
                raise
            raise unknown(error.error.message, deed) from error
        deed.state = DeedState.DONE
        return value

    def too_late(self, deadline: float, deed: Deed | None) -> PunieError:
        """Withdraw the call and return the error of its caller."""
        withdrawn = self.withdraw()
        message = f"the tools of this project gave no answer within {deadline:g} s"
        if deed is None or withdrawn:
            return PunieError(TimedOut(message=message, limit_s=deadline))
        return unknown(message, deed)

    def give_to(self, unclaimed: Callable[[R], None]) -> None:
        """Hand the result over, once it is there, if the caller has left; a failure has none."""

        def give(reply: asyncio.Future[Answer]) -> None:
            if reply.result() == b"":
                return
            try:
                value = self.value()
            except PunieError:
                return
            unclaimed(value)

        if self.left:
            self.reply.add_done_callback(give)


def unknown(message: str, deed: Deed) -> PunieError:
    """Note that nobody knows whether it was done, and return the error that says so."""
    deed.state = DeedState.UNKNOWN
    message = f"{message}; whether it was done is unknown: look before you do it again"
    return PunieError(ToolFailed(kind=Kind.OUTCOME_UNKNOWN, message=message))
