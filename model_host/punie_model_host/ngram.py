"""Drafts from a request's own tokens: what followed the last time these tokens were there.

An edit repeats what it edits, an answer quotes what it was shown. The longest end of the sequence
that was there before is looked for, as in "prompt lookup decoding" (Saxena, 2023); nothing is
indexed, the whole sequence is compared at the speed of memory.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

LONGEST: Final = 24
"""Tokens of a match that are compared; two places that share more are as good as each other."""
_ROOM: Final = 1024

type Tokens = NDArray[np.uint32]


class History:
    """A request's tokens, prompt and answer, in one array that grows."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._buffer: Tokens = np.fromiter(tokens, np.uint32)
        self._size = self._buffer.size

    @property
    def tokens(self) -> Tokens:
        """The tokens so far, ``(tokens,)``: a view that the next `append` may leave behind."""
        return self._buffer[: self._size]

    def append(self, token: int) -> None:
        """Add a token."""
        if self._size == self._buffer.size:
            self._buffer = np.concatenate([self._buffer, np.empty(_ROOM, np.uint32)])
        self._buffer[self._size] = token
        self._size += 1


class Match(NamedTuple):
    """`length` tokens at the end were there before and ended just before `start`; at most
    `LONGEST` are counted."""

    start: int
    length: int


NOTHING: Final = Match(0, 0)


def find(tokens: Tokens) -> Match:
    """Return where the longest end of `tokens` was before, the latest such place."""
    last = tokens.size - 1
    ends = np.flatnonzero(tokens[:-1] == tokens[-1]) if last > 0 else tokens[:0]
    if not ends.size:
        return NOTHING
    length = 1
    while ends.size > 1 and length < LONGEST:
        longer = ends[ends >= length]
        longer = longer[tokens[longer - length] == tokens[last - length]]
        if not longer.size:
            break
        ends, length = longer, length + 1
    end = int(ends[-1])
    return Match(end + 1, _shared(tokens, end) if ends.size == 1 else length)


def _shared(tokens: Tokens, end: int) -> int:
    """Return how many tokens up to `end` are those at the end of all."""
    most = min(LONGEST, end + 1)
    same = tokens[end + 1 - most : end + 1] == tokens[tokens.size - most :]
    differs = np.flatnonzero(~same)
    return most - 1 - int(differs[-1]) if differs.size else most
