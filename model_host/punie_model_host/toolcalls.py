"""Streaming parser of a model's answer: text, thinking and tool calls.

Tool calls come in two forms, told apart by what follows ``<tool_call>``: Qwen3-Coder's XML::

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

and Hermes' ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``. Repaired: a missing
``<tool_call>`` (XML, at the start of a line), several functions in a block, missing closing
tags where what follows leaves no doubt, ``</parameter>`` inside a value. What comes out does not
depend on how the stream is cut into pieces.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, assert_never

from punie_model_host.answer import Call, Malformed, Piece, Text, Thinking
from punie_model_host.arguments import convert
from punie_model_host.hermes import json_calls

_CALL: Final = "<tool_call>"
_CALL_END: Final = "</tool_call>"
_FUNCTION: Final = "<function="
_FUNCTION_END: Final = "</function>"
_PARAMETER: Final = "<parameter="
_PARAMETER_END: Final = "</parameter>"
_THINK: Final = "<think>"
_THINK_END: Final = "</think>"

_FOLLOWERS: Final = {
    _PARAMETER_END: (_PARAMETER, _FUNCTION_END, _CALL_END, _FUNCTION),
    _FUNCTION_END: (_CALL_END, _FUNCTION, _CALL),
    _CALL_END: (_CALL,),
}
"""A closing tag ends a value only before one of these, or at the end of the answer."""

_CLOSING: Final = re.compile("|".join(_FOLLOWERS))
_NAME: Final = re.compile(r"[A-Za-z_][\w.\-]*")
_MAX_NAME: Final = 128
_QUOTED: Final = 200


type Schemas = Mapping[str, Mapping[str, Any]]
"""Properties of the parameters of each tool, by tool name."""


class State(Enum):
    """Where in the answer the parser is; `TRANSITIONS` says what may come next."""

    TEXT = "text"
    THINKING = "thinking"
    BLOCK = "block"
    PARAMETERS = "parameters"
    VALUE = "value"
    JSON = "json"
    FAULT = "fault"


TRANSITIONS: Final = {
    State.TEXT: {State.THINKING, State.BLOCK},
    State.THINKING: {State.TEXT},
    State.BLOCK: {State.PARAMETERS, State.JSON, State.TEXT, State.FAULT},
    State.PARAMETERS: {State.VALUE, State.BLOCK, State.FAULT},
    State.VALUE: {State.PARAMETERS, State.FAULT},
    State.JSON: {State.TEXT, State.FAULT},
    State.FAULT: set(),
}


@dataclass(slots=True)
class _Function:
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    parameter: str = ""


class AnswerParser:
    """Feed it the answer's text, take pieces; `finish` at the end.

    `bare_functions` lets ``<function=`` at the start of a line begin a call; `thinking` says that
    the prompt ended inside ``<think>``.
    """

    def __init__(
        self, schemas: Schemas, *, bare_functions: bool = True, thinking: bool = False
    ) -> None:
        self._schemas = schemas
        self._bare_functions = bare_functions
        self._state = State.THINKING if thinking else State.TEXT
        self._buffer = ""
        self._space = ""
        self._fresh = True
        self._drop_space = False
        self._final = False
        self._cut = False
        self._scan = 0
        self._block = ""
        self._block_calls = 0
        self._function = _Function("")
        self._fault = ""
        self._out: list[Piece] = []
        self.calls = 0

    def feed(self, text: str) -> list[Piece]:
        """Take more of the answer, return the pieces that it completes."""
        self._buffer += text
        return self._run()

    def finish(self, *, cut: bool = False) -> list[Piece]:
        """End the answer. `cut` says that it ended at a limit and not by the model's will: then
        an unfinished call is not repaired."""
        self._final, self._cut = True, cut
        return self._run()

    def _run(self) -> list[Piece]:
        while self._step():
            pass
        out, self._out = self._out, []
        return out

    def _step(self) -> bool:
        """Consume something from the buffer; False when more text is needed for that."""
        match self._state:
            case State.TEXT:
                return self._prose(self._text_markers())
            case State.THINKING:
                return self._prose((_THINK_END,))
            case State.BLOCK:
                return self._in_block()
            case State.PARAMETERS:
                return self._in_parameters()
            case State.VALUE:
                return self._in_value()
            case State.JSON:
                return self._in_json()
            case State.FAULT:
                return self._in_fault()
            case _:
                assert_never(self._state)

    def _go(self, state: State) -> bool:
        assert state in TRANSITIONS[self._state], f"{self._state} -> {state}"
        self._state = state
        self._scan = 0
        return True

    # text and thinking

    def _text_markers(self) -> tuple[str, ...]:
        line_start = self._fresh or "\n" in self._space
        return (
            (_CALL,)
            + ((_FUNCTION,) if self._bare_functions and line_start else ())
            + ((_THINK, _THINK_END) if self._fresh else ())
        )

    def _prose(self, markers: tuple[str, ...]) -> bool:
        """Pass text on up to a marker. White space waits for what comes after it."""
        if self._take_space():
            return True
        if marker := self._marker(markers):
            return self._at_marker(marker)
        if not self._buffer:
            if self._final and not self._fresh:
                self._emit_prose(self._space)
                self._space = ""
            return False
        if self._may_become(markers):
            return False
        end = self._buffer.find("<", 1)
        body = (self._buffer if end < 0 else self._buffer[:end]).rstrip()
        lead = "" if self._fresh and self._drop_space else self._space
        self._emit_prose(lead + body)
        self._buffer = self._buffer[len(body) :]
        self._space, self._fresh = "", False
        return True

    def _take_space(self) -> bool:
        stripped = self._buffer.lstrip()
        taken = len(self._buffer) - len(stripped)
        self._space += self._buffer[:taken]
        self._buffer = stripped
        return taken > 0

    def _at_marker(self, marker: str) -> bool:
        self._fresh, self._drop_space, self._space = True, True, ""
        if marker != _FUNCTION:
            self._buffer = self._buffer[len(marker) :]
        match marker:
            case "<think>":
                return self._go(State.THINKING)
            case "</think>":
                return self._state is State.TEXT or self._go(State.TEXT)
            case _:
                self._block, self._block_calls = ("" if marker == _FUNCTION else marker), 0
                return self._go(State.BLOCK)

    def _emit_prose(self, text: str) -> None:
        kind = Thinking if self._state is State.THINKING else Text
        last = self._out[-1] if self._out else None
        if isinstance(last, kind):
            self._out[-1] = kind(last.text + text)
        elif text:
            self._out.append(kind(text))

    # calls

    def _in_block(self) -> bool:
        self._take_space()
        marker = self._marker((_FUNCTION, _CALL_END, _CALL, "{"))
        if marker == _FUNCTION:
            return self._open_function()
        if marker == _CALL:
            return self._drop(marker)
        if marker == "{" and self._block_calls == 0:
            return self._go(State.JSON)
        if self._may_become((_FUNCTION, _CALL_END, _CALL)):
            return False
        if self._block_calls == 0:
            return self._unfinished("no function in the tool call") if self._ended() else False
        if marker == _CALL_END:
            self._drop(marker)
        elif not self._buffer and not self._final:
            return False
        self._space = ""
        return self._go(State.TEXT)

    def _open_function(self) -> bool:
        header = self._header(_FUNCTION)
        if header is None:
            return False
        if not header:
            return self._fail("a function without a name")
        self._function = _Function(header)
        return self._go(State.PARAMETERS)

    def _in_parameters(self) -> bool:
        self._take_space()
        match self._marker((_PARAMETER, _FUNCTION_END, _CALL_END, _FUNCTION)):
            case "<parameter=":
                return self._open_parameter()
            case "</function>":
                self._drop(_FUNCTION_END)
                return self._close_function()
            case "</tool_call>" | "<function=":
                return self._close_function()
            case _ if self._may_become((_PARAMETER, _FUNCTION_END, _CALL_END, _FUNCTION)):
                return False
            case _ if self._buffer:
                return self._fail(f"text between the parameters of {self._function.name}")
            case _ if self._final and not self._cut:
                return self._close_function()
            case _:
                return self._unfinished("the call has no end") if self._final else False

    def _open_parameter(self) -> bool:
        header = self._header(_PARAMETER)
        if header is None:
            return False
        if not header:
            return self._fail(f"a parameter of {self._function.name} without a name")
        self._function.parameter = header
        return self._go(State.VALUE)

    def _in_value(self) -> bool:
        found = _CLOSING.search(self._buffer, self._scan)
        if found is None:
            self._scan = max(0, len(self._buffer) - len(_PARAMETER_END))
            return self._final and self._unfinished(
                f"parameter {self._function.parameter} has no end"
            )
        rest = self._buffer[found.end() :].lstrip()
        followers = _FOLLOWERS[found[0]]
        if (not rest and not self._final) or self._is_start(rest, followers):
            self._scan = found.start()
            return False
        if rest and not rest.startswith(followers):
            self._scan = found.start() + 1
            return True
        keep = found.end() if found[0] == _PARAMETER_END else found.start()
        self._set_argument(self._buffer[: found.start()])
        self._buffer = self._buffer[keep:]
        return self._go(State.PARAMETERS)

    def _set_argument(self, text: str) -> None:
        function = self._function
        text = text.removeprefix("\n").removesuffix("\n")
        schema = self._schemas.get(function.name, {}).get(function.parameter, {})
        function.arguments[function.parameter] = convert(text, schema)

    def _close_function(self) -> bool:
        if not self._emit_call(self._function.name, self._function.arguments):
            return self._fail("arguments that are no JSON")
        return self._go(State.BLOCK)

    def _in_json(self) -> bool:
        end = self._buffer.find(_CALL_END, self._scan)
        if end < 0 and not self._final:
            self._scan = max(0, len(self._buffer) - len(_CALL_END))
            return False
        body = self._buffer if end < 0 else self._buffer[:end]
        calls = json_calls(body)
        if calls is None or not all(self._emit_call(*call) for call in calls):
            if end < 0 or calls is not None:
                return self._unfinished("not a JSON object with name and arguments")
            self._scan = end + 1
            return True
        self._buffer = "" if end < 0 else self._buffer[end + len(_CALL_END) :]
        self._space = ""
        return self._go(State.TEXT)

    def _emit_call(self, name: str, arguments: dict[str, Any]) -> bool:
        try:
            text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        except ValueError, RecursionError:
            return False
        self._out.append(Call(_sendable(name), _sendable(text)))
        self.calls += 1
        self._block_calls += 1
        return True

    # the buffer

    def _header(self, tag: str) -> str | None:
        """Take ``<tag=NAME>``: the name, empty when it is none, None when more text is needed."""
        ends = [at for end in ">\n" if (at := self._buffer.find(end)) >= 0]
        if not ends and len(self._buffer) <= len(tag) + _MAX_NAME and not self._final:
            return None
        end = min(ends, default=0)
        name = self._buffer[len(tag) : end].strip(" \t\"'")
        if end > len(tag) + _MAX_NAME or not _NAME.fullmatch(name):
            return ""
        self._block += self._buffer[: end + 1]
        self._buffer = self._buffer[end + 1 :]
        return name

    def _drop(self, marker: str) -> bool:
        self._buffer = self._buffer[len(marker) :]
        return True

    def _marker(self, markers: Sequence[str]) -> str:
        return next((marker for marker in markers if self._buffer.startswith(marker)), "")

    def _may_become(self, markers: Sequence[str]) -> bool:
        return not self._final and self._is_start(self._buffer, markers)

    def _is_start(self, text: str, markers: Sequence[str]) -> bool:
        return (
            not self._final
            and bool(text)
            and any(marker.startswith(text) and marker != text for marker in markers)
        )

    def _ended(self) -> bool:
        return bool(self._buffer) or self._final

    def _unfinished(self, reason: str) -> bool:
        return self._fail("cut off at the limit of tokens" if self._cut else reason)

    def _fail(self, reason: str) -> bool:
        self._fault, self._buffer = reason, self._block + self._buffer
        return self._go(State.FAULT)

    def _in_fault(self) -> bool:
        """Report once enough of the call is there to quote it; ignore what follows."""
        if self._fault and (self._final or len(self._buffer) >= _QUOTED):
            self._out.append(Malformed(self._fault, self._buffer[:_QUOTED]))
            self._fault = ""
        return False


def _sendable(text: str) -> str:
    """Return `text` without the lone surrogates that JSON can escape and no frame can carry."""
    return text.encode("utf-8", "replace").decode()
