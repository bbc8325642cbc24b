"""What of a conversation is sent to the model: the view that a `Compaction` gives of it.

The history itself never changes. What is left out is counted from its beginning, in tool results
and in user's prompts: indices of messages are not stable, as pydantic-ai merges neighbours. So a
view only grows at its end until the next compaction, and the model host's prefix cache holds.
Pure; lengths are characters as `chat.size` counts them.
"""

import dataclasses
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    ToolReturnPart,
    UserPromptPart,
)

from punie_workers.chat import result_text, size, split_turns, turn_starts

KEPT_STEPS: Final = 2
"""The results of so many last model responses stay as long as anything else can go."""
MIN_CUT: Final = 200

_SUMMARY_HEAD: Final = (
    "[Record of the earlier conversation, which was left out to save room. It tells what happened "
    "and is no new request.]\n"
)
_SUMMARY_END: Final = "\n[End of the record. The user goes on:]\n\n"


class Compaction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is left out: the first `results` tool results (a stub stands for each), all but `cut`
    characters of the one after them when `cut` is not 0, and the first `turns` turns, for which
    `summary` stands, or nothing. Decided when there were `answers` model responses."""

    results: int = 0
    cut: int = 0
    turns: int = 0
    summary: str = ""
    answers: int = 0


NOTHING: Final = Compaction()


class _Result(msgspec.Struct, frozen=True):
    """A tool result: where it is, after how many responses, its length and that of its stub."""

    index: int
    step: int
    length: int
    stub: int


class Layout:
    """A conversation measured once, for any number of compactions of it."""

    def __init__(self, messages: Sequence[ModelMessage]) -> None:
        self.messages = split_turns(messages)
        self._starts = turn_starts(self.messages)
        self._before = [0, *itertools.accumulate(map(size, self.messages))]
        self._results = list(_results(self.messages))
        self._indices = [result.index for result in self._results]
        saved = (max(0, result.length - result.stub) for result in self._results)
        self._saved = [0, *itertools.accumulate(saved)]

    @property
    def answers(self) -> int:
        """How many model responses there are."""
        return sum(isinstance(message, ModelResponse) for message in self.messages)

    def begin(self, compaction: Compaction) -> int:
        """Return the first message that is kept: the start of a turn, the last one at most."""
        if not compaction.turns or not self._starts:
            return 0
        return self._starts[min(compaction.turns, len(self._starts) - 1)]

    def size(self, compaction: Compaction, end: int | None = None) -> int:
        """Return the characters of the view, up to the message `end`."""
        last = len(self.messages) if end is None else end
        begin = min(self.begin(compaction), last)
        first, stop = bisect_left(self._indices, begin), bisect_left(self._indices, last)
        stubbed = min(max(compaction.results, first), stop)
        whole = self._before[last] - self._before[begin]
        less = self._saved[stubbed] - self._saved[first]
        if compaction.cut and first <= compaction.results < stop:
            less += max(0, self._results[compaction.results].length - compaction.cut)
        return whole - less + len(compaction.summary)

    def view(self, compaction: Compaction) -> list[ModelMessage]:
        """Return what is sent."""
        begin = self.begin(compaction)
        kept = [self._shown(index, compaction) for index in range(begin, len(self.messages))]
        return _with_summary(kept, compaction.summary) if begin else kept

    def _shown(self, index: int, compaction: Compaction) -> ModelMessage:
        message, ordinal = self.messages[index], bisect_left(self._indices, index)
        is_past = ordinal > compaction.results - (not compaction.cut)
        if is_past or not isinstance(message, ModelRequest):
            return message
        ordinals = itertools.count(ordinal)
        parts = [
            _short(part, next(ordinals), compaction) if isinstance(part, ToolReturnPart) else part
            for part in message.parts
        ]
        return dataclasses.replace(message, parts=parts)

    # what can be left out next

    def with_stubs(self, now: Compaction, most: int) -> Compaction:
        """Return `now` with the fewest more results left out, whole steps, that bring the view to
        `most`, or with all but those of the last `KEPT_STEPS`."""
        steps = [result.step for result in self._results]
        ends = [bisect_right(steps, step) for step in sorted(set(steps))[:-KEPT_STEPS]]
        return self._first_fit(now, [end for end in ends if end > now.results], most)

    def with_later_turns(self, now: Compaction, most: int) -> Compaction:
        """Return `now` with the fewest more turns left out, and without a summary, that bring the
        view to `most`, or with the last turn alone."""
        later = range(now.turns + 1, len(self._starts))
        options = [msgspec.structs.replace(now, turns=turns, summary="") for turns in later]
        fitting = (option for option in options if self.size(option) <= most)
        return next(fitting, options[-1] if options else now)

    def squeezed(self, now: Compaction, most: int) -> Compaction:
        """Return `now` with the last steps' results left out too, one by one, and at last the last
        result cut, until the view has `most`, or the last result `MIN_CUT` characters."""
        count = len(self._results)
        after = self._first_fit(now, range(now.results + 1, count), most)
        over = self.size(after) - most
        if over <= 0 or after.results != count - 1 or self._indices[-1] < self.begin(after):
            return after
        length = after.cut or self._results[-1].length
        cut = max(MIN_CUT, min(length - over, length * 9 // 10))
        return msgspec.structs.replace(after, cut=cut) if cut < length else after

    def _first_fit(self, now: Compaction, counts: Sequence[int], most: int) -> Compaction:
        options = [msgspec.structs.replace(now, results=count, cut=0) for count in counts]
        fitting = (option for option in options if self.size(option) <= most)
        return next(fitting, options[-1] if options else now)

    def stubbed(self, now: Compaction, after: Compaction) -> tuple[int, int]:
        """Return how many results of the view `after` leaves out and `now` did not, and how many
        characters these had."""
        new = range(now.results, min(after.results, len(self._results)))
        shown = [self._results[n] for n in new if self._results[n].index >= self.begin(after)]
        saved = [one.length - one.stub for one in shown if one.length > one.stub]
        return len(saved), sum(saved)


def view(messages: Sequence[ModelMessage], compaction: Compaction) -> list[ModelMessage]:
    """Return what is sent of `messages`."""
    return Layout(messages).view(compaction)


def _with_summary(messages: list[ModelMessage], summary: str) -> list[ModelMessage]:
    """Put `summary` into the first prompt: some chat templates refuse two user messages in a
    row."""
    match messages:
        case [
            ModelRequest(parts=[UserPromptPart(content=str(text)) as prompt, *more]) as first,
            *_,
        ]:
            if not summary:
                return messages
            joined = f"{_SUMMARY_HEAD}{summary}{_SUMMARY_END}{text}"
            parts = [dataclasses.replace(prompt, content=joined), *more]
            return [dataclasses.replace(first, parts=parts), *messages[1:]]
        case _:
            return messages


def _results(messages: Sequence[ModelMessage]) -> Iterator[_Result]:
    step = 0
    for index, message in enumerate(messages):
        step += isinstance(message, ModelResponse)
        for part in message.parts:
            if isinstance(part, ToolReturnPart):
                length = len(result_text(part))
                yield _Result(index, step, length, len(_stub(part.tool_name, length)))


def _short(part: ToolReturnPart, ordinal: int, compaction: Compaction) -> ToolReturnPart:
    text = result_text(part)
    if ordinal < compaction.results:
        short = _stub(part.tool_name, len(text))
    elif ordinal == compaction.results and 0 < compaction.cut < len(text):
        left_out = len(text) - compaction.cut
        note = f"[cut to save room: {left_out:,} more characters; ask for a smaller part of it]"
        return dataclasses.replace(part, content=f"{text[: compaction.cut]}\n{note}")
    else:
        return part
    return dataclasses.replace(part, content=short) if len(short) < len(text) else part


def _stub(tool: str, length: int) -> str:
    return (
        f"[result of {tool} left out to save room: {length:,} characters; "
        "call it again if you need it]"
    )
