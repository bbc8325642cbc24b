"""How many tokens of prompts a step computes beside running streams. Pure."""

from typing import Final

GOAL: Final = 0.15
"""Seconds that prompts may add to a step: as long as a stream may pause because somebody joins."""
LEAST: Final = 32
MOST: Final = 2048
_PIECE: Final = 16
_NEW: Final = 0.5
"""Weight of the latest measurement."""


class Pace:
    """Follows the steps' measured times: a token of a prompt costs more the longer the context is,
    and on every machine something else."""

    def __init__(self, first: int) -> None:
        self._decode = 0.0
        self._per_token: float | None = None
        self.tokens = first

    def step(self, seconds: float, *, rows: int, prefilled: int) -> None:
        """Take note of a step that took `seconds`."""
        if prefilled >= _PIECE:
            self._measure(max(seconds - (self._decode if rows else 0.0), seconds / 4) / prefilled)
        elif rows and not prefilled:
            self._decode += _NEW * (seconds - self._decode)

    def _measure(self, per_token: float) -> None:
        before = per_token if self._per_token is None else self._per_token
        self._per_token = max(1e-9, before + _NEW * (per_token - before))
        fits = int(GOAL / self._per_token) // _PIECE * _PIECE
        self.tokens = min(MOST, max(LEAST, fits))
