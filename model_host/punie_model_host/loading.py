"""A checked folder to a model that answers. Runs in the engine's thread: MLX arrays that were
not evaluated cannot be evaluated in another one."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import (
    load_model,
    load_tokenizer,
    maybe_set_recommended_wired_limit,
)

from punie_model_host.adapter import Adapter
from punie_model_host.adapting import apply
from punie_model_host.chat import render
from punie_model_host.facts import ModelFacts
from punie_model_host.failures import load_failed
from punie_model_host.folder import EMBEDDED, ModelFolder
from punie_model_host.packing import foreign_method
from punie_model_host.probe import why_not_quantized
from punie_model_host.profile import PROFILE, Profile
from punie_model_host.world import world
from punie_protocol.messages.common import ModelInfo, PromptStyle
from punie_protocol.messages.to_model_host import UserMessage

type Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""

_CONVERT: Final = "convert the model with mlx_lm.convert, or choose another"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to answer, with all that belongs to it."""

    folder: ModelFolder
    facts: ModelFacts
    model: Any
    tokenizer: TokenizerWrapper
    stop_ids: frozenset[int]
    stop_texts: tuple[str, ...]

    @property
    def arrays(self) -> list[mx.array]:
        """Its weights, this rank's part of them, read or not."""
        found = (array for _, array in tree_flatten(self.model.parameters()))
        return [array for array in found if isinstance(array, mx.array)]

    @property
    def nbytes(self) -> int:
        """Bytes of them in memory: on a CPU twice those of files with half as wide numbers."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def profile(self) -> Profile:
        """How the model wants to be used."""
        return self.facts.profile

    @property
    def info(self) -> ModelInfo:
        """What clients need to know."""
        return self.facts.info


def build(folder: ModelFolder) -> LoadedModel:
    """Return the model with its weights not yet read: names, shapes, tokenizer, profile and
    template are checked, which costs no memory to speak of. Raises `PunieError`."""
    _choose_compilation()
    path = folder.path
    profile = folder.profile
    model, config = _make(folder)
    _check_kv(path, model, profile)
    world().divide(model, config)
    eos = config.get("eos_token_id")
    tokenizer = load_tokenizer_of(path, eos)
    ids, texts = _stops(tokenizer, profile)
    if folder.chats:
        _check_template(path, tokenizer, profile)
    return LoadedModel(
        folder=folder,
        facts=ModelFacts(path, folder.named, profile, _vocabulary(config, tokenizer), eos),
        model=model,
        tokenizer=tokenizer,
        stop_ids=ids,
        stop_texts=texts,
    )


def _make(folder: ModelFolder) -> tuple[Any, dict[str, Any]]:
    """Return the model and its configuration. On a CPU, weights that are not packed and what
    belongs to packed ones are float32: kernels of other types are five to ten times as slow there,
    and some are missing."""
    packed = {"quantization": folder.packing} if folder.packing else None
    try:
        model, config = load_model(folder.path, lazy=True, model_config=packed)
    except Exception as error:
        reason = f"weights or configuration do not fit: {_first_line(error)}"
        hint = _CONVERT
        if method := foreign_method(folder.config):
            reason = f"packed by {method!r}: {_first_line(error)}"
            hint = "convert the original model, before it was packed, with mlx_lm.convert -q"
        raise load_failed(folder.path, "config.json", reason, hint) from error
    if mx.default_device() == mx.cpu:
        model.set_dtype(mx.float32)
    if folder.adapter is not None:
        _adapt(model, folder, folder.adapter)
    return model, config


def _adapt(model: Any, folder: ModelFolder, adapter: Adapter) -> None:
    if world().size > 1:
        hint = "merge it into its model with mlx_lm.fuse"
        raise load_failed(adapter.path, "", "an adapter cannot be divided among ranks", hint)
    apply(model, adapter, folder.path)


def read_weights(loaded: LoadedModel, progress: Progress) -> None:
    """Read the weights tensor by tensor and compute one token. Raises `PunieError`."""
    total = loaded.folder.weight_bytes
    try:
        # Not a lambda: of one that failed, its frame holds what it closes over, the weights.
        world().together(partial(_read_all, loaded.arrays, total, progress))
        world().alike("the model's folder", str(loaded.folder.path))
        world().alike("what a layer keeps", _caches(loaded.model))
        maybe_set_recommended_wired_limit()
        _warm_up(loaded.model)
    except Exception as error:
        path = loaded.folder.path
        hint = "check the disk and the free memory, or choose a smaller model"
        raise load_failed(
            path, "model.safetensors", f"cannot be read: {_first_line(error)}", hint
        ) from error


def _read_all(arrays: Sequence[mx.array], total: int, progress: Progress) -> None:
    size = sum(array.nbytes for array in arrays) or 1
    done = 0
    for array in arrays:
        mx.eval(array)
        done += array.nbytes
        progress(total * done // size, total)


def _caches(model: Any) -> str:
    counts = Counter(type(cache).__name__ for cache in make_prompt_cache(model))
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _check_kv(path: Path, model: Any, profile: Profile) -> None:
    if (packing := profile.kv_quantization) and (fault := why_not_quantized(model, packing)):
        hint = "set kv_group_size to a divisor of the head size, or remove kv_bits"
        raise load_failed(path, PROFILE, fault, hint)


def _choose_compilation() -> None:
    """MLX compiles fused kernels for the CPU with the system's ``g++``, most of a second each at
    first use: do without there, until `Compilation` says otherwise."""
    if mx.default_device() == mx.cpu:
        mx.disable_compile()


def _warm_up(model: Any) -> None:
    cache = make_prompt_cache(model)
    mx.eval(model(mx.array([[0]]), cache=cache))


def load_tokenizer_of(path: Path, eos: int | list[int] | None = None) -> TokenizerWrapper:
    """Return the tokenizer of a checked folder. Raises `PunieError`."""
    try:
        return load_tokenizer(path, {"trust_remote_code": False}, eos_token_ids=eos)
    except Exception as error:
        reason = f"no usable tokenizer: {_first_line(error)}"
        raise load_failed(path, "tokenizer.json", reason) from error


def _stops(tokenizer: TokenizerWrapper, profile: Profile) -> tuple[frozenset[int], tuple[str, ...]]:
    """Stop tokens by id; those of the profile that are more than one token, as text."""
    ids, texts = set(tokenizer.eos_token_ids), []
    for text in profile.stop_tokens:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        if len(tokens) == 1:
            ids.add(tokens[0])
        else:
            texts.append(text)
    return frozenset(ids), tuple(texts)


def _check_template(path: Path, tokenizer: TokenizerWrapper, profile: Profile) -> None:
    try:
        prompt = render(tokenizer, [UserMessage(text="hello")], [], PromptStyle.LEARNED)
    except Exception as error:
        file = "chat_template.jinja"
        if not (path / file).exists():
            file = "tokenizer_config.json"
        raise load_failed(path, file, f"cannot be used: {_first_line(error)}") from error
    if len(prompt.tokens) >= profile.context_window:
        reason = f"context_window of {profile.context_window} holds no conversation"
        raise load_failed(path, PROFILE, reason, "raise context_window")


def _vocabulary(config: dict[str, Any], tokenizer: TokenizerWrapper) -> int:
    text = config.get("text_config") or {}
    size = config.get("vocab_size", text.get("vocab_size"))
    return size if isinstance(size, int) else len(tokenizer)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def display_name(model: str) -> str:
    """Return how a model is called before it is loaded."""
    return model if model == EMBEDDED else Path(model).name or model
