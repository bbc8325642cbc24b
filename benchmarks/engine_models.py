"""Model folders for `benchmarks.engine`: real architectures with random fp32 weights.

A model of words says one word a token and never ends its answer: the rows of its head are zero but
for the words, so no special token is ever the most likely one. ``dense`` and ``moe`` are such.
``drafted`` is twice as deep and its layers change little after the first, so that ``draft``, which
is that first layer with the same head, often says the same for a seventh of the work. ``code`` is
the dense one with the part of Qwen's vocabulary that the edits of `benchmarks.edit_tasks` need, and
with Qwen3-Coder's chat template.

Run as a program it writes a folder: ``python -m benchmarks.engine_models KIND FOLDER``.
"""

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3, qwen3_moe
from tokenizers import Tokenizer

from benchmarks import code_tokens, edit_tasks, engine_text

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
KINDS: Final = {
    "dense": _DENSE,
    "moe": _MOE,
    "code": _DENSE,
    "drafted": _DENSE | {"num_hidden_layers": 16},
    "draft": _DENSE | {"num_hidden_layers": 1},
}
_DAMPED: Final = 0.03
"""What the later layers of ``drafted`` add, over what they add in an undamped model: with it the
draft's choice is the model's own at about seven of ten places. Found by trying."""
_PROFILE: Final = """\
prompt_style = "tools"
tool_call_format = "qwen3-coder"
"""


def write(kind: str, folder: Path, seed: int = 1) -> dict[str, Any]:
    """Write the folder of a model of that `kind`; return its architecture and parameter count.
    ``drafted`` and ``draft`` of one seed belong together."""
    folder.mkdir(parents=True)
    tokenizer, template = _code() if kind == "code" else _words()
    tokenizer.save(str(folder / "tokenizer.json"))
    size, end = tokenizer.get_vocab_size(), tokenizer.token_to_id(engine_text.END)
    config = KINDS[kind] | _SHARED | {"vocab_size": size, "eos_token_id": end}
    for name, value in (
        ("config.json", config),
        ("generation_config.json", {"do_sample": False, "eos_token_id": end}),
        ("tokenizer_config.json", _tokenizer_config(template)),
    ):
        (folder / name).write_text(json.dumps(value, indent=1))
    (folder / "chat_template.jinja").write_text(template)
    if kind == "code":
        (folder / "profile.toml").write_text(_PROFILE)
    weights = _weights(kind, config, seed)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return config | {"parameters": sum(one.size for one in weights.values())}


def _words() -> tuple[Tokenizer, str]:
    return engine_text.make_tokenizer(), engine_text.TEMPLATE


def _code() -> tuple[Tokenizer, str]:
    tokenizer = code_tokens.make_tokenizer(code_tokens.vocabulary(edit_tasks.corpus()))
    file = resources.files("punie_model_host") / "embedded" / "chat_template.jinja"
    return tokenizer, file.read_text("utf-8")


def _tokenizer_config(template: str) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": engine_text.END,
        "pad_token": engine_text.PAD,
        "unk_token": engine_text.UNKNOWN if template == engine_text.TEMPLATE else None,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }


def _weights(kind: str, config: dict[str, Any], seed: int) -> dict[str, mx.array]:
    module: Any = qwen3_moe if kind == "moe" else qwen3
    mx.random.seed(seed)
    layers = KINDS["drafted" if kind == "draft" else kind]["num_hidden_layers"]
    whole = module.ModelArgs.from_dict(config | {"num_hidden_layers": layers})
    model = module.Model(whole)
    width, said = config["hidden_size"], config["vocab_size"] - engine_text.FIRST_WORD
    silent = mx.zeros((engine_text.FIRST_WORD, width))
    model.lm_head.weight = mx.concatenate([silent, mx.random.normal((said, width))])
    if kind in ("drafted", "draft"):
        _damp(model.model.layers[1:])
    del model.model.layers[config["num_hidden_layers"] :]
    mx.eval(model.parameters())
    return dict(tree_flatten(model.parameters()))


def _damp(layers: list[Any]) -> None:
    """Let layers add less to what goes through them."""
    for layer in layers:
        layer.self_attn.o_proj.weight = layer.self_attn.o_proj.weight * _DAMPED
        layer.mlp.down_proj.weight = layer.mlp.down_proj.weight * _DAMPED


if __name__ == "__main__":
    print(json.dumps(write(sys.argv[1], Path(sys.argv[2]))))
