"""Reader of calls written as tags round verbatim values; see `ValueReader` for those."""

from enum import Enum
from typing import Any, Final, assert_never

from punie_model_host.arguments import Schemas, convert
from punie_model_host.calls.bodies import BodyReader, Notation
from punie_model_host.calls.json_calls import parse_object
from punie_model_host.calls.loose_json import NotJsonError, strict
from punie_model_host.calls.names import known
from punie_model_host.calls.reading import CUT, NamedCall, Verdict
from punie_model_host.calls.tags import LONGEST_TAG, Dialect, Role, Tag, plain_name
from punie_model_host.calls.value_reader import ValueReader

_SLICE: Final = 4096
"""Characters that are looked at together."""


class State(Enum):
    """Where in the block the reader is; `TRANSITIONS` says what may come next."""

    BLOCK = "block"
    PARAMETERS = "parameters"
    KEY = "key"
    BEFORE_VALUE = "before value"
    VALUE = "value"
    JSON = "json"
    DONE = "done"


TRANSITIONS: Final = {
    State.BLOCK: {State.PARAMETERS, State.DONE},
    State.PARAMETERS: {State.VALUE, State.KEY, State.JSON, State.BLOCK, State.DONE},
    State.KEY: {State.BEFORE_VALUE, State.DONE},
    State.BEFORE_VALUE: {State.VALUE, State.DONE},
    State.VALUE: {State.PARAMETERS, State.DONE},
    State.JSON: {State.PARAMETERS, State.DONE},
    State.DONE: set(),
}


