"""A checked folder to a model that answers. Runs in the engine's thread: MLX arrays that were
not evaluated cannot be evaluated in another one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import (
    can_run_metal,
    load_model,
    load_tokenizer,
    maybe_set_recommended_wired_limit,
)

from punie_model_host.chat import render
from punie_model_host.facts import ModelFacts
from punie_model_host.failures import load_failed
from punie_model_host.folder import EMBEDDED, ModelFolder
from punie_model_host.profile import PROFILE, Profile, load_profile
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
    profile = load_profile(path, folder.config, folder.generation, folder.template)
    try:
        model, config = load_model(path, lazy=True)
    except Exception as error:
        reason = f"weights or configuration do not fit: {_first_line(error)}"
        raise load_failed(path, "config.json", reason, _CONVERT) from error
    if not can_run_metal() and not folder.is_quantized:
        model.set_dtype(mx.float32)
    eos = config.get("eos_token_id")
    tokenizer = load_tokenizer_of(path, eos)
    ids, texts = _stops(tokenizer, profile)
    _check_template(path, tokenizer, profile)
    return LoadedModel(
        folder=folder,
        facts=ModelFacts(path, profile, _vocabulary(config, tokenizer), eos),
        model=model,
        tokenizer=tokenizer,
        stop_ids=ids,
        stop_texts=texts,
    )


def read_weights(loaded: LoadedModel, progress: Progress) -> None:
    """Read the weights tensor by tensor and compute one token. Raises `PunieError`."""
    total = loaded.folder.weight_bytes
    arrays = [a for _, a in tree_flatten(loaded.model.parameters()) if isinstance(a, mx.array)]
    size = sum(array.nbytes for array in arrays) or 1
    done = 0
    try:
        for array in arrays:
            mx.eval(array)
            done += array.nbytes
            progress(total * done // size, total)
        maybe_set_recommended_wired_limit()
        _warm_up(loaded.model)
    except Exception as error:
        path = loaded.folder.path
        hint = "check the disk and the free memory, or choose a smaller model"
        raise load_failed(
            path, "model.safetensors", f"cannot be read: {_first_line(error)}", hint
        ) from error


def _choose_compilation() -> None:
    """MLX compiles fused kernels for the CPU with the system's ``g++``, most of a second each at
    first use: do without there, until `Compilation` says otherwise."""
    if not can_run_metal():
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
