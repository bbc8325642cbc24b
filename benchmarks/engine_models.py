"""Model folders for `benchmarks.engine`: real architectures with random fp32 weights.

A model says one word a token and never ends its answer: the rows of its head are zero but for the
words, so no special token is ever the most likely one.

Run as a program it writes a folder: ``python -m benchmarks.engine_models dense|moe FOLDER``.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3, qwen3_moe

from benchmarks.engine_text import END, PAD, TEMPLATE, UNKNOWN, WORDS, make_tokenizer

WINDOW: Final = 16_384
"""Tokens of context."""
_SHARED: Final[dict[str, Any]] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": WINDOW,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": False,
}
_DENSE: Final[dict[str, Any]] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "intermediate_size": 1536,
}
_MOE: Final[dict[str, Any]] = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 384,
    "num_hidden_layers": 4,
    "intermediate_size": 768,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
}
KINDS: Final = {"dense": _DENSE, "moe": _MOE}


def write(kind: str, folder: Path, seed: int = 1) -> dict[str, Any]:
    """Write the folder of a model of that `kind`; return its architecture and parameter count."""
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    end = tokenizer.token_to_id(END)
    config = KINDS[kind] | _SHARED | {"vocab_size": size, "eos_token_id": end}
    for name, value in (
        ("config.json", config),
        ("generation_config.json", {"do_sample": False, "eos_token_id": end}),
        ("tokenizer_config.json", _tokenizer_config()),
    ):
        (folder / name).write_text(json.dumps(value, indent=1))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    weights = _weights(kind, config, seed)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return config | {"parameters": sum(one.size for one in weights.values())}


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }


def _weights(kind: str, config: dict[str, Any], seed: int) -> dict[str, mx.array]:
    module: Any = {"dense": qwen3, "moe": qwen3_moe}[kind]
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(config))
    width, words = config["hidden_size"], len(WORDS)
    others = mx.zeros((config["vocab_size"] - words, width))
    model.lm_head.weight = mx.concatenate([others, mx.random.normal((words, width))])
    mx.eval(model.parameters())
    return dict(tree_flatten(model.parameters()))


if __name__ == "__main__":
    print(json.dumps(write(sys.argv[1], Path(sys.argv[2]))))
