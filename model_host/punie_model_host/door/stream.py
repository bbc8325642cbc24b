"""A request's answer over HTTP: as server-sent events while it is made, or whole at its end."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Final, assert_never

from starlette.types import Send

from punie_model_host.door import faults, replies
from punie_model_host.door.faults import Headers
from punie_model_host.door.limits import SEND_DEADLINE
from punie_model_host.door.mailbox import Mailbox
from punie_model_host.door.pulse import Pulse
from punie_model_host.door.replies import CallOut, Delta, MessageOut, Writer
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
    error's. A stream that fails later ends with an event that has ``error``, without ``[DONE]``.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        writer: Writer,
        send: Send,
        *,
        usage: bool,
    ) -> None:
        self._mailbox = mailbox
        self._writer = writer
        self._send = send
        self._usage = usage
        self._started = False  # the status is out
        self._opened = False  # the role is out
        self._over = False
        self._calls = 0
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
        for message in messages:
            match message:
                case TextDelta(text=text):
                    yield self._delta(Delta(content=text))
                case ThinkingDelta(text=text):
                    yield self._delta(Delta(reasoning_content=text))
                case ToolCall():
                    yield self._delta(Delta(tool_calls=[replies.call(message, self._calls)]))
                    self._calls += 1
                case PrefillProgress(done=done, total=total):
                    self._prefill = f"prefill {done}/{total}"
                case Finished():
                    yield self._finish(message)
                case Failed():
                    yield self._fail(message)
                case ModelWelcome() | ModelChanged() | Refused() | TokenCount():
                    pass  # for clients that stay
                case _:
                    assert_never(message)

    def _delta(self, delta: Delta) -> bytes:
        event = self._writer.event(delta)
        if self._opened:
            return event
        self._opened = True
        return self._writer.event(Delta(role="assistant", content="")) + event

    def _finish(self, message: Finished) -> bytes:
        self._over = True
        opening = b"" if self._opened else self._delta(Delta())
        last = self._writer.last(message.stop_reason, message.timings)
        usage = self._writer.usage(message.usage) if self._usage else b""
        return opening + last + usage + replies.DONE

    def _fail(self, message: Failed) -> bytes:
        self._over = True
        refusal = faults.refusal(message.error)
        if not self._started and not self._opened:
            raise refusal
        return replies.data(refusal.encoded())


async def send_whole(mailbox: Mailbox, writer: Writer, send: Send, abort: Abort) -> None:
    """Wait for the end of an answer and send it; nothing when its reader is gone. Raises `Refusal`
    when the request failed."""
    answer = _Answer()
    while answer.end is None:
        messages = await mailbox.take()
        if not messages and mailbox.closed:
            return
        for message in messages:
            answer.add(message)
    end = answer.end
    body = writer.whole(answer.message(), end.stop_reason, end.usage, end.timings)
    await send_body(send, abort, 200, body)


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


class _Answer:
    """An answer that is collected; `end` is there when it is complete."""

    def __init__(self) -> None:
        self.end: Finished | None = None
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[CallOut] = []

    def add(self, message: ToModelClient) -> None:
        """Take a message. Raises `Refusal` for the request's failure."""
        match message:
            case TextDelta(text=text):
                self._text.append(text)
            case ThinkingDelta(text=text):
                self._thinking.append(text)
            case ToolCall():
                self._calls.append(replies.call(message))
            case Finished():
                self.end = message
            case Failed(error=error):
                raise faults.refusal(error)
            case PrefillProgress() | ModelWelcome() | ModelChanged() | Refused() | TokenCount():
                pass
            case _:
                assert_never(message)

    def message(self) -> MessageOut:
        """Return what was collected."""
        text = "".join(self._text)
        return MessageOut(
            role="assistant",
            content=None if self._calls and not text else text,
            reasoning_content="".join(self._thinking) or None,
            tool_calls=self._calls or None,
        )
