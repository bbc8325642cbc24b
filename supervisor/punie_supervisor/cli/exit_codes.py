"""Exit codes of the `punie` command."""

from enum import IntEnum
from typing import assert_never

from punie_protocol import errors
from punie_protocol.errors import LinkClosed, PunieError, WireError
from punie_supervisor.clients.errors import DaemonSilent, DaemonUnreachable, StartFailed


class ExitCode(IntEnum):
    """What a shell script can rely on."""

    OK = 0
    TURN_FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    MODEL = 4
    DENIED = 5
    TIMED_OUT = 6
    INTERRUPTED = 130


def exit_code(error: PunieError) -> ExitCode:
    """Return the exit code for an exception."""
    if isinstance(error, DaemonUnreachable | DaemonSilent | LinkClosed):
        return ExitCode.UNREACHABLE
    if isinstance(error, StartFailed) and not isinstance(error.error, errors.InvalidRequest):
        return ExitCode.UNREACHABLE
    return wire_exit_code(error.error)


def wire_exit_code(error: WireError) -> ExitCode:
    """Return the exit code for a failure that came over the wire."""
    match error:
        case errors.NotFound(what="model"):
            return ExitCode.MODEL
        case errors.InvalidRequest() | errors.TooLarge() | errors.NotFound():
            return ExitCode.USAGE
        case errors.ModelLoadFailed() | errors.ModelUnavailable() | errors.ModelFault():
            return ExitCode.MODEL
        case errors.Denied():
            return ExitCode.DENIED
        case errors.TimedOut():
            return ExitCode.TIMED_OUT
        case errors.VersionSkew():
            return ExitCode.UNREACHABLE
        case (
            errors.Overloaded()
            | errors.Cancelled()
            | errors.ContextOverflow()
            | errors.ToolFailed()
            | errors.ProcessLost()
            | errors.Internal()
        ):
            return ExitCode.TURN_FAILED
        case _:
            assert_never(error)
