"""What goes wrong with another model server, in Punie's typed errors. Pure.

Servers agree on HTTP status codes and on little else. That a conversation is too long is told by
a code (OpenAI, llama.cpp) or in words alone (vLLM, LM Studio).
"""

import re
from typing import Final

import httpx2
import msgspec
from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelQuotaExceededError,
    ModelTimeoutError,
)

from punie_protocol.backends import Backend
from punie_protocol.errors import (
    ContextOverflow,
    InvalidRequest,
    LinkClosed,
    ModelFault,
    ModelUnavailable,
    NotFound,
    Overloaded,
    PunieError,
    TimedOut,
    WireError,
)

_TEXT: Final = 500
"""Characters of a server's own words that are passed on."""
_TOO_LONG: Final = re.compile(
    r"context[ _](?:length|size|window)|maximum context|exceed_context|prompt is too long"
)
_LIMIT: Final = re.compile(r"(?:context (?:length|size|window)|n_ctx|maximum)\D{0,40}(\d+)")
_SMALLEST_WINDOW: Final = 64
"""A smaller number after such words means something else."""
_NUMBER: Final = re.compile(r"\d+")
_LOG_HINT: Final = "check the address, and the server's log"
_KEY_HINT: Final = "set `key` or `key_env` of this server under [[servers]] in config.toml"
_START_HINT: Final = (
    "start the server, or give its `command` under [[servers]] in config.toml; the address ends "
    "in /v1 for most"
)


def typed_error(error: Exception, backend: Backend, window: int) -> PunieError:
    """Return what `error`, raised by a request to `backend`, means. `LinkClosed` stands for an
    answer that broke off, and for a server that went away: the step can be repeated."""
    match error:
        case PunieError():
            return error
        case ModelTimeoutError() | httpx2.TimeoutException():
            return _timed_out(error, backend)
        case ModelConnectionError(phase="connect" | "pool") | httpx2.ConnectError():
            return unreachable(backend, _reason(error))
        case ModelConnectionError() | httpx2.TransportError() | httpx2.StreamError():
            return LinkClosed(f"{backend.url}: {_reason(error)}")
        case ModelAPIError():
            return PunieError(_api_error(error, backend, window))
        case _:
            return no_completion(backend, _reason(error))


def unreachable(backend: Backend, reason: str) -> PunieError:
    """Return that nobody answers there."""
    message = f"no model server answers at {backend.url}: {reason}"
    return PunieError(ModelUnavailable(message=message, hint=_START_HINT))


def no_completion(backend: Backend, reason: str) -> PunieError:
    """Return that what came is not of the protocol."""
    message = f"{backend.url} sent what is no OpenAI-compatible answer: {reason[:_TEXT]}"
    return PunieError(ModelFault(message=message, hint=_LOG_HINT))


def no_model(backend: Backend, names: list[str]) -> PunieError:
    """Return that the server has no such model; `names` are those it has."""
    has = f"it has {', '.join(names[:20])}" if names else "it has none"
    message = f"{backend.url} has no model {backend.name!r}; {has}"
    hint = f"name one of them: {backend.url}#{names[0]}" if names else "load a model there"
    return PunieError(NotFound(message=message, hint=hint, what="model"))


def is_context_overflow(text: str) -> bool:
    """Whether a server's words say that a conversation is too long."""
    return bool(_TOO_LONG.search(text.lower()))


def overflow(text: str, backend: Backend, window: int) -> ContextOverflow:
    """Return the error for such words, with the numbers they hold, else with guesses from what
    was taken for the window."""
    lowered = text.lower()
    said = _LIMIT.search(lowered)
    limit = int(said[1]) if said and int(said[1]) >= _SMALLEST_WINDOW else window
    largest = max((int(number) for number in _NUMBER.findall(lowered)), default=0)
    return ContextOverflow(
        message=f"the conversation is too long for {backend.name or backend.url}: {text[:_TEXT]}",
        hint=f"set context_window = {limit} for this server under [[servers]] in config.toml",
        tokens=largest if largest > limit else limit + 1,
        limit=limit,
    )


def status_error(code: int, body: bytes, backend: Backend) -> PunieError:
    """Return the error for an answer whose HTTP status is none of success."""
    try:
        said = _said(msgspec.json.decode(body))
    except msgspec.MsgspecError:
        said = body[:_TEXT].decode(errors="replace")
    return PunieError(_by_status(code, _short(said), backend))


def _timed_out(error: Exception, backend: Backend) -> PunieError:
    if isinstance(error, httpx2.ConnectTimeout) or (
        isinstance(error, ModelConnectionError) and error.phase in ("connect", "pool")
    ):
        return unreachable(backend, "it does not accept connections")
    limit = backend.timeout_s
    message = f"the model server {backend.url} sent nothing for {limit:g} s"
    hint = "raise timeout_s for this server under [[servers]] in config.toml"
    return PunieError(TimedOut(message=message, hint=hint, limit_s=limit))


def _api_error(error: ModelAPIError, backend: Backend, window: int) -> WireError:
    text = _short(_said(error.body)) or _reason(error)
    match error:
        case ModelQuotaExceededError():
            message = f"the account at the model server {backend.url} is used up: {text}"
            return ModelFault(message=message)
        case _ if isinstance(error, ModelContextWindowExceededError) or is_context_overflow(text):
            return overflow(text, backend, window)
        case ModelHTTPError(status_code=code):
            return _by_status(code, text, backend, error.retry_after)
        case _:
            message = f"the model server {backend.url} failed: {text}"
            return ModelFault(message=message, hint=_LOG_HINT)


def _by_status(
    code: int, text: str, backend: Backend, retry_after: float | None = None
) -> WireError:
    at = f"the model server {backend.url}"
    match code:
        case 401 | 403:
            return ModelFault(message=f"{at} refuses the key: {text}", hint=_KEY_HINT)
        case 404:
            hint = "check the address; it ends in /v1 for most servers"
            return NotFound(message=f"{at} has no such thing: {text}", hint=hint, what="model")
        case 400 | 413 | 422:
            return InvalidRequest(message=f"{at} refuses the request: {text}")
        case 429:
            hint = f"try again in {retry_after:g} s" if retry_after else "try again in a moment"
            return Overloaded(message=f"{at} takes no more requests now: {text}", hint=hint)
        case 503 | 529:
            message = f"{at} cannot answer now: {text}"
            return ModelUnavailable(message=message, hint="try again in a moment")
        case _:
            message = f"{at} answers with HTTP {code}: {text}"
            return ModelFault(message=message, hint=_LOG_HINT)


def _short(text: str) -> str:
    return " ".join(text.split())[:_TEXT]


def _said(body: object) -> str:
    match body:
        case {"error": {"message": str(text)} as inner}:
            return f"{text}{_counts(inner)}"
        case {"error": str(text)} | {"message": str(text)} | {"detail": str(text)} | str(text):
            return f"{text}{_counts(body)}"
        case None:
            return ""
        case _:
            return msgspec.json.encode(body, enc_hook=str).decode()


def _counts(body: object) -> str:
    """Return llama.cpp's numbers, which its text may lack."""
    match body:
        case {"n_prompt_tokens": int(tokens), "n_ctx": int(limit)}:
            return f" (n_ctx {limit}, n_prompt_tokens {tokens})"
        case _:
            return ""


def _reason(error: BaseException) -> str:
    """Return why, from the innermost cause that says something."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _short(str(error)) or type(error).__name__
