"""When an engine that answers nothing is given up. Pure: readings in, a verdict out."""

from typing import Final

PROGRESS_DEADLINE: Final = 120.0
"""Seconds that a request under way may go without a prompt chunk or a token."""
LOOKS: Final = 12
"""Looks within the deadline. They are counted, not timed: a process that was stopped, or whose
machine slept, did not look."""


class Watchdog:
    """To be shown the engine's progress `LOOKS` times in each deadline."""

    def __init__(self) -> None:
        self._seen: int | None = None
        self._still = 0

    def is_hung(self, progress: int | None) -> bool:
        """Take a reading: a number that changes with each piece of work, None when no request is
        under way. True when it was the same for a whole deadline."""
        moved = progress is None or progress != self._seen
        self._still = 0 if moved else self._still + 1
        self._seen = progress
        return self._still >= LOOKS
