"""Keys and values of a span of tokens as MLX arrays, some for each layer."""

from itertools import chain

import mlx.core as mx

type LayerKV = tuple[mx.array, ...]
"""What one layer keeps: arrays of shape (1, heads, tokens, size), whose sizes may differ. Keys and
values; or, quantized, packed numbers, scales and biases of the keys, then those of the values."""


def layout_of(layers: list[LayerKV]) -> list[tuple[mx.Dtype, int, int, int]]:
    """Return what must be alike for spans to be joined."""
    return [(a.dtype, a.shape[0], a.shape[1], a.shape[3]) for a in chain(*layers)]


def length_of(layers: list[LayerKV]) -> int:
    """Return how many tokens they are for."""
    return layers[0][0].shape[2]


def size_of(layers: list[LayerKV]) -> int:
    """Return their bytes."""
    return sum(array.nbytes for array in chain(*layers))


def part(layers: list[LayerKV], start: int, stop: int) -> list[LayerKV]:
    """Return slices, which keep the whole alive."""
    if start == 0 and stop == length_of(layers):
        return layers
    return [tuple(array[:, :, start:stop] for array in layer) for layer in layers]


def copies(layers: list[LayerKV]) -> list[LayerKV]:
    """Return arrays that hold no more memory than they show, not evaluated."""
    return [tuple(map(mx.contiguous, layer)) for layer in layers]


def joined(spans: list[list[LayerKV]]) -> list[LayerKV]:
    """Return the spans one after the other, not evaluated. None of the arrays is one of theirs:
    whoever assigns into the result changes nothing else."""
    if len(spans) == 1:
        return copies(spans[0])
    return [
        tuple(mx.concatenate(list(parts), axis=2) for parts in zip(*layer, strict=True))
        for layer in zip(*spans, strict=True)
    ]
