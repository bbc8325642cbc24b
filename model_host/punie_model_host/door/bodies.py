"""Reading the bodies of requests: how large, how many at a time, for how long."""

import asyncio
from collections.abc import Iterable

from starlette.types import Receive

from punie_model_host.door import faults
from punie_model_host.door.faults import Headers, Refusal
from punie_model_host.door.limits import (
    BODY_DEADLINE,
    BODY_PACE,
    MAX_BODIES,
    MAX_BODY,
    MAX_DISCARDED,
)


class Disconnected(Exception):
    """The client went before its request was complete."""


class Bodies:
    """The bodies of all requests that are being read: together at most `total` bytes, of which
    `left` are free."""

    def __init__(self, limit: int = MAX_BODY, total: int = MAX_BODIES) -> None:
        self._limit = limit
        self.left = total

    async def read(self, receive: Receive, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Return a request's body.

        Raises `Refusal`: of one over the limit once it was read and thrown away (who still sends
        reads no answer), of one that comes slower than `BODY_PACE` or stops for `BODY_DEADLINE`,
        and while others have all the room. Raises `Disconnected`.
        """
        announced = max(map(_length, headers), default=0)
        if announced > MAX_DISCARDED:
            raise self._too_large(announced)
        try:
            async with asyncio.timeout(BODY_DEADLINE) as late:
                return await self._read(receive, late)
        except TimeoutError:
            text = (
                f"the body did not come, for {BODY_DEADLINE:g} s or at {BODY_PACE} bytes a second"
            )
            raise _refusal(408, text, "timed_out") from None

    async def _read(self, receive: Receive, late: asyncio.Timeout) -> bytes:
        body, size, more = bytearray(), 0, True
        try:
            while more and size <= MAX_DISCARDED:
                chunk, more = await _chunk(receive)
                size += len(chunk)
                deadline, now = late.when(), asyncio.get_running_loop().time()
                assert deadline is not None, "it was made with one"
                late.reschedule(put_off(deadline, len(chunk), now))
                if size <= self._limit:
                    self._keep(body, chunk)
        finally:
            self.left += len(body)
        if size > self._limit:
            raise self._too_large(size)
        return bytes(body)

    def _keep(self, body: bytearray, chunk: bytes) -> None:
        if len(chunk) > self.left:
            text = "too many large requests at one time"
            raise _refusal(429, text, faults.TOO_MANY, [(b"retry-after", b"1")])
        self.left -= len(chunk)
        body += chunk

    def _too_large(self, size: int) -> Refusal:
        text = f"the body has {size} bytes, the limit is {self._limit}"
        return _refusal(413, text, "request_too_large")


def put_off(deadline: float, size: int, now: float) -> float:
    """Return the deadline when `size` more bytes have come: later by what they may take, but
    `BODY_DEADLINE` from `now` at most. Who sends much at first, to send the rest drop by drop, has
    the room no longer for that."""
    return min(deadline + size / BODY_PACE, now + BODY_DEADLINE)


async def _chunk(receive: Receive) -> tuple[bytes, bool]:
    """Return the next bytes of a body, and whether there are more."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Disconnected
    return message.get("body", b""), message.get("more_body", False)


def _length(header: tuple[bytes, bytes]) -> int:
    name, value = header
    return int(value) if name == b"content-length" and value.isdigit() else 0


def _refusal(status: int, text: str, code: str, headers: Headers | None = None) -> Refusal:
    kind = "rate_limit_error" if status == 429 else "invalid_request_error"
    return Refusal(status, kind, text, code=code, headers=headers, close=True)
