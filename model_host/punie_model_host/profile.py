"""How a model wants to be used: ``profile.toml`` in its folder, else what the folder's own
configuration says. All sizes are tokens."""

import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from punie_model_host.failures import load_failed
from punie_protocol.messages.common import PromptStyle

PROFILE: Final = "profile.toml"
_DEFAULT_WINDOW: Final = 4096
_DEFAULT_MAX_TOKENS: Final = 8192
_HINT: Final = f"correct {PROFILE}, or remove it to use the model's own configuration"


class ToolCallFormat(StrEnum):
    """How the model writes a tool call."""

    QWEN3_CODER = "qwen3-coder"
    JSON = "json"


MAX_TOKENS: Final = 100_000_000
MAX_TOP_K: Final = 1_000_000

type _Tokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
type _Share = Annotated[float, Meta(ge=0.0, le=1.0)]
type _Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]


class SamplingProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Defaults of a request's sampling. Temperature 0 is greedy; `top_p` 1, `top_k` 0, `min_p` 0,
    `repetition_penalty` 1, the other penalties 0 and `xtc_probability` 0 are off. Penalties count
    the last 20 tokens of prompt and answer."""

    temperature: Annotated[float, Meta(ge=0.0, le=10.0)] = 0.0
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=MAX_TOP_K)] = 0
    min_p: _Share = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] = 1.0
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    xtc_probability: _Share = 0.0
    xtc_threshold: Annotated[float, Meta(gt=0.0, le=0.5)] = 0.1
    max_tokens: _Tokens = _DEFAULT_MAX_TOKENS


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A model's profile, complete. With `check_fences`, Python in fences of an answer must be
    valid."""

    name: str
    prompt_style: PromptStyle
    context_window: int
    tool_call_format: ToolCallFormat
    stop_tokens: tuple[str, ...]
    check_fences: bool
    sampling: SamplingProfile


class _SamplingFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    max_tokens: int | None = None


class _ProfileFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    prompt_style: PromptStyle | None = None
    context_window: _Tokens | None = None
    tool_call_format: ToolCallFormat | None = None
    stop_tokens: list[Annotated[str, Meta(min_length=1)]] = []
    check_fences: bool = False
    sampling: _SamplingFile = _SamplingFile()


def load_profile(
    folder: Path, config: Mapping[str, Any], generation: Mapping[str, Any], template: str
) -> Profile:
    """Return the profile of `folder`, whose configuration files and chat template are given.
    Raises `PunieError` with `ModelLoadFailed` that names the file and the key."""
    file = _read(folder)
    window = file.context_window or _window(config)
    return Profile(
        name=file.name or folder.name,
        prompt_style=file.prompt_style or PromptStyle.TOOLS,
        context_window=window,
        tool_call_format=file.tool_call_format or _format(template),
        stop_tokens=tuple(file.stop_tokens),
        check_fences=file.check_fences,
        sampling=_sampling(folder, file.sampling, generation, window),
    )


def _read(folder: Path) -> _ProfileFile:
    try:
        text = (folder / PROFILE).read_text("utf-8")
    except FileNotFoundError:
        return _ProfileFile()
    except (OSError, UnicodeDecodeError) as error:
        raise load_failed(folder, PROFILE, f"cannot be read: {error}") from None
    try:
        return msgspec.convert(tomllib.loads(text), _ProfileFile)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise load_failed(folder, PROFILE, str(error), _HINT) from None


def _sampling(
    folder: Path, file: _SamplingFile, generation: Mapping[str, Any], window: int
) -> SamplingProfile:
    values = _generation_sampling(generation, window)
    values |= {key: v for key, v in msgspec.structs.asdict(file).items() if v is not None}
    try:
        return msgspec.convert(values, SamplingProfile)
    except msgspec.ValidationError as error:
        at = str(error).replace("$.", "$.sampling.")
        raise load_failed(folder, PROFILE, at, _HINT) from None


def _generation_sampling(generation: Mapping[str, Any], window: int) -> dict[str, Any]:
    """What ``generation_config.json`` recommends; a value that makes no sense is left out."""
    values: dict[str, Any] = {"max_tokens": min(_DEFAULT_MAX_TOKENS, max(1, window // 2))}
    if generation.get("do_sample") is not False:
        keys = ("temperature", "top_p", "top_k", "min_p")
        values |= {key: generation[key] for key in keys if _fits(key, generation.get(key))}
    for key, ours in (("repetition_penalty",) * 2, ("max_new_tokens", "max_tokens")):
        if _fits(ours, generation.get(key)):
            values[ours] = generation[key]
    return values


def _fits(key: str, value: Any) -> bool:
    try:
        msgspec.convert({key: value}, SamplingProfile)
    except msgspec.ValidationError:
        return False
    return True


def _window(config: Mapping[str, Any]) -> int:
    text = config.get("text_config")
    for source in (config, text if isinstance(text, Mapping) else {}):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            value = source.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return _DEFAULT_WINDOW


def _format(template: str) -> ToolCallFormat:
    return ToolCallFormat.QWEN3_CODER if "<function=" in template else ToolCallFormat.JSON
