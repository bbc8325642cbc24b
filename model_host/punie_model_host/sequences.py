"""mlx-lm's caches of one sequence, plain or quantized, and the arrays that they consist of."""

from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache

from punie_model_host.kv_arrays import LayerKV
from punie_model_host.profile import KVQuantization

type LayerCache = Any
"""One of mlx-lm's cache objects; duck-typed there, without a common public base."""


class QuantizedSequence(QuantizedKVCache):
    """mlx-lm's, which has no size while it is empty, and first buffers of a wrong one for 5 and 6
    bits."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """Add ``(1, heads, n, dim)`` each; return packed numbers, scales and biases of all keys,
        and of all values."""
        if self.keys is None:
            self.keys, self.values = (self._nothing_like(array) for array in (keys, values))
        return super().update_and_fetch(keys, values)

    def _nothing_like(self, array: mx.array) -> tuple[mx.array, ...]:
        some = mx.quantize(array[..., :1, :], group_size=self.group_size, bits=self.bits)
        return tuple(one[..., :0, :] for one in some)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(array.nbytes for array in arrays_of(self))


def new_caches(model: Any, quantization: KVQuantization | None) -> list[LayerCache]:
    """Return a cache for each layer of a sequence that begins. What is to be quantized is so from
    the first token on: then it is the same bits whoever computes it."""
    caches = make_prompt_cache(model)
    return caches if quantization is None else [_quantized(quantization) for _ in caches]


def cache_of(layer: LayerKV, quantization: KVQuantization | None) -> KVCache | QuantizedSequence:
    """Return a cache that holds what one layer keeps of a sequence."""
    cache = KVCache() if quantization is None else _quantized(quantization)
    _fill(cache, layer)
    cache.offset = layer[0].shape[2]
    return cache


def arrays_of(cache: KVCache | QuantizedKVCache) -> LayerKV:
    """Return its arrays, none without a token; they may have room for more than are in it."""
    if cache.keys is None or cache.values is None:
        return ()
    if isinstance(cache, QuantizedKVCache):
        return (*cache.keys, *cache.values)
    return cache.keys, cache.values


def span_of(cache: KVCache | QuantizedKVCache, start: int, stop: int) -> LayerKV:
    """Return what it keeps of the tokens from `start` to `stop`, as slices."""
    return tuple(array[:, :, start:stop] for array in arrays_of(cache))


def detach(cache: LayerCache) -> LayerKV:
    """Let a cache have copies of its own in place of slices, and return them, not evaluated; caches
    of other kinds never hold slices."""
    if type(cache) not in (KVCache, QuantizedSequence):
        return ()
    layer = tuple(map(mx.contiguous, arrays_of(cache)))
    if layer:
        _fill(cache, layer)
    return layer


def _fill(cache: KVCache | QuantizedSequence, layer: LayerKV) -> None:
    half = len(layer) // 2
    if isinstance(cache, KVCache):
        cache.keys, cache.values = layer
    else:
        cache.keys, cache.values = layer[:half], layer[half:]


def _quantized(quantization: KVQuantization) -> QuantizedSequence:
    return QuantizedSequence(group_size=quantization.group_size, bits=quantization.bits)
