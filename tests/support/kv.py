"""Keys and values that say which tokens they are for: a wrong slice, or that of another sequence,
shows."""

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from punie_model_host.kv_arrays import LayerKV
from punie_model_host.kv_tier import KVTier
from punie_model_host.prefix_cache import Read
from punie_model_host.token_trie import Node

FINGERPRINT = "ab" * 16
LAYERS = 2
HEADS = 2
KEY_SIZE, VALUE_SIZE = 3, 1
TOKEN_NBYTES = LAYERS * HEADS * (KEY_SIZE + VALUE_SIZE) * 4
"""Bytes of one token's keys and values."""


def marks(tokens: Sequence[int]) -> list[int]:
    """Return for each position a number that all tokens up to it have a part in; exact in fp32."""
    found, mark = [], 1
    for token in tokens:
        mark = (mark * 31 + token + 7) % 999_983
        found.append(mark)
    return found


def kv(tokens: Sequence[int], *, packed: bool = False) -> list[LayerKV]:
    """Return the keys and values of a sequence, or what stands for packed ones in as many bytes."""
    line = mx.array(marks(tokens), dtype=mx.float32).reshape(1, 1, -1, 1)
    heads = mx.arange(HEADS, dtype=mx.float32).reshape(1, HEADS, 1, 1) / 2
    return [(_packed if packed else _plain)(line + heads + layer) for layer in range(LAYERS)]


def _plain(line: mx.array) -> LayerKV:
    return line * mx.ones((1, 1, 1, KEY_SIZE)), -line * mx.ones((1, 1, 1, VALUE_SIZE))


def _packed(line: mx.array) -> LayerKV:
    scales = [(line % (7 + part)).astype(mx.float16) for part in range(4)]
    numbers = [(line * (2 + part)).astype(mx.uint32) for part in range(2)]
    return numbers[0], scales[0], scales[1], numbers[1], scales[2], scales[3]


def reader(tokens: Sequence[int], *, packed: bool = False) -> Read:
    """Return what a request that computed `tokens` gives the cache to read from."""
    whole = kv(tokens, packed=packed)

    def read(start: int, stop: int) -> list[LayerKV]:
        assert 0 <= start < stop <= len(tokens), "the cache asks for tokens that were not computed"
        return [tuple(array[:, :, start:stop] for array in layer) for layer in whole]

    return read


def check_values(layers: list[LayerKV] | None, tokens: Sequence[int]) -> None:
    """Fail unless `layers` are the keys and values of `tokens`."""
    if not tokens:
        assert layers is None
        return
    assert layers is not None
    for got, wanted in zip(layers, kv(tokens, packed=len(layers[0]) == 6), strict=True):
        for one, other in zip(got, wanted, strict=True):
            assert one.dtype == other.dtype
            assert mx.array_equal(one, other).item()


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the longest common beginning, token by token."""
    return next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(map(len, (a, b)))
    )


def open_tier(folder: Path, budget: int = 1 << 30, rate: int = 1 << 40, **more) -> KVTier:
    """Return a tier as a process that starts has it."""
    return KVTier(folder, FINGERPRINT, budget, rate, **more)


def files_of(folder: Path) -> list[Path]:
    """Return the files of a tier."""
    return sorted((folder / FINGERPRINT).glob("*.kv.safetensors"))


def check_trie(root: Node) -> None:
    """Fail unless the trie below `root` is as it should be: spans by first tokens, what is in
    memory and what is on disk beginnings of every path, each node in one of them."""
    for node in root.below():
        above = node.parent
        assert above is not None
        assert above.children[node.span[:4]] is node
        assert 0 < node.length <= 256
        assert node.layers is not None or node.stored is not None, "a node of nothing"
        if above is not root:
            assert above.layers is not None or node.layers is None, "warm below cold"
            assert above.stored is not None or node.stored is None, "stored below what is not"
            assert above.stamp >= node.stamp
            assert above.pinned or not node.pinned
        if node.layers is not None:
            assert node.layers[0][0].shape[2] == node.length
        if node.stored is not None:
            assert node in node.stored.nodes
            part = node.stored.tokens[node.offset * 4 :][: len(node.span)]
            assert part == node.span
