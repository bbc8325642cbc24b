"""What clients hear of a prompt besides its session's updates: accepted, progress, the answer; and
the progress of other requests that take their time."""

import time
from typing import Final, Protocol

from msgspec import UNSET, Raw, UnsetType

from punie_protocol import jsonrpc
from punie_protocol.client import ACCEPTED, PROGRESS, Accepted, Progress
from punie_protocol.jsonrpc import Envelope, RpcId
from punie_supervisor import router
from punie_supervisor.turn import Turn

PROGRESS_EVERY: Final = 0.25
"""Seconds between two progress notifications of a prompt or request, at least."""

type Waiters = list[tuple[int, RpcId]]


class Outbox(Protocol):
    """Where deliveries go: the switchboard."""

    def deliver(self, deliveries: list[router.Delivery]) -> None:
        """Send now, without waiting."""
        ...

    def attach(self, connection: int, session_id: str) -> None:
        """Attach a connection, if it is still there."""
        ...


def accepted(outbox: Outbox, turn: Turn, waiters: Waiters) -> None:
    """Say that the prompt is durable, and attach who waits to its session."""
    id = turn.session_id
    body = jsonrpc.notification(ACCEPTED, Accepted(session_id=id, prompt_id=turn.prompt_id))
    for connection in sorted({connection for connection, _ in waiters}):
        outbox.attach(connection, id)
        outbox.deliver([router.Send(connection, body)])


def progress(outbox: Outbox, turn: Turn, text: str, done: int, total: int) -> None:
    """Say what the prompt waits for, unless something was said just before."""
    now = time.monotonic()
    if now - turn.last_progress < PROGRESS_EVERY:
        return
    turn.last_progress = now
    line = Progress(session_id=turn.session_id, text=text, done=done, total=total)
    body = jsonrpc.notification(PROGRESS, line)
    outbox.deliver([router.Send(connection, body) for connection in turn.connections])


class Teller:
    """Tells a connection the progress of its one request that is no prompt. What it waits for is
    said whenever that changes, bytes no oftener than `progress` does."""

    def __init__(self, outbox: Outbox, connection: int) -> None:
        self._outbox = outbox
        self._connection = connection
        self._last = float("-inf")
        self._said = ""

    def __call__(self, text: str, done: int, total: int) -> None:
        now = time.monotonic()
        if text == self._said or (total and now - self._last < PROGRESS_EVERY):
            return
        self._last, self._said = now, text
        line = Progress(session_id="", text=text, done=done, total=total)
        body = jsonrpc.notification(PROGRESS, line)
        self._outbox.deliver([router.Send(self._connection, body)])


def answer(outbox: Outbox, waiters: Waiters, result: Raw | None, error: Raw | None) -> None:
    """Answer everyone who waits."""
    there: Raw | UnsetType = UNSET if result is None else result
    fault: Raw | UnsetType = UNSET if error is None else error
    outbox.deliver(
        [
            router.Send(to, jsonrpc.encode(Envelope(id=id, result=there, error=fault)))
            for to, id in waiters
        ]
    )
