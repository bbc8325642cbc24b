"""Streaming parser of a model's answer: text, thinking and tool calls.

This is the frame: where calls begin and end. What is inside a call is read by the readers of
`calls`, one for each way of writing. Repairs are listed in ``docs/reference/tool-calls.md``. What
comes out does not depend on how the stream is cut into pieces. The module is long because what a
mark means depends on all of the states together.
"""

import json
import re
from collections.abc import Sequence
from enum import Enum
from itertools import groupby
from typing import Any, Final, assert_never

from punie_model_host.answer import Call, Malformed, Piece, Text, Thinking
from punie_model_host.arguments import Schemas, fitted
from punie_model_host.calls import notations, tags
from punie_model_host.calls.bodies import BodyReader
from punie_model_host.calls.formats import ToolCallFormat
from punie_model_host.calls.loose_json import unfenced
from punie_model_host.calls.marks import first_of, marks_of, may_become
from punie_model_host.calls.names import known
from punie_model_host.calls.reading import CUT, CallReader, Verdict
from punie_model_host.calls.sniffing import Sniff, after_opener, bare_function, bare_object, fence
from punie_model_host.calls.tag_reader import TagReader

_QUOTED: Final = 200
"""Characters of a malformed call that are quoted."""
_SLICE: Final = 4096
"""Characters that are looked at together."""
_FENCE: Final = "```"
_HELD_ARGUMENTS: Final = re.compile(r"""["'](?:arguments|parameters|args|input)["']\s*:""")

__all__ = ["AnswerParser", "Schemas"]


class State(Enum):
    """Where in the answer the parser is; `TRANSITIONS` says what may come next.

    HELD is text at a line's start that is a call if all of the rest is; DRAFT is a call begun in
    thinking, one if the thinking does not go on behind it.
    """

    TEXT = "text"
    THINKING = "thinking"
    OPENED = "opened"
    CALL = "call"
    HELD = "held"
    DRAFT = "draft"
    FAULT = "fault"
    DONE = "done"


TRANSITIONS: Final = {
    State.TEXT: {State.THINKING, State.OPENED, State.CALL, State.HELD},
    State.THINKING: {State.TEXT, State.DRAFT},
    State.OPENED: {State.CALL, State.TEXT, State.FAULT},
    State.CALL: {State.TEXT, State.FAULT},
    State.HELD: {State.DONE},
    State.DRAFT: {State.THINKING, State.DONE},
    State.FAULT: set(),
    State.DONE: set(),
}


