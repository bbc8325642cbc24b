"""Settings of the engine that a command line changes until the daemon ends. Pure."""

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from punie_protocol.backends import is_backend
from punie_protocol.client import Drafting
from punie_protocol.engine import EngineSettings, Speculation
from punie_protocol.errors import InvalidRequest, PunieError

NOTHING: Final = Drafting()
"""Changes nothing."""
FLAGS: Final = {
    "speculation": "--speculation",
    "num_draft_tokens": "--num-draft-tokens",
    "draft_model": "--draft-model",
}
"""The flag for each field of `Drafting`."""

_WITHOUT_MODEL: Final = (Speculation.OFF, Speculation.NGRAM)
_NAMES: Final = dict(
    zip(Drafting.__struct_fields__, Drafting.__struct_encode_fields__, strict=True)
)


def applied(settings: EngineSettings, wish: Drafting) -> EngineSettings:
    """Return `settings` with what is wished; what is not wished stays. Raises `PunieError` when
    they do not go together."""
    given = dict(_given(wish))
    if given.get("num_draft_tokens") == 0:
        given["num_draft_tokens"] = None
    if given.get("draft_model") == "":
        given["draft_model"] = None
    settings = msgspec.structs.replace(settings, **given)
    check(settings)
    if wish.draft_model and settings.speculation in _WITHOUT_MODEL:
        text = f"speculation {settings.speculation} uses no draft model"
        raise PunieError(InvalidRequest(message=text, hint="add: --speculation auto"))
    return settings


def check(settings: EngineSettings) -> None:
    """Raise `PunieError` when they do not go together."""
    if settings.speculation is Speculation.DRAFT and settings.draft_model is None:
        text = f'speculation "{Speculation.DRAFT}" needs a draft_model'
        hint = "name one (--draft-model, or draft_model in config.toml), or take ngram"
        raise PunieError(InvalidRequest(message=text, hint=hint))
    if settings.draft_model is not None and is_backend(settings.draft_model):
        text = f"draft_model {settings.draft_model[:200]!r} is a server's address"
        raise PunieError(InvalidRequest(message=text, hint="name a model folder"))


def is_empty(wish: Drafting) -> bool:
    """Whether it changes nothing."""
    return not any(_given(wish))


def arguments(wish: Drafting) -> list[str]:
    """Return the command line that says the same."""
    return [f"{FLAGS[name]}={value}" for name, value in _given(wish)]


def parse(words: Mapping[str, str | None]) -> Drafting:
    """Return the wish of a command line, its words by field. Raises `PunieError` that names the
    flag."""
    for name, word in words.items():
        try:
            msgspec.convert({_NAMES[name]: word}, Drafting, strict=False)
        except msgspec.ValidationError as error:
            text = f"{FLAGS[name]} {(word or '')[:100]!r}: {str(error).partition(' - at ')[0]}"
            raise PunieError(InvalidRequest(message=text)) from None
    given = {_NAMES[name]: word for name, word in words.items()}
    return msgspec.convert(given, Drafting, strict=False)


def _given(wish: Drafting) -> Iterator[tuple[str, object]]:
    for name in FLAGS:
        if (value := getattr(wish, name)) is not None:
            yield name, value