class TagReader:
    """A `CallReader` for one block in `dialect`; with `in_block` the block's tag came before."""

    def __init__(self, dialect: Dialect, schemas: Schemas, *, in_block: bool) -> None:
        self.calls: list[NamedCall] = []
        self.rest = self.reason = ""
        self._dialect = dialect
        self._schemas = schemas
        self._in_block = in_block
        self._state = State.BLOCK
        self._verdict = Verdict.MORE
        self._buffer = ""
        self._final = self._cut = False
        self._functions = 0
        self._name = ""
        self._arguments: dict[str, Any] = {}
        self._parameter = Tag(Role.PARAMETER, False, "", "", "")
        self._value = ValueReader(dialect, Role.PARAMETER, self._is_next)
        self._is_flat = False
        self._json = BodyReader(_arguments_of(dialect), ())

    @property
    def pending(self) -> int:
        """Characters that are looked at again when more text comes."""
        return len(self._buffer) + max(self._json.pending, self._value.pending)

    def feed(self, text: str, *, final: bool = False, cut: bool = False) -> Verdict:
        """Take more of the block."""
        plain = self._state is State.VALUE and not final and "<" not in text
        if plain and self._value.take_plain(text):
            return Verdict.MORE
        self._cut = cut
        self._take(text, final=final)
        return self._verdict

    def _take(self, text: str, *, final: bool) -> None:
        """Read more text, a slice at a time: what is done to the buffer costs its length."""
        self._final = False
        for start in range(0, len(text), _SLICE):
            self._buffer += text[start : start + _SLICE]
            self._run()
        self._final = final
        self._run()

    def _run(self) -> None:
        while self._state is not State.DONE and self._step():
            pass
        if self._state is State.DONE:
            self.rest += self._buffer
            self._buffer = ""

    def _step(self) -> bool:
        """Consume something from the buffer; False when more text is needed for that."""
        match self._state:
            case State.BLOCK:
                return self._in_block_step()
            case State.PARAMETERS:
                return self._in_parameters()
            case State.KEY:
                return self._in_key()
            case State.BEFORE_VALUE:
                return self._before_value()
            case State.VALUE:
                return self._in_value()
            case State.JSON:
                return self._in_json()
            case State.DONE:
                return False
            case _:
                assert_never(self._state)

    def _go(self, state: State) -> bool:
        assert state in TRANSITIONS[self._state], f"{self._state} -> {state}"
        self._state = state
        return True

    # between calls

    def _in_block_step(self) -> bool:
        self._buffer = self._buffer.lstrip()
        if self._waits():
            return False
        if not self._buffer:
            return self._final and self._end_block()
        if self._cut and self._dialect.may_begin(self._buffer):
            return self._fail(CUT)
        tag = self._tag()
        match tag:
            case Tag(Role.FUNCTION, False):
                return self._open_function(tag)
            case Tag(Role.BLOCK, True):
                self._drop(tag)
                return self._end_block()
            case Tag(Role.BLOCK, False) if not self._functions:
                return self._drop(tag)
            case Tag(is_closing=True):
                return self._drop(tag)
            case _ if self._dialect.plain_names and not self._functions and tag is None:
                return self._open_plain()
            case _:
                return self._end_block()

    def _open_function(self, tag: Tag) -> bool:
        self._drop(tag)
        if not tag.name:
            return self._fail("a function without a name")
        return self._begin(tag.name)

    def _open_plain(self) -> bool:
        name = plain_name(self._buffer)
        if len(name) == len(self._buffer) and not self._final:
            return False
        if not name:
            return self._end_block()
        self._buffer = self._buffer[len(name) :]
        return self._begin(name)

    def _begin(self, name: str) -> bool:
        self._name, self._arguments = known(name, self._schemas), {}
        self._functions += 1
        return self._go(State.PARAMETERS)

    def _end_block(self) -> bool:
        if not self._functions:
            return self._fail("no function in the tool call")
        return self._finish(Verdict.CLOSED)

    # between parameters

    def _in_parameters(self) -> bool:
        self._buffer = self._buffer.lstrip()
        if not self._buffer:
            return self._final and self._end_unclosed()
        if self._waits():
            return False
        tag = self._tag()
        match tag:
            case Tag(Role.PARAMETER | Role.KEY | Role.JSON, False):
                return self._open_parameter(tag)
            case Tag(Role.PARAMETER | Role.KEY | Role.JSON, True):
                return self._drop(tag)
            case Tag(Role.FUNCTION, True):
                self._drop(tag)
                return self._close_function()
            case Tag():
                return self._close_function()
            case _ if self._buffer in ("`", "``") and not self._final:
                return False
            case _ if self._buffer.startswith(("{", "```")) and not self._arguments:
                self._json = BodyReader(_arguments_of(self._dialect), ())
                return self._go(State.JSON)
            case _:
                return self._fail(f"text between the parameters of {self._name}")

    def _end_unclosed(self) -> bool:
        """The answer ends between parameters: whatever closes the call is missing."""
        return self._fail(CUT) if self._cut else self._close_function()

    def _open_parameter(self, tag: Tag) -> bool:
        self._drop(tag)
        if tag.role is Role.KEY:
            return self._go(State.KEY)
        if not tag.name and tag.role is Role.PARAMETER:
            return self._fail(f"a parameter of {self._name} without a name")
        return self._begin_value(tag)

    def _begin_value(self, tag: Tag) -> bool:
        self._parameter = tag
        self._value, self._is_flat = ValueReader(self._dialect, tag.role, self._is_next), False
        return self._go(State.VALUE)

    def _in_key(self) -> bool:
        end = self._buffer.find("<")
        if end < 0 and len(self._buffer) <= LONGEST_TAG and not self._final:
            return False
        name = self._buffer[: max(end, 0)].strip()
        if not name or len(name) > LONGEST_TAG:
            return self._fail(self._unless_cut(f"a parameter of {self._name} without a name"))
        self._buffer = self._buffer[end:]
        self._parameter = Tag(Role.PARAMETER, False, name, "", "")
        return self._go(State.BEFORE_VALUE)

    def _before_value(self) -> bool:
        """Skip what is between a key and its value."""
        stripped = self._buffer.lstrip()
        if not stripped or (not self._final and self._dialect.may_begin(stripped)):
            self._buffer = stripped
            if not self._final:
                return False
            return self._fail(self._unless_cut(f"parameter {self._parameter.name} has no value"))
        self._buffer = stripped
        tag = self._tag()
        match tag:
            case Tag(Role.KEY, True):
                return self._drop(tag)
            case Tag(Role.PARAMETER, False):
                self._drop(tag)
        return self._begin_value(self._parameter)

    def _close_function(self) -> bool:
        self.calls.append((self._name, self._arguments))
        return self._go(State.BLOCK)

    # a value

    def _in_value(self) -> bool:
        text, self._buffer = self._buffer, ""
        if not self._value.feed(text, final=self._final, cut=self._cut):
            return self._final and self._end_in_value()
        self._buffer = self._value.rest
        return self._set_argument(self._value.text) and self._go(State.PARAMETERS)

    def _is_next(self, name: str) -> bool:
        """Whether the tool has a parameter of that name and the call has not."""
        properties = self._schemas.get(self._name, {})
        name = known(name, properties)
        given = {*self._arguments, self._known_parameter()}
        return name in properties and name not in given

    def _known_parameter(self) -> str:
        return known(self._parameter.name, self._schemas.get(self._name, {}))

    def _set_argument(self, text: str) -> bool:
        if self._parameter.role is Role.JSON:
            return self._set_all(text)
        name = self._known_parameter()
        schema = self._schemas.get(self._name, {}).get(name, {})
        self._arguments[name] = self._typed(text, schema)
        return True

    def _set_all(self, text: str) -> bool:
        parsed = parse_object(text, (), closed=True, cut=False)
        if parsed.fault:
            return not self._fail(f"arguments of {self._name}: {parsed.fault}")
        self._arguments |= parsed.calls[0][1]
        return True

    def _typed(self, text: str, schema: Any) -> Any:
        if schema or self._parameter.type in ("", "string"):
            return convert(text, schema)
        try:
            value, end = strict(text.strip())
        except NotJsonError:
            return text
        return value if end == len(text.strip()) else text

    def _end_in_value(self) -> bool:
        """The answer ends inside a value: that is the end of the call only if the call was closed,
        and text came behind it."""
        if self._cut:
            return self._fail(CUT)
        if not self._is_flat and (self._value.is_open or self._would_end_flat()):
            return self._read_flat()
        if not self._value.end_anyway():
            return self._fail(f"parameter {self._parameter.name} has no end")
        self._buffer = self._value.rest
        if not self._set_argument(self._value.text):
            return True
        self.calls.append((self._name, self._arguments))
        return self._finish(Verdict.CLOSED)

    def _read_flat(self) -> bool:
        """Read the value again: the tags that it quotes are not closed in it, so that counting
        does not tell them from the call's own."""
        text = self._value.everything
        self._value = ValueReader(self._dialect, self._parameter.role, self._is_next, flat=True)
        self._is_flat = True
        self._take(text, final=True)
        return False

    def _would_end_flat(self) -> bool:
        """Whether the answer is nothing but calls if what looks quoted is not."""
        if not self._value.quotes:
            return False
        trial = TagReader(self._dialect, self._schemas, in_block=self._in_block)
        trial._name, trial._functions = self._name, self._functions
        trial._arguments, trial._parameter = dict(self._arguments), self._parameter
        trial._state, trial._value, trial._final = State.VALUE, self._value, True
        trial._read_flat()
        behind = self._dialect.tag(trial.rest.lstrip(), final=True)
        opens = behind is not None and behind.role is self._dialect.outermost
        calls_follow = opens and behind is not None and not behind.is_closing
        return trial._verdict is Verdict.CLOSED and (calls_follow or not trial.rest.strip())

    # arguments as JSON

    def _in_json(self) -> bool:
        text, self._buffer = self._buffer, ""
        match self._json.feed(text, final=self._final, cut=self._cut):
            case Verdict.MORE:
                return False
            case Verdict.BROKEN:
                reason = self._json.reason
                return self._fail(
                    reason if reason == CUT else f"arguments of {self._name}: {reason}"
                )
            case Verdict.CLOSED:
                self._buffer = self._json.rest
                ((_, self._arguments),) = self._json.calls
                return self._go(State.PARAMETERS)
            case verdict:
                assert_never(verdict)

    # the buffer

    def _waits(self) -> bool:
        """Whether the buffer is the beginning of a tag, and no more than that."""
        return not self._final and self._dialect.may_begin(self._buffer)

    def _tag(self) -> Tag | None:
        """The tag that is next. The last one of an answer may lack its end, if nothing cut it."""
        return self._dialect.tag(self._buffer, final=self._final and not self._cut)

    def _drop(self, tag: Tag) -> bool:
        self._buffer = self._buffer[len(tag.text) :]
        return True

    def _unless_cut(self, reason: str) -> str:
        return CUT if self._cut else reason

    def _fail(self, reason: str) -> bool:
        half = not self._buffer or self._dialect.may_begin(self._buffer)
        self.reason = self._unless_cut(reason) if half else reason
        return self._finish(Verdict.BROKEN)

    def _finish(self, verdict: Verdict) -> bool:
        self._verdict = verdict
        return self._go(State.DONE)


def _arguments_of(dialect: Dialect) -> Notation:
    closers = [
        start + ("" if dialect.marked else ">")
        for start in dialect.starts
        if start.startswith(("</", "<|close|>"))
        and dialect.roles[start.removeprefix("</").removeprefix("<|close|>")]
        in (Role.FUNCTION, Role.BLOCK)
    ]
    return Notation(parse_object, tuple(closers), consumes=False, ends_itself=True)
