"""Reader of one value between tags.

A value may contain the very tags that end it: a file about tool calls does. So a closing tag ends a
value only where another tag follows, or the answer ends, and tags that were opened inside the value
(at the start of a line) are closed inside it first.
"""

from collections.abc import Callable
from enum import Enum
from typing import Final, assert_never

from punie_model_host.calls.tags import LONGEST_TAG, Dialect, Role, Tag

_FOLLOWERS: Final = {
    Role.KEY: (),
    Role.PARAMETER: (
        (Role.PARAMETER, False),
        (Role.KEY, False),
        (Role.FUNCTION, False),
        (Role.FUNCTION, True),
        (Role.BLOCK, False),
        (Role.BLOCK, True),
    ),
    Role.JSON: ((Role.FUNCTION, True), (Role.BLOCK, True)),
    Role.FUNCTION: ((Role.FUNCTION, False), (Role.BLOCK, True), (Role.BLOCK, False)),
    Role.BLOCK: ((Role.BLOCK, False),),
}
"""A closing tag ends a value only before one of these tags (role, closing), or at the end."""

_LEVELS: Final = (Role.PARAMETER, Role.FUNCTION, Role.BLOCK)
"""From the innermost element to the outermost."""


class State(Enum):
    """Where in the value the reader is; `TRANSITIONS` says what may come next."""

    TEXT = "text"
    CDATA = "cdata"
    AFTER_CLOSING = "after closing"
    ENDED = "ended"


TRANSITIONS: Final = {
    State.TEXT: {State.CDATA, State.AFTER_CLOSING, State.ENDED},
    State.CDATA: {State.TEXT},
    State.AFTER_CLOSING: {State.TEXT, State.ENDED},
    State.ENDED: set(),
}