class AnswerParser:
    """Feed it the answer's text, take pieces; `finish` at the end.

    `schemas` are those of the request's tools; `thinking` says that the prompt ended inside
    ``<think>``. `calls` counts the calls that came out.
    """

    def __init__(
        self,
        schemas: Schemas,
        format: ToolCallFormat = ToolCallFormat.QWEN3_CODER,
        *,
        thinking: bool = False,
        holds: bool = True,
    ) -> None:
        self._schemas = schemas
        self._format = format
        self._marks = marks_of(format, tuple(schemas))
        self._holds = holds
        self._state = State.THINKING if thinking else State.TEXT
        self._buffer = ""
        self._space = ""
        self._fresh = True
        self._untouched = True
        self._after_call = self._fenced = False
        self._drop_space = False
        self._final = self._cut = False
        self._opener = self._quote = self._before = ""
        self._mid_line = False
        self._held: list[str] = []
        self._reader: CallReader = BodyReader(notations.JSON, ())
        self._fault = ""
        self._out: list[Piece] = []
        self.calls = 0

    @property
    def pending(self) -> int:
        """Characters that are looked at again when more text comes."""
        return len(self._buffer) + (self._reader.pending if self._state is State.CALL else 0)

    def feed(self, text: str) -> list[Piece]:
        """Take more of the answer, return the pieces that it completes."""
        if self._is_plain(text):
            return self._pass_on(text)
        if self._state is State.CALL and len(self._quote) >= _QUOTED and len(text) <= _SLICE:
            if self._read_call(text):
                self._run()
            return self._taken()
        self._take(text)
        return self._taken()

    def finish(self, *, cut: bool = False) -> list[Piece]:
        """End the answer. `cut` says that it ended at a limit and not by the model's will: then
        an unfinished call is not repaired."""
        self._final, self._cut = True, cut
        self._take("")
        return self._taken()

    def _is_plain(self, text: str) -> bool:
        """Whether `text` can be nothing but more of the line that is being written."""
        return (
            not self._fresh
            and not self._buffer
            and (self._state is State.TEXT or self._state is State.THINKING)
            and "\n" not in self._space
            and self._marks.interesting.search(text) is None
        )

    def _pass_on(self, text: str) -> list[Piece]:
        body = text.rstrip()
        if not body:
            self._space += text
            return []
        shown = self._space + body
        self._space = text[len(body) :]
        return [Text(shown) if self._state is State.TEXT else Thinking(shown)]

    def _take(self, text: str) -> None:
        """Read more text, a slice at a time: what is done to the buffer costs its length."""
        final, self._final = self._final, False
        for start in range(0, len(text), _SLICE):
            self._buffer += text[start : start + _SLICE]
            self._run()
        self._final = final
        self._run()

    def _run(self) -> None:
        while self._step():
            pass

    def _taken(self) -> list[Piece]:
        if not self._out:
            return []
        out, self._out = self._out, []
        return _joined(out)

    def _step(self) -> bool:
        """Consume something from the buffer; False when more text is needed for that."""
        match self._state:
            case State.TEXT | State.THINKING:
                return self._prose()
            case State.OPENED:
                return self._in_opened()
            case State.CALL:
                return self._in_call()
            case State.HELD:
                return self._in_held()
            case State.DRAFT:
                return self._in_draft()
            case State.FAULT:
                return self._in_fault()
            case State.DONE:
                return False
            case _:
                assert_never(self._state)

    def _go(self, state: State) -> bool:
        assert state in TRANSITIONS[self._state], f"{self._state} -> {state}"
        self._state = state
        return True

    # text and thinking

    def _prose(self) -> bool:
        """Pass text on up to a mark. White space waits for what comes after it."""
        if self._take_space():
            return True
        if not self._buffer:
            if self._final and not self._fresh:
                self._emit_prose(self._space)
                self._space = ""
            return False
        handled = self._at_mark() if self._state is State.TEXT else self._at_thinking_mark()
        if handled is not None:
            return handled
        return self._emit_line()

    def _emit_line(self) -> bool:
        """Emit text up to where a mark could be."""
        is_text = self._state is State.TEXT
        if is_text and self._line_start and self._buffer.startswith(_FENCE):
            self._fenced = not self._fenced
        found = self._marks.interesting.search(self._buffer, 1)
        body = (self._buffer[: found.start()] if found else self._buffer).rstrip()
        self._emit_prose(self._lead + body)
        self._buffer = self._buffer[len(body) :]
        self._space, self._fresh, self._after_call, self._untouched = "", False, False, False
        return True

    def _take_space(self) -> bool:
        stripped = self._buffer.lstrip()
        taken = len(self._buffer) - len(stripped)
        self._space += self._buffer[:taken]
        self._buffer = stripped
        return taken > 0

    @property
    def _line_start(self) -> bool:
        return self._fresh or "\n" in self._space

    def _at_mark(self) -> bool | None:
        """Handle a mark in the text: as `_step`, None when there is none."""
        marks, frame = self._marks, self._marks.frame
        if self._buffer[0] not in marks.firsts:
            return self._at_bare_mark() if self._line_start else None
        start = self._buffer[: marks.longest].lower()
        if mark := first_of(start, frame.openers):
            return self._open(mark)
        passing = frame.dropped + (frame.closers if self._after_call else ())
        if mark := first_of(start, passing):
            self._buffer, self._drop_space = self._buffer[len(mark) :], True
            return True
        thinks = marks.fresh if self._fresh else ()
        if mark := first_of(start, thinks):
            self._buffer = self._buffer[len(mark) :]
            self._begin_fresh()
            return mark in marks.unthink or self._go(State.THINKING)
        bare = self._at_bare_mark() if self._line_start else None
        if bare is None and not self._final:
            waits = may_become(start, frame.openers + passing + thinks)
            return False if waits else None
        return bare

    def _at_bare_mark(self) -> bool | None:
        """Handle a call without its opener, at the start of a line."""
        start = self._buffer[: self._marks.longest].lower() if self._marks.bare else ""
        if first_of(start, self._marks.bare):
            return self._open_bare(self._marks.frame.make(self._schemas))
        match self._sniff_bare():
            case Sniff.CALL if self._buffer[0] == "<" and self._marks.frame.functions:
                dialect = self._marks.frame.functions
                return self._open_bare(TagReader(dialect, self._schemas, in_block=False))
            case Sniff.CALL | Sniff.JSON:
                self._held = []
                return self._go(State.HELD)
            case Sniff.UNKNOWN:
                return False
        waits = may_become(start, self._marks.bare) or self._buffer in _FENCE
        return False if waits and not self._final else None

    def _sniff_bare(self) -> Sniff:
        frame, names, final = self._marks.frame, self._marks.names, self._final
        match self._buffer[0]:
            case "<" if frame.functions and not self._fenced:
                return bare_function(self._buffer, frame.functions, names, final=final)
            case "{" | "[" if frame.shared and self._holds:
                return bare_object(self._buffer, names, final=final)
            case "`" if frame.shared and self._holds and self._untouched:
                return fence(self._buffer, names, final=final)
            case _:
                return Sniff.NOTHING

    def _at_thinking_mark(self) -> bool | None:
        start = self._buffer[: self._marks.longest].lower()
        if mark := first_of(start, self._marks.unthink):
            self._buffer = self._buffer[len(mark) :]
            self._begin_fresh()
            return self._go(State.TEXT)
        openers = self._marks.frame.openers if self._line_start and self._holds else ()
        if first_of(start, openers):
            self._held = []
            return self._go(State.DRAFT)
        waits = may_become(start, (*self._marks.unthink, *openers))
        return False if waits and not self._final else None

    def _begin_fresh(self) -> None:
        self._fresh, self._drop_space, self._space = True, True, ""

    @property
    def _lead(self) -> str:
        """The white space before what comes next that is part of the answer."""
        return "" if self._fresh and self._drop_space else self._space

    def _emit_prose(self, text: str) -> None:
        kind = Thinking if self._state is State.THINKING else Text
        if text:
            self._out.append(kind(text))

    # calls

    def _open(self, mark: str) -> bool:
        self._mid_line = not self._line_start
        self._opener = self._quote = self._buffer[: len(mark)]
        self._buffer = self._buffer[len(mark) :]
        self._before, self._space = self._lead, ""
        if self._marks.frame.shared:
            return self._go(State.OPENED)
        return self._begin_call(self._marks.frame.make(self._schemas))

    def _open_bare(self, reader: CallReader) -> bool:
        self._quote = ""
        return self._begin_call(reader)

    def _begin_call(self, reader: CallReader) -> bool:
        self._reader, self._fenced = reader, False
        self._begin_fresh()
        return self._go(State.CALL)

    def _in_opened(self) -> bool:
        """The text behind an opener that several formats share says how the call is written."""
        if self._take_space():
            return True
        mark = first_of(self._buffer[: self._marks.longest].lower(), self._marks.frame.openers)
        if mark:
            self._quote += self._space + self._buffer[: len(mark)]
            self._buffer, self._space = self._buffer[len(mark) :], ""
            return True
        final = self._final and not self._cut
        match after_opener(self._buffer, self._marks.names, final=final):
            case Sniff.UNKNOWN:
                return self._final and self._no_call(CUT)
            case Sniff.NOTHING:
                return self._no_call("no call in the tool call")
            case sniffed:
                self._quote += self._space
                return self._begin_call(self._reader_for(sniffed))

    def _reader_for(self, sniffed: Sniff) -> CallReader:
        if sniffed is Sniff.JSON:
            return BodyReader(notations.JSON, self._marks.names)
        dialect = tags.GLM if sniffed is Sniff.PLAIN else tags.QWEN
        return TagReader(dialect, self._schemas, in_block=True)

    def _no_call(self, reason: str) -> bool:
        """No call follows the opener: inside a line it was text about calls."""
        if not self._mid_line or reason == CUT:
            self._fault = reason
            self._quote += self._space
            return self._go(State.FAULT)
        self._go(State.TEXT)
        self._emit_prose(self._before + self._opener)
        self._fresh = self._after_call = self._untouched = False
        return True

    def _in_call(self) -> bool:
        text, self._buffer = self._buffer, ""
        if len(self._quote) < _QUOTED:
            self._quote += text[:_QUOTED]
        return self._read_call(text)

    def _read_call(self, text: str) -> bool:
        verdict = self._reader.feed(text, final=self._final, cut=self._cut)
        if self._reader.calls and not self._emit_calls():
            return True
        match verdict:
            case Verdict.MORE:
                return False
            case Verdict.BROKEN:
                self._fault = self._reader.reason
                return self._go(State.FAULT)
            case Verdict.CLOSED:
                self._begin_fresh()
                self._after_call, self._untouched = True, False
                self._go(State.TEXT)
                return self._go_on_with(self._reader.rest)
            case _:
                assert_never(verdict)

    def _go_on_with(self, text: str) -> bool:
        if len(text) > _SLICE:
            self._take(text)
        else:
            self._buffer = text
        return True

    def _emit_calls(self) -> bool:
        """Emit what the reader has; False when one of them cannot be sent."""
        for name, arguments in self._reader.calls:
            if not self._emit_call(name, arguments):
                self._fault = "arguments that are no JSON"
                self._go(State.FAULT)
                return False
        self._reader.calls.clear()
        return True

    def _emit_call(self, name: str, arguments: dict[str, Any]) -> bool:
        name = known(name, self._schemas)
        try:
            fitting = fitted(name, arguments, self._schemas)
            text = json.dumps(fitting, ensure_ascii=False, allow_nan=False)
        except ValueError, RecursionError:
            return False
        self._out.append(Call(_sendable(name), _sendable(text)))
        self.calls += 1
        return True

    # text that may turn out to be a call

    def _in_held(self) -> bool:
        """Wait for the end: all of the rest is a call, or text."""
        self._held.append(self._buffer)
        self._buffer = ""
        if not self._final:
            return False
        text = "".join(self._held)
        pieces = [] if self._cut else self._parsed(_opened(text))
        if pieces and all(isinstance(p, Call) and p.name in self._schemas for p in pieces):
            self._emit_all(pieces)
        else:
            self._emit_prose(self._lead + text)
        return self._go(State.DONE)

    def _in_draft(self) -> bool:
        """Wait for the end of the thinking, or of the answer."""
        found = self._marks.unthinks.search(self._buffer)
        if found is None and not self._final:
            kept = max(0, len(self._buffer) - self._marks.longest)
            self._held.append(self._buffer[:kept])
            self._buffer = self._buffer[kept:]
            return False
        end = found.start() if found else len(self._buffer)
        text = "".join(self._held) + self._buffer[:end]
        self._buffer = self._buffer[end:]
        return self._end_draft(text, goes_on=found is not None)

    def _end_draft(self, text: str, *, goes_on: bool) -> bool:
        pieces = [] if goes_on or self._cut else self._parsed(text)
        if any(isinstance(p, Call) for p in pieces) and not isinstance(pieces[-1], Malformed):
            self._emit_all(pieces)
            return self._go(State.DONE)
        self._go(State.THINKING)
        self._emit_prose(self._lead + (text.rstrip() if goes_on else text))
        self._fresh, self._space = False, ""
        return goes_on

    def _parsed(self, text: str) -> list[Piece]:
        parser = AnswerParser(self._schemas, self._format, holds=False)
        return parser.feed(text) + parser.finish()

    def _emit_all(self, pieces: Sequence[Piece]) -> None:
        self._out += pieces
        self.calls += sum(isinstance(piece, Call) for piece in pieces)

    # beyond repair

    def _in_fault(self) -> bool:
        """Report once enough of the call is there to quote it; ignore what follows."""
        if len(self._quote) < _QUOTED:
            self._quote += self._buffer
        self._buffer = ""
        if self._fault and (self._final or len(self._quote) >= _QUOTED):
            start = self._quote[:_QUOTED]
            self._out.append(Malformed(self._fault, start, is_cut=self._fault == CUT))
            self._fault = ""
        return False


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Return `pieces` with neighbours of the same kind made one."""
    joined: list[Piece] = []
    for kind, group in groupby(pieces, type):
        if kind is Text or kind is Thinking:
            text = "".join(p.text for p in group if isinstance(p, Text | Thinking))
            joined.append(kind(text))
        else:
            joined += group
    return joined


def _opened(text: str) -> str:
    """Return text that may be a call as one with its opener and without its fence."""
    body = unfenced(text).strip()
    if not body.startswith(("{", "[")):
        return body
    return f"<tool_call>{body}" if _HELD_ARGUMENTS.search(body) else ""


def _sendable(text: str) -> str:
    """Return `text` without the lone surrogates that JSON can escape and no frame can carry."""
    return text.encode("utf-8", "replace").decode()
