"""What every reader of a call promises."""

from enum import Enum
from typing import Any, Final, Protocol

CUT: Final = "cut off at the limit of tokens (max_tokens)"
"""Why a call is not made that the answer's limit of tokens ended."""

type NamedCall = tuple[str, dict[str, Any]]
"""A tool's name and the arguments."""


class Verdict(Enum):
    """How far a reader is: it wants more text, its calls have ended, or it met what is no call."""

    MORE = "more"
    CLOSED = "closed"
    BROKEN = "broken"


class CallReader(Protocol):
    """Reads what follows the opening of a call, as the stream brings it. Each character is looked
    at a bounded number of times, and what comes out does not depend on how the text is cut."""

    calls: list[NamedCall]
    """Complete calls, in order; whoever takes them clears the list."""
    rest: str
    """Once CLOSED: the text behind the calls."""
    reason: str
    """Once BROKEN: why. The calls before are good."""

    @property
    def pending(self) -> int:
        """Characters that are looked at again when more text comes."""
        ...

    def feed(self, text: str, *, final: bool = False, cut: bool = False) -> Verdict:
        """Take more text. `final` says that none follows, `cut` that a limit ended it."""
        ...
