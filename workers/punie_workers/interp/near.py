"""What to say of text that was to stand exactly once in a file and does not.

The message names lines rather than showing them at length: the model reads them again.
"""

import re
from collections import Counter
from typing import Final

from punie_workers.interp.failures import Failure, Kind

_MAX_COUNT: Final = 100
_MAX_NAMED: Final = 8
_MAX_WANTED: Final = 200
_MAX_COMPARED: Final = 10_000
_MAX_TRIED: Final = 8
_MAX_SHOWN: Final = 120
_WORD: Final = re.compile(r"\w+|[^\w\s]")
_ALIKE: Final = 0.5
"""Share of words two lines must have in common to be called alike."""


def places(shown: str, wanted: str) -> list[int]:
    """Return where `wanted` stands, overlapping too; `_MAX_COUNT` places at most."""
    found: list[int] = []
    at = shown.find(wanted)
    while at >= 0 and len(found) < _MAX_COUNT:
        found.append(at)
        at = shown.find(wanted, at + 1)
    return found


def several(path: str, shown: str, found: list[int]) -> Failure:
    """Return the failure of text that stands in more than one place."""
    numbers = [shown.count("\n", 0, at) + 1 for at in found[:_MAX_NAMED]]
    more = ", …" if len(found) > _MAX_NAMED else ""
    count = f"{_MAX_COUNT} times or more" if len(found) == _MAX_COUNT else f"{len(found)} times"
    where = ", ".join(map(str, numbers))
    return Failure(
        Kind.NOT_UNIQUE,
        f"old_text stands {count} in '{path}', at lines {where}{more}: "
        "add lines around it until it stands once",
    )


def nowhere(path: str, shown: str, wanted: str) -> Failure:
    """Return the failure of text that does not stand in the file."""
    have, want = shown.split("\n"), wanted.strip("\n").split("\n")[:_MAX_WANTED]
    if not shown:
        return _no_match(path, "the file is empty, write_file fills it")
    if (at := _same_words(have, want)) is not None:
        return _no_match(path, _other_whitespace(path, have, want, at))
    if (at := _nearest(have, want)) is not None:
        line = have[at].strip()[:_MAX_SHOWN]
        return _no_match(path, f"the nearest is line {at + 1}, '{line}'; {_again(path, at, want)}")
    return _no_match(path, "nothing there is like it, read the file again")


def _no_match(path: str, why: str) -> Failure:
    return Failure(Kind.NO_MATCH, f"old_text does not stand in '{path}': {why}")


def _again(path: str, at: int, want: list[str]) -> str:
    return f"read it again: read_file('{path}', {at + 1}, {len(want)})"


def _same_words(have: list[str], want: list[str]) -> int | None:
    """Return the first of the lines that hold `want` but for whitespace."""
    first, *rest = [" ".join(line.split()) for line in want]
    lines = [" ".join(line.split()) for line in have]
    if not rest:
        return next((at for at, line in enumerate(lines) if first and first in line), None)
    *inner, last = rest
    for at, line in enumerate(lines):
        if not line.endswith(first):
            continue
        after = lines[at + 1 : at + len(want)]
        whole = len(after) == len(rest) and after[:-1] == inner
        if whole and after[-1].startswith(last) and any((first, *rest)):
            return at
    return None


def _other_whitespace(path: str, have: list[str], want: list[str], at: int) -> str:
    pairs = zip(have[at : at + len(want)], want, strict=True)
    differing = [(n, is_, asked) for n, (is_, asked) in enumerate(pairs) if is_ != asked]
    lines = f"line {at + 1} is" if len(want) == 1 else f"lines {at + 1}-{at + len(want)} are"
    said = f"{lines} the same but for whitespace"
    if not differing:
        return f"{said}: the line ends around it differ"
    n, is_, asked = differing[0]
    here = f"line {at + n + 1} begins with {_indent(is_)}, yours with {_indent(asked)}"
    if _indent(is_) == _indent(asked):
        here = f"line {at + n + 1} differs inside or at its end"
    return f"{said} ({here}); {_again(path, at, want)}"


def _indent(line: str) -> str:
    blank = line[: len(line) - len(line.lstrip())]
    tabs, spaces = blank.count("\t"), len(blank) - blank.count("\t")
    counted = [(tabs, "tab"), (spaces, "space")]
    named = [f"{count} {name}{'s' * (count > 1)}" for count, name in counted if count]
    return " and ".join(named) or "no blank"


def _nearest(have: list[str], want: list[str]) -> int | None:
    """Return the line where most lines of `want` stand in their order; else the one most alike
    to its longest line; ``None`` when none is."""
    starts = {line.strip(): n for n, line in reversed(list(enumerate(want))) if line.strip()}
    votes = Counter(
        at - starts[line.strip()]
        for at, line in enumerate(have)
        if line.strip() in starts and at >= starts[line.strip()]
    )
    if votes:
        return votes.most_common(1)[0][0]
    return _most_alike(have[:_MAX_COMPARED], want)


def _most_alike(have: list[str], want: list[str]) -> int | None:
    """Return where `want` would begin if the line stood there that is most like one of it."""
    words = [set(_WORD.findall(line)) for line in have]
    best, where = 0.0, 0
    for number in sorted(range(len(want)), key=lambda n: -len(want[n]))[:_MAX_TRIED]:
        wanted = set(_WORD.findall(want[number]))
        for at, others in enumerate(words):
            share = len(wanted & others) / max(len(wanted | others), 1)
            if share > best:
                best, where = share, max(at - number, 0)
    return where if best >= _ALIKE else None
