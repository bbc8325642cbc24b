"""A request's answers over HTTP: as server-sent events while they are made, or whole at their
end."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Final, assert_never

from starlette.types import Send

from punie_model_host.door import faults, replies
from punie_model_host.door.answers import Answers
from punie_model_host.door.faults import Headers
from punie_model_host.door.limits import SEND_DEADLINE
from punie_model_host.door.mailbox import Mailbox
from punie_model_host.door.pulse import Pulse
from punie_model_host.door.replies import Writer
from punie_protocol.messages.to_model_client import (
    Failed,
    Finished,
    ModelChanged,
    ModelWelcome,
    PrefillProgress,
    Refused,
    TextDelta,
    ThinkingDelta,
    TokenCount,
    ToModelClient,
    ToolCall,
)

type Abort = Callable[[], None]
"""Ends the connection at once."""

_SSE: Final[Headers] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
]
JSON: Final = (b"content-type", b"application/json")


class EventStream:
    """Writes what comes into a mailbox as events; all that is ready goes out in one write.

    The status goes out with the first sign of an answer, so a request that is refused gets an
    error's. A stream that fails later, in any of its choices, ends with an event that has
    ``error``, without ``[DONE]``. `answers` is told how each choice ends.
    """

    def __init__(
        self, mailbox: Mailbox, writer: Writer, answers: Answers, send: Send, *, usage: bool
    ) -> None:
        self._mailbox = mailbox
        self._writer = writer
        self._answers = answers
        self._send = send
        self._usage = usage
        self._started = False  # the status is out
        self._over = False
        self._prefill = ""
        self._sign = b""

    async def run(self, pulse: Pulse) -> None:
        """Write until the answer ends or its reader is gone; `pulse` has to have been begun.
        Raises `Refusal` when the request failed before anything was written."""
        while not self._over:
            messages = await self._mailbox.take()
            if not messages and self._mailbox.closed:
                return  # the reader is gone
            if body := b"".join(self._events(messages)) or self._sign:
                pulse.writing = True
                await self._write(body)
                pulse.writing, pulse.wrote, self._sign = False, True, b""

    def give_sign(self) -> None:
        """Write a comment: nothing else was written for a while."""
        self._sign = replies.comment(self._prefill or "waiting")
        self._mailbox.nudge()

    async def _write(self, body: bytes) -> None:
        if not self._started:
            self._started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _SSE})
        more = not self._over
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    def _events(self, messages: Sequence[ToModelClient]) -> Iterator[bytes]:
        said = False
        for message in messages:
            match message:
                case TextDelta() | ThinkingDelta() | ToolCall():
                    said = True
                    yield self._writer.piece(message)
                case PrefillProgress(done=done, total=total):
                    self._prefill = f"prefill {done}/{total}"
                case Finished():
                    said = True
                    yield self._finish(message)
                case Failed():
                    yield self._fail(message, said=said)
                    return  # the other choices have failed too
                case ModelWelcome() | ModelChanged() | Refused() | TokenCount():
                    pass  # for clients that stay
                case _:
                    assert_never(message)

    def _finish(self, message: Finished) -> bytes:
        self._answers.add(message)
        last = self._writer.end(message)
        if not self._answers.complete:
            return last
        self._over = True
        usage = self._writer.usage(self._answers.usage) if self._usage else b""
        return last + usage + replies.DONE

    def _fail(self, message: Failed, *, said: bool) -> bytes:
        self._over = True
        refusal = faults.refusal(message.error)
        if not self._started and not said:
            raise refusal
        return replies.data(refusal.encoded())


async def send_whole(
    mailbox: Mailbox, writer: Writer, answers: Answers, send: Send, abort: Abort
) -> None:
    """Wait for the end of all answers and send them; nothing when their reader is gone. Raises
    `Refusal` when the request failed."""
    while not answers.complete:
        messages = await mailbox.take()
        if not messages and mailbox.closed:
            return
        for message in messages:
            answers.add(message)
    await send_body(send, abort, 200, writer.whole(answers.choices, answers.usage))


async def send_body(
    send: Send,
    abort: Abort,
    status: int,
    body: bytes,
    headers: Sequence[tuple[bytes, bytes]] = (JSON,),
) -> None:
    """Send a whole body; a reader that does not take it within `SEND_DEADLINE` is dropped."""
    length = (b"content-length", b"%d" % len(body))
    all = [*headers, length, (b"cache-control", b"no-store")]
    try:
        async with asyncio.timeout(SEND_DEADLINE):
            await send({"type": "http.response.start", "status": status, "headers": all})
            await send({"type": "http.response.body", "body": body})
    except TimeoutError:
        abort()