class ValueReader:
    """Reads the value of an element of `role`. `is_next` says whether a name is that of a parameter
    that may come next. With `flat`, tags inside the value are not counted.

    Once `feed` returned True, `text` is the value and `rest` what comes behind it, the tags of
    outer elements included.
    """

    def __init__(
        self, dialect: Dialect, role: Role, is_next: Callable[[str], bool], *, flat: bool = False
    ) -> None:
        self.text = self.rest = ""
        self.quotes = False
        """Whether it had tags of its own."""
        self._dialect = dialect
        self._role = role
        self._is_next = is_next
        self._is_flat = flat
        self._state = State.TEXT
        self._parts: list[str] = []
        self._buffer = ""
        self._final = self._cut = False
        self._verbatim: str | None = None
        self._nested = dict.fromkeys(_LEVELS, 0)
        self._closing = Tag(role, True, "", "", "")
        self._closing_at, self._closed_line = 0, False
        self._rejected: int | None = None

    @property
    def pending(self) -> int:
        """Characters that are looked at again when more text comes."""
        return len(self._buffer)

    @property
    def is_open(self) -> bool:
        """Whether tags inside it were not closed."""
        return any(self._nested.values())

    @property
    def everything(self) -> str:
        """All that was read."""
        return "".join(self._parts) + self._buffer

    def take_plain(self, text: str) -> bool:
        """Take text without a ``<``, if that can be nothing but more of the value."""
        plain = self._state is State.TEXT and not self._buffer
        if plain:
            self._parts.append(text)
        return plain

    def feed(self, text: str, *, final: bool, cut: bool) -> bool:
        """Take more; return whether the value has ended."""
        self._buffer += text
        self._final, self._cut = final, cut
        while self._step():
            pass
        return self._state is State.ENDED

    def end_anyway(self) -> bool:
        """End it where the call had been closed, if it was and other text came behind that."""
        if self._rejected is None:
            return False
        text = "".join(self._parts[: self._rejected])
        self.text = self._trimmed(self._without_closings(text, self._dialect.outermost))
        self.rest = "".join(self._parts[self._rejected + 1 :]) + self._buffer
        return True

    def _step(self) -> bool:
        match self._state:
            case State.TEXT:
                return self._in_text()
            case State.CDATA:
                return self._in_cdata()
            case State.AFTER_CLOSING:
                return self._after_closing()
            case State.ENDED:
                return False
            case _:
                assert_never(self._state)

    def _go(self, state: State) -> bool:
        assert state in TRANSITIONS[self._state], f"{self._state} -> {state}"
        self._state = state
        return True

    def _in_text(self) -> bool:
        found = self._dialect.hit.search(self._buffer)
        if found is None:
            self._keep(self._tail_start())
            return False
        self._keep(found.start())
        if found[0].startswith("<!"):
            return self._open_cdata(len(found[0]))
        if self._waits():
            return False
        tag = self._tag()
        if tag is None:
            return self._keep(len(found[0]))
        return self._at_closing(tag) if tag.is_closing else self._at_opening(tag)

    def _tail_start(self) -> int:
        """Where the buffer's end begins that may become a tag."""
        if self._final:
            return len(self._buffer)
        start = max(0, len(self._buffer) - self._dialect.longest)
        at = self._buffer.find("<", start)
        return len(self._buffer) if at < 0 else at

    def _at_opening(self, tag: Tag) -> bool:
        name = tag.name
        if tag.role is Role.KEY:
            end = self._buffer.find("<", 1)
            if end < 0 and len(self._buffer) <= LONGEST_TAG and not self._final:
                return False
            name = self._buffer[len(tag.text) : max(end, 0)].strip()
        if tag.role in (Role.KEY, Role.PARAMETER) and self._may_follow() and self._is_next(name):
            return self._end(self._without_closings("".join(self._parts), Role.FUNCTION))
        if tag.role in self._nested and self._at_line_start() and not self._is_flat:
            self._nested[tag.role] += 1
            self.quotes = True
        return self._keep(len(tag.text))

    def _may_follow(self) -> bool:
        """Whether another parameter may begin here: at the start of a line, where the dialect has
        lines, and in no call that the value quotes."""
        quoted = self._nested[Role.FUNCTION] or (
            self._dialect.plain_names and self._nested[Role.BLOCK]
        )
        return not quoted and (self._at_line_start() or not self._dialect.own_lines)

    def _at_line_start(self) -> bool:
        """Whether only white space, or another tag, is before the next character in its line."""
        before = next((part for part in reversed(self._parts) if part.strip(" \t")), "\n")
        return before.rstrip(" \t").endswith(("\n", ">"))

    def _at_closing(self, tag: Tag) -> bool:
        if tag.role not in _LEVELS and tag.role is not self._role:
            return self._keep(len(tag.text))
        if self._nested.get(tag.role, 0):
            self._nested[tag.role] -= 1
            for inner in _LEVELS[: _LEVELS.index(tag.role)]:
                self._nested[inner] = 0
            return self._keep(len(tag.text))
        self._closing, self._closing_at = tag, len(self._parts)
        self._closed_line = self._at_line_start()
        self._keep(len(tag.text))
        return self._go(State.AFTER_CLOSING)

    def _after_closing(self) -> bool:
        """A closing tag is the last of the value: what follows says whether it ends it."""
        space = len(self._buffer) - len(self._buffer.lstrip())
        if space:
            return self._keep(space)
        if not self._final and (not self._buffer or self._waits()):
            return False
        tag = self._tag()
        follows = tag and (tag.role, tag.is_closing) in _FOLLOWERS[self._closing.role]
        if self._buffer and not follows:
            if self._closing.role is self._dialect.outermost and self._closed_line:
                self._rejected = self._closing_at
            return self._go(State.TEXT)
        text = "".join(self._parts[: self._closing_at])
        if self._closing.role is not self._role:
            self._buffer = "".join(self._parts[self._closing_at :]) + self._buffer
            text = self._without_closings(text, self._closing.role)
        return self._end(text)

    def _end(self, text: str) -> bool:
        self.text, self.rest = self._trimmed(text), self._buffer
        self._buffer = ""
        return self._go(State.ENDED)

    def _without_closings(self, text: str, role: Role) -> str:
        """Return `text` without the closing tags of elements inside `role` that it ends with: a
        tag that the value quotes had made them look like the value's own."""
        for inner in reversed(_LEVELS[: _LEVELS.index(role)]):
            start = max(0, text.rfind("<"))
            tag = self._dialect.tag(text[start:])
            ends = tag is not None and not text[start + len(tag.text) :].strip()
            if tag is not None and ends and tag.is_closing and tag.role is inner:
                text = text[:start]
        return text

    def _trimmed(self, text: str) -> str:
        if self._verbatim is not None:
            return self._verbatim + text.strip()
        if self._dialect.own_lines:
            return text.removeprefix("\n").removesuffix("\n")
        both = len(text) > 1 and text[0] == text[-1] == "\n"
        return text[1:-1] if both else text

    def _open_cdata(self, length: int) -> bool:
        if self._verbatim is not None or any(part.strip() for part in self._parts):
            return self._keep(length)
        self._buffer, self._parts = self._buffer[length:], []
        return self._go(State.CDATA)

    def _in_cdata(self) -> bool:
        end = self._buffer.find("]]>")
        if end < 0:
            self._keep(len(self._buffer) if self._final else max(0, len(self._buffer) - 2))
            return False
        self._keep(end)
        self._verbatim, self._parts = "".join(self._parts), []
        self._buffer = self._buffer[3:]
        return self._go(State.TEXT)

    def _keep(self, end: int) -> bool:
        """Take text up to `end` as part of the value."""
        if end:
            self._parts.append(self._buffer[:end])
            self._buffer = self._buffer[end:]
        return True

    def _waits(self) -> bool:
        """Whether the buffer is the beginning of a tag, and no more than that."""
        return not self._final and self._dialect.may_begin(self._buffer)

    def _tag(self) -> Tag | None:
        """The tag that is next. The last one of an answer may lack its end, if nothing cut it."""
        return self._dialect.tag(self._buffer, final=self._final and not self._cut)
