"""What a forward takes, by its rows and the tokens it computes of each: measured, and never guessed
far from what was measured. Pure; no clock of its own."""

from dataclasses import dataclass
from typing import Final

_WEIGHT: Final = 0.25
"""Of a new measurement in the mean."""
_OUTLIER: Final = 3.0
"""Times the mean: what took longer counts as that, the machine was busy."""
STALE: Final = 512
"""Steps after which a measurement is forgotten: contexts have grown since."""
_GUESS: Final = 0.02
"""Of a forward of one token a row, for each more token: hopeful, so that it is tried."""
_LEAP: Final = 2
"""Times the widest forward that was measured: what is wider is not guessed."""
_FIRST: Final = 4
_FEW: Final = 3
_LEAST: Final = 1e-6
"""Seconds: a clock may stand still."""


@dataclass(slots=True)
class _Cell:
    seconds: float
    at: int
    count: int = 1


class StepCosts:
    """Seconds of a forward that computes `width` tokens of each of `rows`."""

    def __init__(self) -> None:
        self._cells: dict[int, dict[int, _Cell]] = {}
        self._count = 0

    def tick(self) -> None:
        """A step went by, measured or not: what is known is older."""
        self._count += 1

    def add(self, rows: int, width: int, seconds: float) -> None:
        """One took so long. Of the first few the fastest counts: anything may delay one, and there
        is nothing yet to tell that by."""
        seconds = max(seconds, _LEAST)
        cells = self._cells.setdefault(rows, {})
        if (cell := cells.get(width)) is None:
            cells[width] = _Cell(seconds, self._count)
            return
        cell.at, cell.count = self._count, cell.count + 1
        if cell.count <= _FEW:
            cell.seconds = min(cell.seconds, seconds)
        else:
            cell.seconds += _WEIGHT * (min(seconds, _OUTLIER * cell.seconds) - cell.seconds)

    def plain(self, rows: int, within: int) -> float | None:
        """Return the seconds of one without drafts; ``None`` unless one was measured less than
        `within` steps ago."""
        cell = self._cells.get(rows, {}).get(1)
        return None if cell is None or self._count - cell.at >= within else cell.seconds

    def widest(self, rows: int, *, guess: bool) -> int:
        """Return how wide one may be: as wide as one that was measured, or as may be guessed."""
        measured = max(self._fresh(rows), default=0)
        return max(_FIRST, _LEAP * measured) if guess else measured

    def seconds(self, rows: int, width: int) -> float:
        """Return what one takes: measured, between two that were, or a guess from the next
        narrower. One of width 1 must have been measured."""
        cells = self._fresh(rows)
        below = max(w for w in cells if w <= width)
        start = cells[below].seconds
        above = min((w for w in cells if w > width), default=None)
        if below == width or above is None:
            return start * (1 + _GUESS * rows * (width - below))
        return start + (cells[above].seconds - start) * (width - below) / (above - below)

    def _fresh(self, rows: int) -> dict[int, _Cell]:
        cells = self._cells.get(rows, {})
        for width in [w for w, cell in cells.items() if w > 1 and self._count - cell.at > STALE]:
            del cells[width]
        return cells
