"""Bytes of keys and values: what requests will need, and what the machine has for them. Pure; all
sizes are bytes or tokens."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from punie_model_host.profile import KVQuantization
from punie_protocol.engine import EngineSettings

BLOCK: Final = 256
"""Tokens by which the batch's buffers grow, at least (`ragged`)."""

_MIB: Final = 1024**2
_GIB: Final = 1024**3
_UNKNOWN: Final = _MIB
"""Bytes a token of a model whose configuration says nothing: as much as a 13B model without grouped
heads needs."""
_LEAST: Final = 256 * _MIB
_SYSTEM: Final = 2 * _GIB
SCRATCH: Final = 1 * _GIB
"""Bytes for a step's activations, and for freed buffers that wait for the next."""
_SCORES: Final = 4
"""The share of it that scores may have, inverted: there are copies of them on the way."""
_FEWEST: Final = 16


def kv_bytes_per_token(
    config: Mapping[str, Any], itemsize: int, quantization: KVQuantization | None = None
) -> int:
    """Return the bytes of one token's keys and values in all layers, for a prediction before the
    model has run; `itemsize` is that of a number, or of the scales and biases of packed ones.

    From a Hugging Face ``config.json`` (or its ``text_config``). Where it leaves something open
    the answer is too large rather than too small: every layer counts as one with full attention,
    and compressed keys (MLA) as if they were not.
    """
    source = _source(config)
    layers = _largest(source, "num_hidden_layers", "n_layers", "n_layer", "num_layers")
    heads = _heads(source)
    hidden = _largest(source, "hidden_size", "n_embd", "d_model", "dim")
    shared = _largest(source, "num_key_value_heads", "n_kv_heads", "num_kv_heads")
    wide = _largest(source, "num_global_key_value_heads")
    rows = heads if "kv_lora_rank" in source else max(shared, wide) or heads
    key = _key_size(source) or (-(-hidden // heads) if heads else 0)
    value = _largest(source, "v_head_dim") or key
    numbers = layers * (rows * (key + value) or 2 * hidden)
    return _bytes(numbers, itemsize, quantization) or _UNKNOWN


def _bytes(numbers: int, itemsize: int, quantization: KVQuantization | None) -> int:
    if quantization is None:
        return numbers * itemsize
    groups = -(-numbers // quantization.group_size)
    return -(-numbers * quantization.bits // 8) + groups * 2 * itemsize


def score_bytes(config: Mapping[str, Any], itemsize: int) -> int:
    """Return the bytes that one token's scores for one other have in a layer, all heads."""
    return max(1, _heads(_source(config))) * itemsize


def at_once(context: int, each: int) -> int:
    """Return how many tokens behind `context` others are computed at once where a layer's scores,
    `each` bytes for two tokens, stand in memory whole: within a share of the scratch space."""
    pairs = SCRATCH // _SCORES // each
    return max(_FEWEST, (math.isqrt(context**2 + 4 * pairs) - context) // 2)


def _source(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def _heads(source: Mapping[str, Any]) -> int:
    return _largest(source, "num_attention_heads", "n_heads", "n_head")


def _key_size(source: Mapping[str, Any]) -> int:
    parts = _largest(source, "qk_nope_head_dim") + _largest(source, "qk_rope_head_dim")
    return max(parts, _largest(source, "head_dim", "global_head_dim"))


def _largest(source: Mapping[str, Any], *names: str) -> int:
    """Return the largest positive integer under these names, in lists too (one number a layer); 0
    when there is none."""
    values = [source.get(name) for name in names]
    every = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return max([0, *(n for n in every if isinstance(n, int) and not isinstance(n, bool))])


@dataclass(frozen=True, slots=True)
class KVBudget:
    """`total` bytes for keys and values, of running requests and the prefix cache together; a token
    needs `per_token`."""

    total: int
    per_token: int

    def predicted(self, totals: Sequence[int]) -> int:
        """Return the bytes that requests of so many tokens need in the end. The batch is a
        rectangle: rows times the longest, which grew by an eighth of itself, in whole blocks."""
        return len(totals) * _room(max(totals, default=0)) * self.per_token

    def fits(self, totals: Sequence[int]) -> bool:
        """Return whether they can run together."""
        return self.predicted(totals) <= self.total

    def left(self, totals: Sequence[int]) -> int:
        """Return the bytes that they leave for the prefix cache."""
        return max(0, self.total - self.predicted(totals))

    @property
    def most_tokens(self) -> int:
        """Tokens of the largest request that fits, alone."""
        room = self.total // self.per_token // BLOCK * BLOCK
        return room // 9 * 8 + min(room % 9, 7)


def _room(tokens: int) -> int:
    return -(-(tokens + tokens // 8) // BLOCK) * BLOCK


def machine_budget(
    settings: EngineSettings, weights: int, memory: int, metal_limit: int | None
) -> int:
    """Return the bytes for keys and values beside a model of `weights` bytes.

    What the settings say; else, of a machine with `memory` bytes, the least of: what is left
    beside the weights and 15 % (2 GiB at least) for everything else; what Metal's recommended
    working set `metal_limit` leaves beside the weights and 1 GiB for activations; and a quarter of
    the memory, because the prefix cache fills whatever it is given. Never below 256 MiB.
    """
    if settings.memory_mb is not None:
        return settings.memory_mb * _MIB
    shares = [memory - weights - max(_SYSTEM, memory * 15 // 100), memory // 4]
    if metal_limit is not None:
        shares.append(metal_limit - weights - SCRATCH)
    return max(_LEAST, min(shares))
