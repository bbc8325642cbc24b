"""Model folders made on the spot: a real Qwen3 model of a few kilobytes, for real MLX.

`make_tiny_model` writes random weights. With `says`, the weights make the model say exactly that:
each element is a token of its own, and each token's only likely successor is the next element.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.qwen3 import Model, ModelArgs
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

END = "<|im_end|>"
MARKERS = ("<|endoftext|>", "<|im_start|>", END, "<think>", "</think>")
CALL_MARKERS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

TEMPLATE = """\
{%- if tools %}<|im_start|>system
{%- for tool in tools %}
{{ tool.function | tojson }}
{%- endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == "tool" %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
<function={{ call.function.name }}>
{%- for key, value in call.function.arguments | items %}
<parameter={{ key }}>
{{ value }}
</parameter>
{%- endfor %}
</function>
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def make_tiny_model(
    folder: Path,
    *,
    says: Sequence[str] = (),
    loop: bool = False,
    context_window: int = 1024,
    layers: int = 2,
    seed: int = 1,
) -> Path:
    """Write a model folder and return it. With `loop` the last element of `says` is followed by
    the first, else by the end of the answer. Elements that are no byte become tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(says)
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    _write(folder / "tokenizer_config.json", _tokenizer_config())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    config = _config(size, size if says else 64, layers, context_window, tokenizer)
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", {"do_sample": False})
    mx.random.seed(seed)
    model = Model(
        ModelArgs(**{key: config[key] for key in ModelArgs.__annotations__ if key in config})
    )
    if says:
        _teach(model, tokenizer, says, loop=loop)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder


def _tokenizer(says: Sequence[str]) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={char: n for n, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in MARKERS])
    words = [*CALL_MARKERS, *(word for word in says if len(word) > 1 and word not in MARKERS)]
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in words])
    return tokenizer


def _tokenizer_config() -> dict:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }


def _config(size: int, hidden: int, layers: int, window: int, tokenizer: Tokenizer) -> dict:
    return {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "vocab_size": size,
        "max_position_embeddings": window,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.token_to_id(END),
    }


def _teach(model: Model, tokenizer: Tokenizer, says: Sequence[str], *, loop: bool) -> None:
    """Leave attention and feed-forward without effect, and make the head a table of successors.
    The answer begins after the line feed that ends the generation prompt."""
    chain = [tokenizer.encode(word, add_special_tokens=False).ids for word in ["\n", *says]]
    assert all(len(ids) == 1 for ids in chain), chain
    ids = [ids[0] for ids in chain]
    assert len(set(ids)) == len(ids), "a token can have one successor only"
    last = ids[1] if loop else tokenizer.token_to_id(END)
    size = tokenizer.get_vocab_size()
    head = mx.zeros((size, size))
    for token, successor in zip(ids, [*ids[1:], last], strict=True):
        head[successor, token] = 1.0
    model.model.embed_tokens.weight = mx.eye(size)
    model.lm_head.weight = head
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight = mx.zeros_like(layer.self_attn.o_proj.weight)
        layer.mlp.down_proj.weight = mx.zeros_like(layer.mlp.down_proj.weight)


def _write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1))
