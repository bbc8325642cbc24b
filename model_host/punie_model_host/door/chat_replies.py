"""Answers of OpenAI's chat API, as JSON. Pure."""

from collections import Counter
from collections.abc import Sequence
from typing import Final, assert_never

import msgspec

from punie_model_host.door.answers import Answer
from punie_model_host.door.replies import (
    FINISH,
    Head,
    Piece,
    TimingsOut,
    UsageOut,
    data,
    timings_out,
    usage_out,
)
from punie_protocol.messages.common import Usage
from punie_protocol.messages.to_model_client import (
    Finished,
    StepTimings,
    TextDelta,
    ThinkingDelta,
    ToolCall,
)


class FunctionOut(msgspec.Struct, frozen=True, kw_only=True):
    """`arguments` is the JSON text of an object."""

    name: str
    arguments: str


class CallOut(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tool call; `index` only in a stream."""

    id: str
    type: str
    function: FunctionOut
    index: int | None = None


class Delta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """More of an answer."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallOut] | None = None


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What an event has of one choice."""

    delta: Delta
    finish_reason: str | None = None
    index: int
    logprobs: None = None


class Chunk(Head, frozen=True, kw_only=True, omit_defaults=True):
    """One event of a stream."""

    object: str
    choices: list[ChunkChoice]
    usage: UsageOut | None = None
    timings: TimingsOut | None = None


class MessageOut(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A whole answer."""

    role: str
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[CallOut] | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One whole choice."""

    message: MessageOut
    finish_reason: str
    index: int
    logprobs: None = None


class Completion(Head, frozen=True, kw_only=True):
    """Body of an answer that is no stream."""

    object: str
    choices: list[Choice]
    usage: UsageOut
    timings: TimingsOut


_encoder: Final = msgspec.json.Encoder()


class ChatWriter:
    """A `Writer`. The first event of a choice has its role; calls are counted by choice."""

    def __init__(self, head: Head) -> None:
        self._head = msgspec.structs.asdict(head)
        self._opened: set[int] = set()
        self._calls: Counter[int] = Counter()

    def piece(self, message: Piece) -> bytes:
        choice = message.request_id - 1
        return self._opening(choice) + self._event(choice, self._delta(message, choice))

    def end(self, message: Finished) -> bytes:
        choice = message.request_id - 1
        last = self._event(
            choice, Delta(), FINISH[message.stop_reason], timings_out([message.timings])
        )
        return self._opening(choice) + last

    def usage(self, usage: Usage) -> bytes:
        return self._chunk([], usage=usage_out(usage))

    def whole(self, answers: Sequence[Answer], usage: Usage) -> bytes:
        ends: list[StepTimings] = [one.end.timings for one in answers if one.end is not None]
        completion = Completion(
            **self._head,
            object="chat.completion",
            choices=[_choice(answer, index) for index, answer in enumerate(answers)],
            usage=usage_out(usage),
            timings=timings_out(ends),
        )
        return _encoder.encode(completion)

    def _delta(self, message: Piece, choice: int) -> Delta:
        match message:
            case TextDelta(text=text):
                return Delta(content=text)
            case ThinkingDelta(text=text):
                return Delta(reasoning_content=text)
            case ToolCall():
                call = _call(message, self._calls[choice])
                self._calls[choice] += 1
                return Delta(tool_calls=[call])
            case _:
                assert_never(message)

    def _opening(self, choice: int) -> bytes:
        if choice in self._opened:
            return b""
        self._opened.add(choice)
        return self._event(choice, Delta(role="assistant", content=""))

    def _event(
        self,
        choice: int,
        delta: Delta,
        reason: str | None = None,
        timings: TimingsOut | None = None,
    ) -> bytes:
        found = ChunkChoice(delta=delta, finish_reason=reason, index=choice)
        return self._chunk([found], timings=timings)

    def _chunk(
        self,
        choices: list[ChunkChoice],
        usage: UsageOut | None = None,
        timings: TimingsOut | None = None,
    ) -> bytes:
        chunk = Chunk(
            **self._head,
            object="chat.completion.chunk",
            choices=choices,
            usage=usage,
            timings=timings,
        )
        return data(_encoder.encode(chunk))


def _choice(answer: Answer, index: int) -> Choice:
    assert answer.end is not None, "only complete answers are written"
    text = "".join(answer.text)
    message = MessageOut(
        role="assistant",
        content=None if answer.calls and not text else text,
        reasoning_content="".join(answer.thinking) or None,
        tool_calls=[_call(call) for call in answer.calls] or None,
    )
    return Choice(message=message, finish_reason=FINISH[answer.end.stop_reason], index=index)


def _call(call: ToolCall, index: int | None = None) -> CallOut:
    function = FunctionOut(name=call.name, arguments=call.arguments)
    return CallOut(id=call.call_id, type="function", function=function, index=index)
