"""Failures that only a client meets."""

from pathlib import Path

from punie_protocol.errors import Internal, PunieError, Retry, WireError


class DaemonUnreachable(PunieError):
    """Nobody answers on the daemon's socket, or the daemon could not be started."""

    retry = Retry.LATER

    def __init__(self, socket: Path, reason: str) -> None:
        super().__init__(
            Internal(
                message=f"no daemon answers at {socket}: {reason}",
                hint="run: punie up, and see: punie logs",
            )
        )


class StartFailed(PunieError):
    """The daemon was started and ended before it was ready; `error` is its own reason."""

    def __init__(self, error: WireError) -> None:
        super().__init__(error)
