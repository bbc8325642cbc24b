"""What the user sees: one line a step, and one way to fail."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generator


class BootstrapError(Exception):
    """A step cannot be done. Says why (`cause`) and what the user can do about it (`remedy`)."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy


@dataclass
class Step:
    """One step under way; `outcome` is what its line will end with."""

    name: str
    outcome: str = "done"


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def note(text: str) -> None:
    """Print one line that belongs to no step."""
    _say(f"bootstrap: {text}\n")


@contextmanager
def step(name: str) -> Generator[Step, None, None]:
    """Announce a step at once, and end its line with the outcome and the seconds it took."""
    current = Step(name)
    begun = time.monotonic()
    _say(f"bootstrap: {name} … ")
    try:
        yield current
    except BaseException as error:
        _say("failed\n" if isinstance(error, Exception) else "stopped\n")
        raise
    _say(f"{current.outcome} ({time.monotonic() - begun:.1f} s)\n")


def explain(error: BootstrapError) -> None:
    """Print the cause and the remedy of a failure, indented under the step's line."""
    _say("  cause: {}\n".format(error.cause.strip().replace("\n", "\n    ")))
    _say("  remedy: {}\n".format(error.remedy.strip().replace("\n", "\n    ")))
