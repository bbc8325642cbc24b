"""Calls whose body is a notation with strings and brackets (JSON, Gemma's, Python's): the reader
finds the body's end, a pure function then reads the body."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol

from punie_model_host.calls.json_calls import Parsed
from punie_model_host.calls.reading import NamedCall, Verdict

_LOOK_AHEAD: Final = 64
"""Spaces behind a closing tag that are waited for."""


class Parse(Protocol):
    """Reads a body whose calls may be for the tools `names`. `closed`: its end was written;
    `cut`: a limit ended it, so that only what is complete counts."""

    def __call__(self, body: str, names: Collection[str], *, closed: bool, cut: bool) -> Parsed: ...


@dataclass(frozen=True)
class Notation:
    """How bodies of a format are written. `closers` end one, `openers` begin the next one, `quotes`
    delimit strings. With `ends_itself`, text behind balanced brackets is no longer the body; with
    `consumes`, the closer is not part of what is behind the body."""

    parse: Parse
    closers: tuple[str, ...]
    openers: tuple[str, ...] = ()
    quotes: tuple[str, ...] = ('"',)
    ends_itself: bool = False
    consumes: bool = True

    @cached_property
    def longest(self) -> int:
        """Characters of the longest mark."""
        return max(map(len, (*self.closers, *self.openers, *self.quotes, "\\x")))

    @cached_property
    def outside(self) -> re.Pattern[str]:
        """Marks outside strings."""
        return _any_of(*self.closers, *self.openers, *self.quotes, more=r"[{}\[\]()]")

    @cached_property
    def behind(self) -> re.Pattern[str]:
        """Marks behind balanced brackets."""
        return _any_of(*self.closers, *self.openers, *self.quotes, more=r"\S")

    @cached_property
    def inside(self) -> dict[str, re.Pattern[str]]:
        """Marks inside a string, by its quote."""
        escape = {q: r"\\[\s\S]" if len(q) == 1 or q in ('"""', "'''") else "" for q in self.quotes}
        return {q: _any_of(q, more=escape[q]) for q in self.quotes}


def _any_of(*texts: str, more: str) -> re.Pattern[str]:
    marks = sorted(texts, key=len, reverse=True)
    either = "|".join(map(re.escape, marks))
    return re.compile(f"(?a:{either})|{more}" if more else f"(?a:{either})", re.I)


class BodyReader:
    """A `CallReader` for one block in `notation`."""

    def __init__(self, notation: Notation, names: Collection[str]) -> None:
        self.calls: list[NamedCall] = []
        self.rest = self.reason = ""
        self._notation = notation
        self._names = names
        self._parts: list[str] = []
        self._tail = ""
        self._quote = ""
        self._depth = 0
        self._begun = False

    @property
    def pending(self) -> int:
        """Characters that are looked at again when more text comes."""
        return len(self._tail)

    def feed(self, text: str, *, final: bool = False, cut: bool = False) -> Verdict:
        """Take more of the block."""
        self._tail += text
        at = 0
        while (found := self._pattern().search(self._tail, at)) is not None:
            if found.start() + self._notation.longest > len(self._tail) and not final:
                break
            end = self._at_mark(found, final=final)
            if end is None:
                break
            if end:
                return self._close(*end)
            at = found.end()
        if final:
            return self._close_at_end(cut=cut)
        kept = len(self._tail) - self._notation.longest + 1 if found is None else found.start()
        at = max(at, kept)
        self._parts.append(self._tail[:at])
        self._tail = self._tail[at:]
        return Verdict.MORE

    def _pattern(self) -> re.Pattern[str]:
        if self._quote:
            return self._notation.inside[self._quote]
        if self._notation.ends_itself and self._begun and self._depth == 0:
            return self._notation.behind
        return self._notation.outside

    def _at_mark(self, found: re.Match[str], *, final: bool) -> tuple[int, int] | tuple[()] | None:
        """Take a mark into account: return where body and mark end if it ends the body, None when
        more text is needed to tell."""
        mark = found[0].lower()
        if self._quote:
            self._quote = "" if mark == self._quote else self._quote
        elif mark in self._notation.closers:
            return self._at_closer(found, final=final)
        elif mark in self._notation.quotes:
            self._quote, self._begun = mark, True
        elif mark in "{[(":
            self._depth, self._begun = self._depth + 1, True
        elif mark in "}])":
            self._depth = max(0, self._depth - 1)
        elif self._depth == 0 and self._begun and mark not in ",;`":
            return found.start(), found.start()
        return ()

    def _at_closer(
        self, found: re.Match[str], *, final: bool
    ) -> tuple[int, int] | tuple[()] | None:
        """A closer among open brackets is the end only at the end of a line or before a tag."""
        end = found.start(), (found.end() if self._notation.consumes else found.start())
        if self._depth == 0:
            return end
        after = self._tail[found.end() : found.end() + _LOOK_AHEAD].lstrip(" \t")
        if after:
            return end if after[0] in "\r\n<" else ()
        waits = not final and len(self._tail) < found.end() + _LOOK_AHEAD
        return None if waits else end

    def _close(self, end: int, behind: int) -> Verdict:
        body = "".join(self._parts) + self._tail[:end]
        closed = behind > end or not self._notation.consumes
        parsed = self._notation.parse(body, self._names, closed=closed, cut=False)
        return self._conclude(parsed, self._tail[behind:])

    def _close_at_end(self, *, cut: bool) -> Verdict:
        body = "".join(self._parts) + self._tail
        if cut:
            return self._conclude(
                self._notation.parse(body, self._names, closed=False, cut=True), ""
            )
        last = max(((body.rfind(c), c) for c in self._notation.closers), default=(-1, ""))
        if last[0] >= 0:
            head, behind = body[: last[0]], body[last[0] + len(last[1]) :]
            parsed = self._notation.parse(head, self._names, closed=True, cut=False)
            if parsed.calls or parsed.fault == "":
                return self._conclude(parsed, behind)
        return self._conclude(self._notation.parse(body, self._names, closed=False, cut=False), "")

    def _conclude(self, parsed: Parsed, behind: str) -> Verdict:
        self.calls += parsed.calls
        self.reason = parsed.fault
        self.rest = parsed.rest + behind
        return Verdict.BROKEN if parsed.fault else Verdict.CLOSED
