"""Failures as OpenAI's clients read them: a status, and ``{"error": {...}}``. Pure."""

import re
from typing import Final

import msgspec

from punie_protocol.errors import (
    Cancelled,
    ContextOverflow,
    Denied,
    InvalidRequest,
    ModelLoadFailed,
    ModelUnavailable,
    NotFound,
    Overloaded,
    ProcessLost,
    PunieError,
    TimedOut,
    TooLarge,
    WireError,
)
from punie_protocol.messages.to_model_host import Sampling

type Headers = list[tuple[bytes, bytes]]

TOO_MANY: Final = "rate_limit_exceeded"
"""What OpenAI's servers call it when a client is to come back later."""
_PARAMS: Final = frozenset({*Sampling.__struct_fields__, "messages", "tools", "prompt"})
"""Fields of a request as `Generate` calls them too."""
_BEGINNINGS: Final = {
    "the prompt ": "prompt",
    "the conversation ": "messages",
    "the chat template ": "messages",
    "parameters of tool ": "tools",
    "a call cannot be demanded": "tool_choice",
}
"""How messages begin that are about a field without naming it as clients do."""


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's error object. `param` is the field at fault, `code` a stable word."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """What an error answer, and the last event of a stream that failed, consist of."""

    error: ErrorBody


class Refusal(Exception):
    """A request is answered by an error. With `close` its connection ends: the rest of what it
    sends is not read."""

    def __init__(
        self,
        status: int,
        type: str,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Headers | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(message=message, type=type, param=param, code=code)
        self.headers = headers or []
        self.close = close

    def encoded(self) -> bytes:
        """Return the body as JSON."""
        return msgspec.json.encode(ErrorEnvelope(self.body))


def invalid(message: str, param: str | None = None, *, code: str | None = None) -> Refusal:
    """Return the refusal of a request that is not as it should be; `param` is the field."""
    return Refusal(400, "invalid_request_error", message, param=param, code=code)


def undecodable(error: Exception) -> Refusal:
    """Return the refusal of a body that is no JSON, no UTF-8, or has the wrong types."""
    message = str(error)
    at = re.search(r" - at (?:`key` in )?`\$\.?([^`]*)`$", message)
    missing = re.search(r"missing required field `(\w+)`", message)
    if at is None and missing is None:
        return invalid(f"the body is not a JSON object as it should be: {message}")
    names = [at[1].replace("[...]", "")] if at is not None else []
    names += [missing[1]] if missing is not None else []
    return invalid(message, ".".join(filter(None, names)) or None)


def refusal(error: WireError) -> Refusal:
    """Return a failure of the engine as an answer."""
    status, type, code = _kind(error)
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    param = _param(error)
    headers = [(b"retry-after", b"1")] if status in (429, 503) else []
    return Refusal(status, type, message, param=param, code=code, headers=headers)


def as_refusal(error: PunieError) -> Refusal:
    """Return a raised failure as an answer."""
    return refusal(error.error)


def _kind(error: WireError) -> tuple[int, str, str | None]:
    match error:
        case InvalidRequest():
            return 400, "invalid_request_error", None
        case ContextOverflow():
            return 400, "invalid_request_error", "context_length_exceeded"
        case TooLarge():
            return 413, "invalid_request_error", "request_too_large"
        case NotFound(what=what):
            return 404, "invalid_request_error", f"{what}_not_found"
        case Denied():
            return 403, "permission_error", "denied"
        case Overloaded():
            return 429, "rate_limit_error", TOO_MANY
        case ModelUnavailable() | ModelLoadFailed() | ProcessLost() | Cancelled():
            return 503, "server_error", _word(error)
        case TimedOut():
            return 504, "server_error", "timed_out"
        case _:
            return 500, "server_error", _word(error)


def _word(error: WireError) -> str:
    return str(error.__struct_config__.tag)


def _param(error: WireError) -> str | None:
    """Return the field that an error's message begins with."""
    if not isinstance(error, InvalidRequest | ContextOverflow):
        return None
    for beginning, param in _BEGINNINGS.items():
        if error.message.startswith(beginning):
            return param
    named = re.match(r"(?:sampling: )?(\w+)", error.message)
    return named[1] if named and named[1] in _PARAMS else None
