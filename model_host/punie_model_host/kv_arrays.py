"""Keys and values of a span of tokens as MLX arrays, one pair a layer."""

import mlx.core as mx

type LayerKV = tuple[mx.array, mx.array]
"""Keys and values of one layer, shape (1, heads, tokens, size) each; sizes may differ."""


def layout_of(layers: list[LayerKV]) -> list[tuple[mx.Dtype, int, int, int]]:
    """Return what must be alike for spans to be joined."""
    return [(a.dtype, a.shape[0], a.shape[1], a.shape[3]) for layer in layers for a in layer]


def length_of(layers: list[LayerKV]) -> int:
    """Return how many tokens they are for."""
    return layers[0][0].shape[2]


def size_of(layers: list[LayerKV]) -> int:
    """Return their bytes."""
    return sum(keys.nbytes + values.nbytes for keys, values in layers)


def part(layers: list[LayerKV], start: int, stop: int) -> list[LayerKV]:
    """Return slices, which keep the whole alive."""
    if start == 0 and stop == length_of(layers):
        return layers
    return [(keys[:, :, start:stop], values[:, :, start:stop]) for keys, values in layers]


def copies(layers: list[LayerKV]) -> list[LayerKV]:
    """Return arrays that hold no more memory than they show, not evaluated."""
    return [(mx.contiguous(keys), mx.contiguous(values)) for keys, values in layers]


def joined(spans: list[list[LayerKV]]) -> list[LayerKV]:
    """Return the spans one after the other, not evaluated. None of the arrays is one of theirs:
    whoever assigns into the result changes nothing else."""
    if len(spans) == 1:
        return copies(spans[0])
    return [
        (
            mx.concatenate([keys for keys, _ in layer], axis=2),
            mx.concatenate([values for _, values in layer], axis=2),
        )
        for layer in zip(*spans, strict=True)
    ]
