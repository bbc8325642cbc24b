"""Small model folders of several architectures, made on the spot: random weights of some hundred
kilobytes that matter. Every layer's attention (or state) moves the logits by more than their
distances, so that a wrong mask, position or neighbour changes the answer; only printable ASCII is
ever likely, so that an answer's text says which tokens it was and no answer ends by itself.
"""

import json
import math
import os
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import _get_classes

from punie_model_host.profile import PROFILE
from tests.support.tiny_model import TEMPLATE, _tokenizer, _tokenizer_config, _write

_HIDDEN: Final = 64
_HEAD: Final = 16
_LOGITS: Final = 3.0
"""Standard deviation of a likely token's logit. The two best are then 1e-4 apart once in 10,000
positions."""
_SPOKEN: Final = [chr(code) for code in range(33, 127) if chr(code) != "<"]


class Kind(StrEnum):
    """An architecture, as mlx-lm names it."""

    QWEN3 = "qwen3"
    QWEN3_MOE = "qwen3_moe"
    LLAMA = "llama"
    GEMMA3 = "gemma3_text"
    MAMBA2 = "mamba2"
    LFM2 = "lfm2"


RAGGED: Final = (Kind.QWEN3, Kind.QWEN3_MOE, Kind.LLAMA)
"""Every layer keeps keys and values of all tokens: rows of different lengths can share a batch."""

ALONE: Final = (Kind.GEMMA3, Kind.MAMBA2, Kind.LFM2)
"""A sliding window; a state alone; a state in some layers, keys and values in others."""

KV_GROUP: Final = 32
"""Numbers of packed keys and values that share a scale, and the size of the heads then."""

_PACKED: Final = ("qwen3:4", "llama:8", "qwen3_moe:8", "llama:4")
PACKED: Final = _PACKED if "PUNIE_KILLS" in os.environ else _PACKED[:2]
"""Names for `make_by_name`: the same with keys and values of so few bits; ``make test-all`` has
all of them."""

WINDOW: Final = 24
"""Tokens that the sliding layers of `Kind.GEMMA3` see."""


def make_small_model(
    folder: Path,
    kind: Kind,
    *,
    context_window: int = 2048,
    seed: int = 1,
    quantized: bool = False,
    kv_bits: int | None = None,
    padding: int = 0,
) -> Path:
    """Write a model folder of `kind` and return it; `quantized` packs its weights in 4 bits,
    `kv_bits` keys and values, for which its heads are twice as large; `padding` is how many of its
    logits are no token's."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(())
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", _tokenizer_config())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    _write(folder / "generation_config.json", {"do_sample": False})
    spoken = [tokenizer.get_vocab()[char] for char in _SPOKEN]
    config = _SHAPES[kind] | {
        "model_type": kind.value,
        "vocab_size": tokenizer.get_vocab_size() + padding,
        "max_position_embeddings": context_window,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }
    if kv_bits:
        config["head_dim"] = KV_GROUP
        (folder / PROFILE).write_text(f"kv_bits = {kv_bits}\nkv_group_size = {KV_GROUP}\n")
    model = new_model(config, spoken, seed)
    if quantized:
        nn.quantize(model, group_size=32, bits=4)
        config["quantization"] = {"group_size": 32, "bits": 4}
    _write(folder / "config.json", config)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder


def make_by_name(folder: Path, name: str) -> Path:
    """Write the folder of a kind, or of a kind and its keys' bits after a colon."""
    kind, _, bits = name.partition(":")
    return make_small_model(folder, Kind(kind), kv_bits=int(bits) if bits else None)


def new_model(config: dict[str, Any], spoken: list[int], seed: int) -> Any:
    """Return mlx-lm's model of `config` with random weights that make the tokens `spoken` likely
    and all others not."""
    model_class, args_class = _get_classes(json.loads(json.dumps(config)))
    model = model_class(args_class.from_dict(config))
    key = mx.random.key(seed)
    weights = []
    parameters: dict[str, Any] = dict(tree_flatten(model.parameters()))
    for name in sorted(parameters):
        key, its = mx.random.split(key)
        weights.append((name, _weight(name, parameters[name], its)))
    head = next((n for n, _ in weights if n.startswith("lm_head")), None) or next(
        n for n, _ in weights if "embed" in n and n.endswith(".weight")
    )
    likely = mx.zeros((config["vocab_size"], 1)) + 0.02
    likely[mx.array(spoken)] = 1.0
    weights = [(name, value * likely if name == head else value) for name, value in weights]
    model.update(tree_unflatten(weights))
    mx.eval(model.parameters())
    return model


def _weight(name: str, old: mx.array, key: mx.array) -> mx.array:
    """Return a weight of the scale that keeps activations at 1 and makes attention choosy."""
    if name.endswith(".D"):
        return old
    if name.endswith(("A_log", "dt_bias")):
        return old - 3.0  # small steps and slow decay: states forget late
    noise = mx.random.normal(old.shape, key=key)
    if old.ndim < 2:
        choosy = 1.5 if _any(name, "q_norm", "k_norm", "q_layernorm", "k_layernorm") else 1.0
        return old * choosy + 0.2 * noise
    if "embed" in name:
        tied_head = _LOGITS / math.sqrt(_HIDDEN)
        return noise * tied_head
    gain = 1.0
    if "lm_head" in name:
        gain = _LOGITS
    elif _any(name, "q_proj", "k_proj"):
        gain = 1.5
    elif _any(name, "o_proj", "out_proj", "down_proj", "w2"):
        gain = 2.0
    fan_in = old.shape[-1] * (old.shape[-2] if "conv" in name else 1)
    return noise * (gain / math.sqrt(fan_in))


def _any(name: str, *parts: str) -> bool:
    return any(part in name for part in parts)


_DENSE: Final[dict[str, Any]] = {
    "hidden_size": _HIDDEN,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": _HEAD,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

_SHAPES: Final[dict[Kind, dict[str, Any]]] = {
    Kind.QWEN3: _DENSE,
    Kind.QWEN3_MOE: _DENSE
    | {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    Kind.LLAMA: _DENSE | {"num_attention_heads": 8},
    Kind.GEMMA3: _DENSE
    | {
        "query_pre_attn_scalar": _HEAD,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
    },
    Kind.MAMBA2: {
        "num_heads": 8,
        "head_dim": _HEAD,
        "hidden_size": _HIDDEN,
        "intermediate_size": 8 * _HEAD,
        "state_size": _HEAD,
        "num_hidden_layers": 2,
        "layer_norm_epsilon": 1e-6,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": False,
        "time_step_limit": [0.0, 100.0],
        "time_step_rank": "auto",
    },
    Kind.LFM2: {
        "hidden_size": _HIDDEN,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "norm_eps": 1e-6,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": _HIDDEN,
        "block_ff_dim": 96,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "full_attn_idxs": [1],
    },
}
