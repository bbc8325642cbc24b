"""File name patterns: gitignore's rules with ``{a,b}``.

A pattern without a slash matches the last component at any depth; one with a slash matches the
whole path. ``*`` and ``?`` stay within a component, ``**`` spans components. Components go
through `fnmatch`, whose translation has no backtracking between stars.
"""

import fnmatch
import re
from collections.abc import Callable

from punie_workers.interp.failures import Failure, Kind

MAX_ALTERNATIVES = 256

type _Match = Callable[[str], object]


class Glob:
    """One pattern, ready to match paths relative to where it is anchored."""

    def __init__(self, pattern: str) -> None:
        self._alternatives = [_Alternative(text) for text in expand_braces(pattern)]

    def matches(self, path: str) -> bool:
        """Whether the relative posix `path` matches."""
        parts = path.split("/")
        return any(alternative.matches(parts) for alternative in self._alternatives)


class _Alternative:
    def __init__(self, pattern: str) -> None:
        rooted = "/" in pattern.rstrip("/")
        parts = [part for part in pattern.split("/") if part not in ("", ".")]
        self._parts = [_component(part) for part in (parts if rooted else ["**", *parts])]

    def matches(self, path: list[str]) -> bool:
        """Match by the set of pattern positions reached: linear in path times pattern."""
        last = len(self._parts) - 1
        reached = self._skip({0})
        for name in path:
            following: set[int] = set()
            for at in reached:
                if at <= last and self._parts[at](name):
                    spans = self._parts[at] is _spanning
                    following |= {at, at + 1} if spans and at == last else {at if spans else at + 1}
            reached = self._skip(following)
        return last + 1 in reached

    def _skip(self, reached: set[int]) -> set[int]:
        """Add the positions behind each ``**``, which may stand for nothing, unless it is last:
        ``src/**`` means what is inside."""
        for at in sorted(reached):
            while at < len(self._parts) - 1 and self._parts[at] is _spanning:
                at += 1
                reached.add(at)
        return reached


def _spanning(_: str) -> object:
    return True


def _component(part: str) -> _Match:
    if part == "**":
        return _spanning
    part = re.sub(r"\*{2,}", "*", part)
    part = re.sub(r"\\([*?\[])", r"[\1]", part)
    return re.compile(fnmatch.translate(part), re.DOTALL).match


def expand_braces(pattern: str) -> list[str]:
    """Return the patterns without braces that `pattern` stands for; an unclosed one is itself."""
    done: list[str] = []
    todo = [pattern]
    while todo:
        if len(todo) + len(done) > MAX_ALTERNATIVES:
            message = f"'{pattern}' has more than {MAX_ALTERNATIVES} alternatives"
            raise Failure(Kind.INVALID_PATTERN, message)
        text = todo.pop()
        found = _braces(text)
        if found is None:
            done.append(text)
            continue
        start, end, choices = found
        todo += [text[:start] + choice + text[end:] for choice in choices]
    return done


def _braces(text: str) -> tuple[int, int, list[str]] | None:
    """Return start, end and choices of the first closed pair of braces."""
    start = text.find("{")
    depth, begin, choices = 0, start + 1, []
    for at in range(max(start, 0), len(text)):
        match text[at]:
            case "{":
                depth += 1
            case "," if depth == 1:
                choices.append(text[begin:at])
                begin = at + 1
            case "}" if depth:
                depth -= 1
                if depth == 0:
                    return start, at + 1, [*choices, text[begin:at]]
            case _:
                pass
    return None
