"""What drafts may cost: a share of the time that is spent on requests, and no more."""

from typing import Final

SHARE: Final = 0.015
"""Of all seconds, that drafts may have wasted at most."""


class Ledger:
    """Seconds won by drafts, less those lost. `start` forwards' time may be risked before anything
    was won; `most` forwards' time is remembered of what was won: it is not for losing again. Pure.
    """

    def __init__(self, start: float = 3.0, most: float = 16.0) -> None:
        self._start, self._most = start, most
        self._balance: float | None = None

    @property
    def allows(self) -> bool:
        """Whether more may be risked."""
        return self._balance is None or self._balance > 0

    def worked(self, seconds: float, plain: float) -> None:
        """A step took so long, whatever it did; a forward without drafts takes `plain`."""
        if self._balance is None:
            self._balance = self._start * plain
        self.book(SHARE * seconds, plain)

    def book(self, won: float, plain: float) -> None:
        """Drafts won so many seconds, or lost them if it is less than nothing."""
        balance = self._start * plain if self._balance is None else self._balance
        self._balance = min(balance + won, self._most * plain)
