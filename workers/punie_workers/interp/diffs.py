"""Differences of lines, shown as unified diffs.

Myers' greedy algorithm ("An O(ND) difference algorithm", 1986) with a budget: past it, what lies
between the common beginning and end counts as replaced. `difflib` has no such bound.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

MAX_DIFF = 64 * 1024
"""Bytes of a diff that are kept."""

_CONTEXT: Final = 3
_MAX_DISTANCE: Final = 400
_MAX_STEPS: Final = 1_000_000
_NO_END: Final = "\n\\ No newline at end of file\n"


class Change(NamedTuple):
    """Lines ``old[old_start:old_end]`` became ``new[new_start:new_end]``; one may be empty."""

    old_start: int
    old_end: int
    new_start: int
    new_end: int


class Diff(NamedTuple):
    """A unified diff, cut at `MAX_DIFF`, and how many lines it adds and removes in full."""

    text: str
    added: int
    removed: int


def lines(text: str) -> list[str]:
    """Return the lines with their ends; only ``\\n`` ends one."""
    *whole, last = text.split("\n")
    found = [line + "\n" for line in whole]
    return [*found, last] if last else found


def changes(old: Sequence[str], new: Sequence[str]) -> list[Change]:
    """Return what changed, in order; lines between two changes are equal."""
    start = _common(old, new)
    rest = min(len(old), len(new)) - start
    end = _common(old[::-1], new[::-1], rest)
    middle = _changes(old[start : len(old) - end], new[start : len(new) - end])
    return [Change(*(at + start for at in change)) for change in middle]


def _common(old: Sequence[str], new: Sequence[str], most: int | None = None) -> int:
    count = 0
    for one, other in zip(old[:most], new[:most], strict=False):
        if one != other:
            break
        count += 1
    return count


def _changes(old: Sequence[str], new: Sequence[str]) -> list[Change]:
    if not old and not new:
        return []
    found: list[Change] = []
    at_old = at_new = 0
    for old_start, new_start, length in [*_matches(old, new), (len(old), len(new), 0)]:
        if (at_old, at_new) != (old_start, new_start):
            found.append(Change(at_old, old_start, at_new, new_start))
        at_old, at_new = old_start + length, new_start + length
    return found


def _matches(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return runs of equal lines: where in `old`, where in `new`, how many."""
    if not old or not new:
        return []
    trace = _search(old, new)
    found: list[tuple[int, int, int]] = []
    x, y = len(old), len(new)
    for distance in range(len(trace) - 1, -1, -1):
        reached, k = trace[distance], x - y
        middle = distance + 1
        down = k == -distance or (
            k != distance and reached[middle + k - 1] < reached[middle + k + 1]
        )
        before_k = k + 1 if down else k - 1
        before_x = reached[middle + before_k] if distance else 0
        start = (before_x if down else before_x + 1) if distance else 0
        if x > start:
            found.append((start, start - k, x - start))
        x, y = before_x, before_x - before_k
    return found[::-1]


def _search(old: Sequence[str], new: Sequence[str]) -> list[list[int]]:
    """Return, for each distance, how far each diagonal reached before it; empty over budget."""
    reach = [0] * (2 * _MAX_DISTANCE + 3)
    middle = _MAX_DISTANCE + 1
    trace: list[list[int]] = []
    steps = 0
    for distance in range(_MAX_DISTANCE + 1):
        trace.append(reach[middle - distance - 1 : middle + distance + 2])
        for k in range(-distance, distance + 1, 2):
            left, right = reach[middle + k - 1], reach[middle + k + 1]
            down = k == -distance or (k != distance and left < right)
            start = right if down else left + 1
            x = _slide(old, new, start, start - k) if distance else _slide(old, new, 0, 0)
            reach[middle + k] = x
            if x >= len(old) and x - k >= len(new):
                return trace
            steps += x - start + 1
        if steps > _MAX_STEPS:
            break
    return []


def _slide(old: Sequence[str], new: Sequence[str], x: int, y: int) -> int:
    while x < len(old) and y < len(new) and old[x] == new[y]:
        x += 1
        y += 1
    return x


def unified(old: str, new: str, old_path: str | None, new_path: str | None) -> Diff:
    """Return the diff of two texts as shown; a path is ``None`` where the file is not."""
    before, after = lines(old), lines(new)
    found = changes(before, after)
    header = f"--- {_named('a', old_path)}\n+++ {_named('b', new_path)}\n"
    hunks = "".join(_hunk(before, after, group) for group in _groups(found))
    added = sum(change.new_end - change.new_start for change in found)
    removed = sum(change.old_end - change.old_start for change in found)
    created_or_deleted = None in (old_path, new_path)
    text = header + hunks if hunks or created_or_deleted else ""
    return Diff(_cut(text), added, removed)


def _named(side: str, path: str | None) -> str:
    if path is None:
        return "/dev/null"
    if path.isprintable() and not set(path) & set('"\\'):
        return f"{side}/{path}\t" if " " in path else f"{side}/{path}"
    return quoted(f"{side}/{path}")


def quoted(path: str) -> str:
    """Return a path as git quotes it."""
    text = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{text}"'


def _groups(found: list[Change]) -> Iterator[list[Change]]:
    """Yield changes whose context touches."""
    group: list[Change] = []
    for change in found:
        if group and change.old_start - group[-1].old_end > 2 * _CONTEXT:
            yield group
            group = []
        group.append(change)
    if group:
        yield group


def _hunk(old: list[str], new: list[str], group: list[Change]) -> str:
    first, last = group[0], group[-1]
    start = max(first.old_start - _CONTEXT, 0)
    end = min(last.old_end + _CONTEXT, len(old))
    shift = first.new_start - first.old_start
    new_end = end + last.new_end - last.old_end
    at = f"@@ -{_span(start, end)} +{_span(start + shift, new_end)} @@\n"
    return at + "".join(
        sign + (line if line.endswith("\n") else line + _NO_END)
        for sign, line in _signed(old, new, group, start, end)
    )


def _signed(
    old: list[str], new: list[str], group: list[Change], start: int, end: int
) -> Iterator[tuple[str, str]]:
    for change in group:
        yield from ((" ", line) for line in old[start : change.old_start])
        yield from (("-", line) for line in old[change.old_start : change.old_end])
        yield from (("+", line) for line in new[change.new_start : change.new_end])
        start = change.old_end
    yield from ((" ", line) for line in old[start:end])


def _span(start: int, end: int) -> str:
    length = end - start
    if length == 1:
        return str(start + 1)
    return f"{start + 1 if length else start},{length}"


def _cut(text: str) -> str:
    data = text.encode("utf-8", "surrogatepass")
    if len(data) <= MAX_DIFF:
        return text
    kept = data[:MAX_DIFF].decode("utf-8", "ignore")
    whole, end, _ = kept.rpartition("\n")
    kept = whole + end if len(whole) > MAX_DIFF // 2 else kept + "\n"
    return f"{kept}… cut, the whole diff has {len(data)} bytes\n"
