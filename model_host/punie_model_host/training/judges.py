"""Loaded models that say what they would write: through mlx-lm, or in PyTorch.

Each is imported only where it is used: mlx-lm runs on the product's Python, PyTorch where the
model is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from punie_model_host.training.render import render
from punie_model_host.training.tokenizer import CONTEXT, Encoder, load


class Judge(Protocol):
    """A model whose first choices are asked for."""

    encoder: Encoder

    def choices(self, ids: list[int]) -> list[int]:
        """The first choice after each of the ids."""
        ...

    def template_agrees(self, messages: list[dict]) -> bool:
        """Whether the shipped template and tokenizer give the ids training used."""
        ...

    def write(self, messages: list[dict], most: int = 300) -> str:
        """Greedy generation after the messages."""
        ...


class MlxJudge:
    """The model as Punie runs it: mlx-lm, fp32, on the CPU."""

    def __init__(self, folder: Path):
        import mlx.core as mx
        import mlx_lm
        from mlx.utils import tree_map

        mx.set_default_device(mx.cpu)
        self.model, self.wrapper = mlx_lm.load(str(folder))[:2]
        self.model.update(tree_map(lambda w: w.astype(mx.float32), self.model.parameters()))
        self.encoder = Encoder(load(folder))

    def choices(self, ids: list[int]) -> list[int]:
        """One pass over the whole sequence."""
        import mlx.core as mx
        import numpy as np

        first = mx.argmax(self.model(mx.array([ids]))[0], -1)
        return np.array(first).tolist()

    def template_agrees(self, messages: list[dict]) -> bool:
        """Through transformers' ``apply_chat_template``, as mlx-lm calls it."""
        ids = self.wrapper.apply_chat_template(messages, tokenize=True, return_dict=False)
        return list(ids) == self.encoder.encode(messages)[0]

    def write(self, messages: list[dict], most: int = 300) -> str:
        """Through ``mlx_lm.generate``; the text ends before ``<|im_end|>``."""
        import mlx_lm

        prompt = self.encoder.tokenizer.encode(render(messages, True)).ids
        return mlx_lm.generate(self.model, self.wrapper, prompt, max_tokens=most)


class TorchJudge:
    """The same weights in the training code, fp32; far faster on a busy CPU."""

    def __init__(self, folder: Path):
        import torch
        from safetensors.torch import load_file

        from punie_model_host.training.model import Model

        self.model = Model()
        weights = load_file(str(folder / "model.safetensors"))
        self.model.load_state_dict({n: w.to(torch.float32) for n, w in weights.items()})
        self.encoder = Encoder(load(folder))

    def choices(self, ids: list[int]) -> list[int]:
        """One pass over the whole sequence."""
        import torch

        with torch.inference_mode():
            return self.model.logits(self.model.hidden(torch.tensor([ids]))[0]).argmax(-1).tolist()

    def template_agrees(self, messages: list[dict]) -> bool:
        """Not checked here: the training environment has no transformers."""
        return True

    def write(self, messages: list[dict], most: int = 300) -> str:
        """Token by token, without a cache."""
        ids = list(self.encoder.tokenizer.encode(render(messages, True)).ids)
        start = len(ids)
        while len(ids) < min(start + most, CONTEXT):
            token = self.choices(ids)[-1]
            if token == self.encoder.end:
                break
            ids.append(token)
        return self.encoder.tokenizer.decode(ids[start:], skip_special_tokens=False)
