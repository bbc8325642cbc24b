"""Model servers besides our own host: any that speaks OpenAI's chat completions.

A model is named ``http://host:port/v1#name``: the base URL, then the model's name there (without
one the server's first model is taken).
"""

from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from punie_protocol.errors import InvalidRequest, PunieError

DEFAULT_WINDOW: Final = 32_768
"""Tokens; servers do not say."""

_SCHEMES: Final = ("http", "https")


class Backend(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A server and a model on it, complete. `key` is secret: never logged, never journaled."""

    url: str
    name: str = ""
    key: str = ""
    context_window: int = DEFAULT_WINDOW
    max_output_tokens: int = 8192
    timeout_s: float = 600.0

    def __repr__(self) -> str:
        return f"Backend({self.url}#{self.name})"


class Server(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[[servers]]`` of the user's config file. `url` as in a model's name, without ``#name``.

    The key is `key`, or what the environment variable `key_env` holds. With `command` Punie starts
    the server when a prompt first needs it, waits `ready_s` for it to answer, and stops it at its
    own end; without, the server is somebody else's.
    """

    url: Annotated[str, Meta(min_length=1, max_length=2000)]
    key: str = ""
    key_env: str = ""
    context_window: Annotated[int, Meta(ge=256, le=100_000_000)] = DEFAULT_WINDOW
    max_output_tokens: Annotated[int, Meta(ge=1, le=10_000_000)] = 8192
    timeout_s: Annotated[float, Meta(gt=0, le=86_400)] = 600.0
    command: list[Annotated[str, Meta(min_length=1)]] = []
    cwd: str = ""
    ready_s: Annotated[float, Meta(gt=0, le=3600)] = 120.0


def is_backend(model: str) -> bool:
    """Whether `model` names a server and not a model of our own host."""
    return model.partition(":")[0].lower() in _SCHEMES


def parse(model: str) -> tuple[str, str]:
    """Return the base URL, its host in lower case and without a slash at its end, and the model's
    name, perhaps empty.
    Raises `PunieError` when `model` is no such name, and when a password is in it: names of models
    are logged, journaled and shown."""
    url, _, name = model.partition("#")
    if "@" in url or "?" in url:
        raise _refused(
            "a model's name may hold no password, and no '?'",
            "set key or key_env of the server in config.toml",
        )
    try:
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES or not parts.hostname or parts.port == 0:
            raise ValueError
    except ValueError:
        text = f"model {model[:200]!r} is not a server's address"
        raise _refused(text, "write it as http://host:port/v1#name") from None
    return parts._replace(netloc=parts.netloc.lower()).geturl().rstrip("/"), name


def _refused(message: str, hint: str) -> PunieError:
    return PunieError(InvalidRequest(message=message, hint=hint))
