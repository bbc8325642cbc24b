"""What went wrong in a program or a tool, in words that the model can act on."""

from collections.abc import Iterable
from typing import Final

import msgspec
import pydantic_monty as monty

from punie_protocol.errors import (
    Denied,
    Internal,
    InvalidRequest,
    PunieError,
    ToolFailed,
    WireError,
)
from punie_workers.code_advice import advice, plain
from punie_workers.code_checks import rejection
from punie_workers.code_limits import Limits, too_big, too_many_calls, too_slow

_MAX_TEXT: Final = 500
_MAX_DONE: Final = 20


def error_text(error: WireError) -> str:
    """Return the ``kind: message (hint)`` of a failed tool call in one line; for a program, what
    it had printed and done by then follows."""
    kind = error.kind if isinstance(error, ToolFailed) else str(error.__struct_config__.tag)
    output = error.output if isinstance(error, ToolFailed) else ""
    return _one_line(f"{kind}: {error.message}") + _hint(error) + (output and f"\n{output}")


def tool_error(error: PunieError) -> str:
    """Return the text of the exception that a failed tool call raises in the sandbox."""
    return error_text(error.error)


def describe(
    error: monty.MontyError, told: dict[str, WireError], limits: Limits, line: int
) -> WireError:
    """Return the failure that `error` is; `told` are the tool errors raised before by their text,
    `line` is that of the last tool call, or 0."""
    match error:
        case monty.MontyTypingError():
            return rejection(error.display()) or Internal(message="the check found nothing")
        case monty.MontyRuntimeError() | monty.MontySyntaxError():
            return _raised(error, told, limits, line)
        case monty.MontyCrashedError(timed_out=True):
            return too_slow(limits, line)
        case monty.MontyCrashedError():
            return ToolFailed(
                kind="crashed",
                message="the sandbox ended unexpectedly",
                hint="look what the program has done, then run the rest again",
            )
        case _:
            return Internal(message=f"sandbox: {_one_line(str(error))}")


def not_started(error: monty.MontyError) -> WireError:
    """Return the failure of a sandbox that did not start; what it complained of is in the log."""
    return ToolFailed(
        kind="sandbox",
        message=f"the sandbox did not start: {_one_line(str(error))}",
        hint="nothing was run: call the tools one by one; `punie doctor` says what is wrong",
    )


def so_far(error: WireError, done: Iterable[str], printed: str) -> WireError:
    """Return `error` with what the program had done and printed, and what a program that it had
    run had printed."""
    if not isinstance(error, ToolFailed):
        return error
    names = list(done)
    more = f" and {len(names) - _MAX_DONE} more" if len(names) > _MAX_DONE else ""
    parts = [f"done before: {', '.join(names[:_MAX_DONE])}{more}"] if names else []
    parts += [f"printed before:\n{printed}"] if printed else []
    parts += [f"output of what failed:\n{error.output}"] if error.output else []
    return msgspec.structs.replace(error, output="\n".join(parts))


def exit_text(error: monty.MontyError) -> str | None:
    """Return what a program that ended itself (`SystemExit`) says at last, or None."""
    if not isinstance(error, monty.MontyRuntimeError):
        return None
    inner = error.exception()
    return str(inner) if isinstance(inner, SystemExit) else None


def _raised(
    error: monty.MontyRuntimeError | monty.MontySyntaxError,
    told: dict[str, WireError],
    limits: Limits,
    line: int,
) -> WireError:
    inner = error.exception()
    text = str(inner)
    where = _where(error)
    match inner:
        case RuntimeError() if text in told:
            return _uncaught(told[text], where)
        case TimeoutError() if "limit exceeded" in text:
            return too_slow(limits, line)
        case MemoryError() if "limit exceeded" in text or "memory limit" in text:
            return too_big(limits)
        case RuntimeError() if text.startswith("suspension limit"):
            return too_many_calls(limits, line)
        case NotImplementedError():
            kind = "unsupported"
        case _:
            kind = type(inner).__name__
    message = plain(text) or "no message"
    return ToolFailed(kind=kind, message=_one_line(message) + where, hint=advice(f"{kind}: {text}"))


def _uncaught(error: WireError, where: str) -> ToolFailed:
    """Return the error of a tool that the program did not catch."""
    kind = error.kind if isinstance(error, ToolFailed) else str(error.__struct_config__.tag)
    message = _one_line(error.message)
    if isinstance(error, Denied) and error.hint and where:  # its sentence goes on in the hint
        message = f"{where.strip(' ()')}: {message}"
    else:
        message += where
    output = error.output if isinstance(error, ToolFailed) else ""
    return ToolFailed(kind=kind, message=message, hint=error.hint, output=output)


def _where(error: monty.MontyRuntimeError | monty.MontySyntaxError) -> str:
    frames = error.traceback()
    if not frames:
        return ""
    if frames[0].line == frames[-1].line:
        return f" (line {frames[0].line})"
    return f" (line {frames[-1].line}, called from line {frames[0].line})"


def _hint(error: WireError) -> str:
    if not error.hint:
        return ""
    use = "use: " if isinstance(error, InvalidRequest) else ""
    return f" ({use}{_one_line(error.hint)})"


def _one_line(text: str) -> str:
    """Half a surrogate pair, as in a path a model made up, is no text for the wire."""
    return " ".join(text[: 4 * _MAX_TEXT].encode("utf-8", "replace").decode().split())[:_MAX_TEXT]
