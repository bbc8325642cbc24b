"""What a command begins with: standard input as context, its one deadline, a daemon to be there."""

import os
import select
import stat
import sys
import time
from typing import Final, Self

import msgspec

from punie_protocol.errors import PunieError, TimedOut, TooLarge
from punie_protocol.limits import MAX_CLIENT_MESSAGE
from punie_supervisor.cli import output
from punie_supervisor.clients import launch
from punie_supervisor.paths import Paths

SILENCE: Final = 3.0
"""How long a pipe on standard input may stay silent before the question goes out without it."""


class Deadline(msgspec.Struct, frozen=True):
    """The end of ``--timeout``: `limit_s` seconds from the start of the command, `at` on the
    monotonic clock."""

    limit_s: float | None
    at: float

    @classmethod
    def starting_now(cls, limit_s: float | None) -> Self:
        """Begin to count; ``None`` never ends."""
        return cls(limit_s, time.monotonic() + limit_s if limit_s is not None else float("inf"))

    def within(self, seconds: float) -> float:
        """Return what is left, at most `seconds`. Raises `PunieError` when nothing is."""
        left = min(seconds, self.at - time.monotonic())
        if left <= 0:
            raise self.passed()
        return left

    def passed(self) -> PunieError:
        """Return the error to raise."""
        limit = self.limit_s or 0.0
        return PunieError(TimedOut(message=f"no complete answer within {limit:g} s", limit_s=limit))


def read_context(deadline: Deadline) -> str:
    """Return what is piped or redirected into standard input; empty for a terminal.

    A pipe that stays silent for `SILENCE` seconds is left alone, and that is said; one that has
    begun is read to its end. Bytes that are not UTF-8 are replaced. Raises `PunieError` for more
    than a prompt can carry, and at the deadline.
    """
    fd = _input()
    if fd is None:
        return ""
    data = bytearray()
    while len(data) <= MAX_CLIENT_MESSAGE:
        if not select.select([fd], [], [], deadline.within(SILENCE))[0]:
            if not data:
                output.say(f"nothing came on standard input within {SILENCE:g} s: going on without")
                return ""
            output.progress("reading standard input to its end")
            continue
        if not (chunk := os.read(fd, 1 << 20)):
            return data.decode(errors="replace")
        data += chunk
    raise PunieError(
        TooLarge(
            message=f"standard input is over the limit of {MAX_CLIENT_MESSAGE} bytes",
            hint="give a part of it, or name a file for Punie to read",
            limit=MAX_CLIENT_MESSAGE,
            actual=len(data),
        )
    )


def _input() -> int | None:
    """Return the descriptor to read, unless it is a terminal or no input at all."""
    if sys.stdin is None or sys.stdin.closed:
        return None
    fd = sys.stdin.fileno()
    return None if stat.S_ISCHR(os.fstat(fd).st_mode) else fd


def announce(paths: Paths) -> None:
    """Say that a daemon is about to be started, unless one runs."""
    if not launch.is_running(paths):
        output.say("starting the daemon (stop it with: punie down)")
