"""Writes a complete model folder that mlx-lm and transformers load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from punie_model_host.training.model import Model

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_GENERATION = {"eos_token_id": 2, "pad_token_id": 0, "do_sample": False}
PROFILE = """\
# Model profile: how Punie talks to this model.
name = "embedded"
prompt_style = "learned"        # no system prompt, no tool schemas: the model has learned its tools
context_window = 2048
tool_call_format = "qwen3-coder"
stop_tokens = ["<|im_end|>"]

[sampling]
temperature = 0.0
max_tokens = 1200
"""


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".new")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def export(model: Model, tokenizer_folder: Path, folder: Path) -> None:
    """Writes weights (bf16), configuration, tokenizer and profile; each file is replaced whole."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: w.detach().to(torch.bfloat16).contiguous() for n, w in model.named_parameters()}
    partial = folder / "model.safetensors.new"
    save_file(weights, str(partial), metadata={"format": "pt"})
    partial.replace(folder / "model.safetensors")
    _replace(folder / "config.json", json.dumps(model.size.config(), indent=2) + "\n")
    _replace(folder / "generation_config.json", json.dumps(_GENERATION, indent=2) + "\n")
    _replace(folder / "profile.toml", PROFILE)
    for name in _TOKENIZER_FILES:
        _replace(folder / name, (tokenizer_folder / name).read_text(encoding="utf-8"))


def publish(source: Path, target: Path) -> None:
    """Copies a model folder file by file, the weights last; each file is replaced whole."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir(), key=lambda p: p.suffix == ".safetensors"):
        partial = target / (path.name + ".new")
        shutil.copyfile(path, partial)
        partial.replace(target / path.name)
