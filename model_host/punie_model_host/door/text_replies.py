"""Answers of OpenAI's completions API, as JSON. Pure."""

from collections.abc import Sequence
from typing import Final

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
from punie_protocol.messages.to_model_client import Finished, TextDelta


class TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One choice, or more of it."""

    text: str
    index: int
    finish_reason: str | None = None
    logprobs: None = None


class TextCompletion(Head, frozen=True, kw_only=True, omit_defaults=True):
    """A whole answer, or one event of a stream: they are alike."""

    object: str
    choices: list[TextChoice]
    usage: UsageOut | None = None
    timings: TimingsOut | None = None


_encoder: Final = msgspec.json.Encoder()


class TextWriter:
    """A `Writer`. What comes is text alone: a raw prompt's answer is not taken apart."""

    def __init__(self, head: Head) -> None:
        self._head = msgspec.structs.asdict(head)

    def piece(self, message: Piece) -> bytes:
        if not isinstance(message, TextDelta):
            return b""
        return self._event([TextChoice(text=message.text, index=message.request_id - 1)])

    def end(self, message: Finished) -> bytes:
        reason = FINISH[message.stop_reason]
        last = TextChoice(text="", index=message.request_id - 1, finish_reason=reason)
        return self._event([last], timings=timings_out([message.timings]))

    def usage(self, usage: Usage) -> bytes:
        return self._event([], usage=usage_out(usage))

    def whole(self, answers: Sequence[Answer], usage: Usage) -> bytes:
        choices = [_choice(answer, index) for index, answer in enumerate(answers)]
        ends = [one.end.timings for one in answers if one.end is not None]
        return self._encoded(choices, usage_out(usage), timings_out(ends))

    def _event(
        self,
        choices: list[TextChoice],
        usage: UsageOut | None = None,
        timings: TimingsOut | None = None,
    ) -> bytes:
        return data(self._encoded(choices, usage, timings))

    def _encoded(
        self, choices: list[TextChoice], usage: UsageOut | None, timings: TimingsOut | None
    ) -> bytes:
        completion = TextCompletion(
            **self._head, object="text_completion", choices=choices, usage=usage, timings=timings
        )
        return _encoder.encode(completion)


def _choice(answer: Answer, index: int) -> TextChoice:
    assert answer.end is not None, "only complete answers are written"
    reason = FINISH[answer.end.stop_reason]
    return TextChoice(text="".join(answer.text), index=index, finish_reason=reason)
