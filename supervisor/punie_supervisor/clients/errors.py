"""Failures that only a client meets."""

from pathlib import Path

from punie_protocol.errors import Internal, PunieError, TimedOut, WireError


class DaemonUnreachable(PunieError):
    """Nobody answers on the daemon's socket, or the daemon could not be started."""

    def __init__(self, socket: Path, reason: str) -> None:
        super().__init__(
            Internal(
                message=f"no daemon answers at {socket}: {reason}",
                hint="run: punie up, and see: punie logs",
            )
        )


class DaemonSilent(PunieError):
    """The daemon's socket accepts, and no answer comes."""

    def __init__(self, method: str, limit_s: float) -> None:
        super().__init__(
            TimedOut(
                message=f"the daemon did not answer {method} within {limit_s:g} s",
                hint="run: punie restart, and see: punie logs",
                limit_s=limit_s,
            )
        )


class StartFailed(PunieError):
    """The daemon was started and ended before it was ready; `error` is its own reason."""

    def __init__(self, error: WireError) -> None:
        super().__init__(error)
