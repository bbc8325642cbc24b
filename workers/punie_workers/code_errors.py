"""What went wrong in a program, in the one line that the model reads."""

import re

import pydantic_monty as monty

from punie_protocol.errors import Internal, PunieError, ToolFailed, WireError

_DIAGNOSTIC = re.compile(r"^[^:\n]+:(\d+):\d+: error\[[\w-]+\] (.*)$", re.MULTILINE)
_MAX_DIAGNOSTICS = 3
_MAX_TEXT = 500


def error_text(error: WireError) -> str:
    """Return the ``kind: message`` of a failed tool call, in one line."""
    kind = error.kind if isinstance(error, ToolFailed) else str(error.__struct_config__.tag)
    hint = f" (use: {error.hint})" if kind == "invalid_request" and error.hint else ""
    return _one_line(f"{kind}: {error.message}{hint}")


def tool_error(error: PunieError) -> str:
    """Return the text of the exception that a failed tool call raises in the sandbox."""
    return error_text(error.error)


def time_limit(limit_s: float) -> PunieError:
    """Return the failure of a program that took too long."""
    return _failed("time_limit", f"stopped after {limit_s:g} seconds")


def describe(error: monty.MontyError, told: set[str], limit_s: float, memory: int) -> PunieError:
    """Return the failure that `error` is; `told` are texts of tool errors raised before."""
    match error:
        case monty.MontyTypingError():
            return _failed("type_check", _diagnostics(error.display()))
        case monty.MontyRuntimeError() | monty.MontySyntaxError():
            return _raised(error, told, limit_s, memory)
        case monty.MontyCrashedError(timed_out=True):
            return time_limit(limit_s)
        case monty.MontyCrashedError():
            return _failed("crashed", "the sandbox ended unexpectedly")
        case _:
            return PunieError(Internal(message=f"sandbox: {_one_line(str(error))}"))


def _raised(
    error: monty.MontyRuntimeError | monty.MontySyntaxError,
    told: set[str],
    limit_s: float,
    memory: int,
) -> PunieError:
    inner = error.exception()
    text = str(inner)
    match inner:
        case RuntimeError() if text in told:
            kind, _, message = text.partition(": ")
            return _failed(kind, message)
        case TimeoutError() if "limit exceeded" in text:
            return time_limit(limit_s)
        case MemoryError() if "limit exceeded" in text:
            return _failed("memory_limit", f"more than {memory // 1024**2} MB")
        case _:
            frames = error.traceback()
            line = f" (line {frames[-1].line})" if frames else ""
            return _failed(type(inner).__name__, (text or "no message") + line)


def _diagnostics(text: str) -> str:
    found = [f"{message} (line {line})" for line, message in _DIAGNOSTIC.findall(text)]
    return "; ".join(found[:_MAX_DIAGNOSTICS]) or text


def _failed(kind: str, message: str) -> PunieError:
    return PunieError(ToolFailed(kind=kind, message=_one_line(message)))


def _one_line(text: str) -> str:
    """Half a surrogate pair, as in a path a model made up, is no text for the wire."""
    return " ".join(text[: 4 * _MAX_TEXT].encode("utf-8", "replace").decode().split())[:_MAX_TEXT]
