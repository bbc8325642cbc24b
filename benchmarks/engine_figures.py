"""The figures of `benchmarks.engine` out of raw samples. Pure."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

type Marks = Sequence[tuple[float, int]]
"""When how many words came."""

TINY: Final = 0.005
"""Seconds: nothing is divided by a smaller time, for the quotient would say nothing."""


def middle(values: Sequence[float]) -> float | None:
    """Return the median; ``None`` of nothing."""
    return statistics.median(values) if values else None


def rounded(value: float | None) -> float | None:
    """Return a figure as it is printed."""
    return None if value is None else round(value, 3)


def milliseconds(seconds: float | None) -> float | None:
    """Return a time as it is printed."""
    return None if seconds is None else round(seconds * 1000, 1)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return the median of ours over the median of theirs; ``None`` without samples of both."""
    if not ours or not theirs:
        return None
    return round(statistics.median(ours) / statistics.median(theirs), 3)


def time_ratio(ours: float | None, theirs: float | None) -> float | None:
    """Return ours over theirs, times in seconds; ``None`` when theirs is next to nothing."""
    if ours is None or theirs is None or theirs < TINY:
        return None
    return round(ours / theirs, 3)


def added(joining: Sequence[float], alone: Sequence[float]) -> float | None:
    """Return the wait that running streams add: the difference of the medians."""
    if not joining or not alone:
        return None
    return statistics.median(joining) - statistics.median(alone)


def gaps(marks: Marks) -> list[float]:
    """Return the times between arrivals."""
    return [after - before for (before, _), (after, _) in itertools.pairwise(marks)]


def longest_gap(marks: Marks, start: float, end: float) -> float:
    """Return the longest time without a word that overlaps `start` to `end`. Raises `RuntimeError`
    when nothing came before or after: then the stream was not running."""
    times = [when for when, _ in marks]
    if not times or times[0] > start or times[-1] < end:
        raise RuntimeError("a stream did not run all the time that it was watched")
    pairs = itertools.pairwise(times)
    return max(after - before for before, after in pairs if after > start and before < end)


def fairness(words: Mapping[str, int]) -> float:
    """Return the share of the worst client over a fair share, 1 when all got the same."""
    return round(min(words.values()) / (sum(words.values()) / len(words)), 3)


def most_at_once(spans: Sequence[tuple[float, float]]) -> int:
    """Return how many of the spans from start to end overlap at most."""
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    return max(itertools.accumulate(change for _, change in changes), default=0)


@dataclass
class Ceiling:
    """How much of a prompt a perfect cache has: the longest prefix it shares with anything sent or
    answered before, less than all of it (one token has to be computed)."""

    _seen: list[Sequence[int]] = field(default_factory=list[Sequence[int]])

    def of(self, prompt: Sequence[int]) -> int:
        """Return how many tokens at most can come from the cache."""
        shared = max((_common(prompt, one) for one in self._seen), default=0)
        return min(shared, len(prompt) - 1)

    def add(self, sequence: Sequence[int]) -> None:
        """Remember a prompt with its answer."""
        self._seen.append(sequence)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
