"""File name patterns: gitignore's rules with ``{a,b}``.

A pattern without a slash matches the last component at any depth; one with a slash matches the
whole path. ``*`` and ``?`` stay within a component, ``**`` spans components. Many patterns become
two regular expressions, one for names and one for paths. As in `fnmatch`, what stands before a
later star is atomic, so that no number of stars multiplies the work.
"""

import fnmatch
import re
from collections.abc import Sequence

from punie_workers.interp.failures import Failure, Kind

MAX_ALTERNATIVES = 256

_ANY_FOLDERS = "(?:[^/]*/)*"
_TOKEN = re.compile(r"\*+|\?|\\[*?\[]|\[!?+\]?+[^\]]*\]|.", re.DOTALL)


class Globs:
    """Patterns ready to match paths relative to where they are anchored."""

    def __init__(self, patterns: Sequence[str]) -> None:
        texts = [text for pattern in patterns for text in expand_braces(pattern)]
        rooted = [text for text in texts if "/" in text.rstrip("/")]
        self._paths = _any_of(rooted)
        self._names = _any_of([text for text in texts if "/" not in text.rstrip("/")])

    def matches(self, path: str) -> bool:
        """Whether any pattern matches the relative posix `path`."""
        name = path.rpartition("/")[2]
        return bool(self._names.fullmatch(name) or self._paths.fullmatch(path))


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    """Return one expression for patterns without braces. Nothing in it captures: a group at its
    start would keep `re` from passing over an alternative by its first character."""
    return re.compile("|".join(map(_translate, patterns)) or "(?!)", re.DOTALL)


def _translate(pattern: str) -> str:
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if not parts:
        return ".+"
    chunks: list[list[str]] = [[]]
    for part, after in zip(parts, [*parts[1:], ""], strict=True):
        if part != "**":
            chunks[-1].append(_component(part))
        elif after != "**":
            chunks.append([])
    head, *rest = chunks
    if not rest:
        return "/".join(head)
    *inner, last = rest
    regex = _folders(head) + "".join(f"(?>{_ANY_FOLDERS}?{_folders(chunk)})" for chunk in inner)
    return regex + (f"{_ANY_FOLDERS}{'/'.join(last)}" if last else ".+")


def _folders(chunk: list[str]) -> str:
    return "".join(part + "/" for part in chunk)


def _component(part: str) -> str:
    """Return the expression of one component; nothing in it matches a slash."""
    chunks = [""]
    for token in _TOKEN.findall(part):
        if token.startswith("*"):
            chunks.append("")
        else:
            chunks[-1] += _character(token)
    head, *rest = chunks
    if not rest:
        return head
    *inner, last = rest
    return head + "".join(f"(?>[^/]*?{chunk})" for chunk in inner) + f"[^/]*{last}"


def _character(token: str) -> str:
    if token == "?":
        return "[^/]"
    if token.startswith("\\") and len(token) == 2:
        return re.escape(token[1])
    if token.startswith("[") and len(token) > 1:
        return "(?!/)" + fnmatch.translate(token).removesuffix(r"\z")
    return re.escape(token)


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
