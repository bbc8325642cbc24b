"""Qwen3 in PyTorch, small: the same computation as ``mlx_lm.models.qwen3``."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """The shape of the model; names as in ``config.json`` of Qwen3."""

    vocab_size: int = 2048
    hidden_size: int = 256
    num_hidden_layers: int = 4
    intermediate_size: int = 512
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    head_dim: int = 32
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048

    def config(self) -> dict:
        """``config.json`` for transformers and mlx-lm."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            **asdict(self),
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "rope_scaling": None,
            "use_sliding_window": False,
            "torch_dtype": "bfloat16",
            "bos_token_id": None,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }


class Norm(nn.Module):
    """Root mean square norm over the last axis."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Any shape ``(..., width)``."""
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return (x.float() * scale * self.weight).to(x.dtype)


def rotary(length: int, size: Size) -> tuple[Tensor, Tensor]:
    """Cosines and sines, ``(length, head_dim)`` each, halves repeated (Qwen's layout)."""
    half = torch.arange(0, size.head_dim, 2) / size.head_dim
    angles = torch.outer(torch.arange(length).float(), size.rope_theta**-half)
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return (x * cos + torch.cat([-right, left], -1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Causal attention with normed queries and keys."""

    def __init__(self, size: Size):
        super().__init__()
        width = size.num_attention_heads * size.head_dim
        self.heads, self.head_dim = size.num_attention_heads, size.head_dim
        self.q_proj = nn.Linear(size.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(size.hidden_size, width, bias=False)
        self.v_proj = nn.Linear(size.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(width, size.hidden_size, bias=False)
        self.q_norm = Norm(size.head_dim, size.rms_norm_eps)
        self.k_norm = Norm(size.head_dim, size.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``(batch, length, hidden)`` to the same."""
        shape = (*x.shape[:2], self.heads, self.head_dim)
        q = self.q_norm(self.q_proj(x).view(shape)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(shape)).transpose(1, 2)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(*x.shape[:2], -1))


class Mlp(nn.Module):
    """Gated feed-forward (SwiGLU)."""

    def __init__(self, size: Size):
        super().__init__()
        self.gate_proj = nn.Linear(size.hidden_size, size.intermediate_size, bias=False)
        self.up_proj = nn.Linear(size.hidden_size, size.intermediate_size, bias=False)
        self.down_proj = nn.Linear(size.intermediate_size, size.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., hidden)`` to the same."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and feed-forward, each normed before and added."""

    def __init__(self, size: Size):
        super().__init__()
        self.self_attn = Attention(size)
        self.mlp = Mlp(size)
        self.input_layernorm = Norm(size.hidden_size, size.rms_norm_eps)
        self.post_attention_layernorm = Norm(size.hidden_size, size.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``(batch, length, hidden)`` to the same."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Embedding, blocks, final norm; parameter names as in Qwen3 checkpoints."""

    def __init__(self, size: Size):
        super().__init__()
        self.embed_tokens = nn.Embedding(size.vocab_size, size.hidden_size)
        self.layers = nn.ModuleList(Block(size) for _ in range(size.num_hidden_layers))
        self.norm = Norm(size.hidden_size, size.rms_norm_eps)


class Model(nn.Module):
    """The language model with tied embeddings."""

    def __init__(self, size: Size | None = None):
        super().__init__()
        self.size = size or Size()
        self.model = Body(self.size)
        cos, sin = rotary(self.size.max_position_embeddings, self.size)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._start()

    def _start(self) -> None:
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                scale = 0.02 if "embed" in name else weight.shape[1] ** -0.5
                if "o_proj" in name or "down_proj" in name:
                    scale *= (2 * self.size.num_hidden_layers) ** -0.5
                nn.init.normal_(weight, std=scale)

    def hidden(self, ids: Tensor) -> Tensor:
        """Token ids ``(batch, length)`` to normed states ``(batch, length, hidden)``."""
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.model.norm(x)

    def logits(self, states: Tensor) -> Tensor:
        """States ``(..., hidden)`` to logits ``(..., vocabulary)``."""
        return F.linear(states, self.model.embed_tokens.weight)
