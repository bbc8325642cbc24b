"""The marks that begin and end something in an answer, and how they are looked for quickly."""

import re
from collections.abc import Sequence
from functools import lru_cache

from punie_model_host.calls.formats import ToolCallFormat
from punie_model_host.calls.frames import FRAMES, Frame


class Marks:
    """The marks of a format for some tools, and what is needed to look for them quickly. `fresh`
    ones count at the beginning of a text only."""

    def __init__(self, frame: Frame, names: Sequence[str]) -> None:
        self.frame = frame
        self.names = frozenset(names)
        self.bare = frame.bare(names)
        self.unthink = tuple(closing for _, closing in frame.thinking)
        self.unthinks = re.compile("|".join(map(re.escape, self.unthink)), re.I | re.A)
        self.fresh = (*(opening for opening, _ in frame.thinking), *self.unthink)
        marks = (*frame.openers, *frame.dropped, *frame.closers, *self.fresh)
        self.firsts = frozenset(mark[0] for mark in marks)
        firsts = "".join(sorted(self.firsts))
        self.interesting = re.compile(f"[{re.escape(firsts)}\\n]")
        self.longest = max(map(len, (*marks, *self.bare)))


@lru_cache(maxsize=64)
def marks_of(format: ToolCallFormat, names: tuple[str, ...]) -> Marks:
    """Return the marks of `format` for tools of these `names`."""
    return Marks(FRAMES[format], names)


def first_of(text: str, marks: Sequence[str]) -> str:
    """Return the one of `marks` that `text` (in lower case) begins with, empty if with none."""
    return next((mark for mark in marks if text.startswith(mark)), "")


def may_become(text: str, marks: Sequence[str]) -> bool:
    """Whether `text` is the beginning of one of `marks`, and not all of it."""
    return any(mark.startswith(text) and mark != text for mark in marks)
