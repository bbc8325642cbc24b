"""How a model wants to be used: ``profile.toml`` in its folder, else what the folder's own
configuration says. All sizes are tokens."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from punie_model_host.calls.formats import ToolCallFormat, detect
from punie_model_host.failures import load_failed
from punie_protocol.messages.common import PromptStyle

PROFILE: Final = "profile.toml"
_DEFAULT_WINDOW: Final = 4096
_DEFAULT_MAX_TOKENS: Final = 8192
_HINT: Final = f"correct {PROFILE}, or remove it to use the model's own configuration"


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


class KVQuantization(msgspec.Struct, frozen=True):
    """Keys and values in `bits` a number, with a scale and a bias for each `group_size` of them."""

    bits: int
    group_size: int


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A model's profile, complete. With `check_fences`, Python in fences of an answer must be
    valid. `adapter` is a folder, absolute or seen from the model's."""

    name: str
    prompt_style: PromptStyle
    context_window: int
    tool_call_format: ToolCallFormat
    stop_tokens: tuple[str, ...]
    check_fences: bool
    sampling: SamplingProfile
    kv_quantization: KVQuantization | None = None
    adapter: str | None = None


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
    kv_bits: Literal[4, 5, 6, 8] | None = None
    kv_group_size: Literal[32, 64, 128] = 64
    adapter: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    sampling: _SamplingFile = _SamplingFile()


def load_profile(
    folder: Path,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    template: str,
    adapter: Path | None = None,
) -> Profile:
    """Return the profile of `folder`, whose configuration files and chat template are given; with
    the folder of an `adapter` that was asked for, the profile there stands for the model's, if
    there is one. Raises `PunieError` with `ModelLoadFailed` that names the file and the key."""
    own = adapter is not None and (adapter / PROFILE).exists()
    its = adapter if adapter is not None and own else folder
    file = _read(its)
    window, bits = file.context_window or _window(config), file.kv_bits
    return Profile(
        name=_name(folder, file, adapter, own=own),
        prompt_style=file.prompt_style or PromptStyle.TOOLS,
        context_window=window,
        tool_call_format=file.tool_call_format or _format(folder, template),
        stop_tokens=tuple(file.stop_tokens),
        check_fences=file.check_fences,
        sampling=_sampling(its, file.sampling, generation, window),
        kv_quantization=KVQuantization(bits, file.kv_group_size) if bits else None,
        adapter=None if adapter else file.adapter,
    )


def _name(folder: Path, file: _ProfileFile, adapter: Path | None, *, own: bool) -> str:
    """Return what the file calls it, or the model's name and its adapter's."""
    if file.name and (own or adapter is None):
        return file.name
    others = adapter.name if adapter else Path(file.adapter or "").name
    return f"{file.name or folder.name}+{others}" if others else folder.name


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


class _AddedToken(msgspec.Struct, frozen=True):
    content: str = ""


class _TokenizerFile(msgspec.Struct, frozen=True):
    added_tokens: list[_AddedToken] = []


class _TokenizerConfig(msgspec.Struct, frozen=True):
    tool_parser_type: Any = None


def _format(folder: Path, template: str) -> ToolCallFormat:
    config = _part_of(folder / "tokenizer_config.json", _TokenizerConfig)
    return detect(template, config.tool_parser_type, lambda: _special_tokens(folder))


def _special_tokens(folder: Path) -> frozenset[str]:
    file = _part_of(folder / "tokenizer.json", _TokenizerFile)
    return frozenset(token.content for token in file.added_tokens)


def _part_of[T: msgspec.Struct](path: Path, type: type[T]) -> T:
    """Return what `type` names of a file; nothing of one that cannot be read, since the tokenizer
    is loaded later and says what is wrong with it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=type)
    except OSError, msgspec.MsgspecError, RecursionError:
        return type()
