"""A right-ragged KV cache: row *b* of a batch holds its own tokens at ``[0, length_b)``.

Stands in for mlx-lm's caches by their duck-typed contract (`offset`, `update_and_fetch`,
`make_mask`). Each row is written at its own offset, positions for RoPE and the mask go by each
row's length, and a row is taken back, cut or given up by a number: nothing is rolled or padded.
"""

from collections.abc import Sequence
from typing import Final

import mlx.core as mx
from mlx_lm.models.cache import KVCache, create_attention_mask

BLOCK: Final = 256
"""Tokens by which the buffers grow, at least."""

type LayerKV = tuple[mx.array, mx.array]
"""Keys and values of one layer: ``(1, kv_heads, tokens, head_dim)``."""


class Frame:
    """What all layers share in one forward: the rows' lengths before it."""

    def __init__(self) -> None:
        self.set([])

    def set(self, lengths: Sequence[int]) -> None:
        """Begin a forward over rows of these lengths."""
        self.lengths = tuple(lengths)
        self.longest = max(self.lengths, default=0)
        self.is_even = len(set(self.lengths)) <= 1
        self.offset: mx.array = mx.array(self.lengths, dtype=mx.int32)
        self.rows: mx.array = mx.arange(len(self.lengths))
        self._places: dict[tuple[int, ...], mx.array] = {}

    def places(self, new: mx.array) -> mx.array:
        """Return where each number of `new` ``(rows, heads, n, dim)`` belongs on the third axis."""
        shape = tuple(new.shape)
        if shape not in self._places:
            place = self.offset[:, None, None, None] + mx.arange(shape[2])[:, None]
            self._places[shape] = mx.contiguous(mx.broadcast_to(place, shape))
        return self._places[shape]


class RaggedKVCache:
    """One layer of all rows. Its buffers have room for more rows and tokens than are there; what
    is behind a row's length is rubbish of its own, never of a row that left."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    @property
    def offset(self) -> mx.array:
        """Tokens that each row had before this forward, ``(rows,)``."""
        return self._frame.offset

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, rubbish included."""
        if self.keys is None or self.values is None:
            return 0
        return self.keys.nbytes + self.values.nbytes

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write ``(rows, heads, n, dim)`` behind each row's tokens; return the rows' keys and
        values as far as the longest of them reaches now."""
        rows, _, tokens, _ = keys.shape
        end = self._frame.longest + tokens
        self.reserve(rows, end, keys, values)
        assert self.keys is not None
        assert self.values is not None
        if self._frame.is_even:
            start = self._frame.longest
            self.keys[:rows, :, start:end] = keys
            self.values[:rows, :, start:end] = values
        elif self.keys.shape[0] == rows:  # twice as fast as a scatter, on a CPU
            self.keys = mx.put_along_axis(self.keys, self._frame.places(keys), keys, 2)
            self.values = mx.put_along_axis(self.values, self._frame.places(values), values, 2)
        else:
            row = self._frame.rows[:, None]
            place = self._frame.offset[:, None] + mx.arange(tokens)
            self.keys[row, :, place] = keys.transpose(0, 2, 1, 3)
            self.values[row, :, place] = values.transpose(0, 2, 1, 3)
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """Return which keys each of the `N` new tokens of each row may see: ``None`` for all,
        ``"causal"``, or booleans ``(rows, 1, N, keys)``."""
        frame = self._frame
        if frame.is_even:
            return create_attention_mask(N, frame.longest, return_array, window_size)
        place = frame.offset[:, None, None, None] + mx.arange(N)[:, None]
        keys = mx.arange(frame.longest + N)
        mask = keys <= place
        if window_size is not None:
            mask = mask & (keys > place - window_size)
        return mask

    def reserve(self, rows: int, tokens: int, keys: mx.array, values: mx.array) -> None:
        """Have room for that many, of the shape and type of `keys` and `values`."""
        self.keys = _grown(self.keys, rows, tokens, keys)
        self.values = _grown(self.values, rows, tokens, values)

    def put(self, row: int, keys: mx.array, values: mx.array) -> None:
        """Write all tokens of a row; there must be room."""
        assert self.keys is not None
        assert self.values is not None
        tokens = keys.shape[2]
        self.keys[row : row + 1, :, :tokens] = keys
        self.values[row : row + 1, :, :tokens] = values

    def take(self, row: int, start: int, stop: int) -> LayerKV:
        """Return tokens of a row, as slices: they hold the whole buffer while they are not
        copied."""
        assert self.keys is not None
        assert self.values is not None
        span = (slice(row, row + 1), slice(None), slice(start, stop))
        return self.keys[span], self.values[span]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Overwrite a row by another one."""
        if tokens:  # before the first forward there may be no buffer yet
            self.put(target, *self.take(source, 0, tokens))
        self.clear(target, tokens)

    def clear(self, row: int, start: int = 0) -> None:
        """Forget a row's values from `start` on. A masked key weighs nothing, but nothing times
        the NaN of a broken row is NaN: it must not be there when the place has a new owner."""
        if self.values is not None:
            self.values[row : row + 1, :, start:] = 0

    def shrink(self, rows: int, tokens: int) -> None:
        """Give back the room for more than that; all of it for no rows."""
        if not rows or self.keys is None or self.values is None:
            self.keys = self.values = None
            return
        self.keys = mx.contiguous(self.keys[:rows, :, :tokens])
        self.values = mx.contiguous(self.values[:rows, :, :tokens])


def _grown(buffer: mx.array | None, rows: int, tokens: int, like: mx.array) -> mx.array:
    """Return `buffer` with room for `rows`, exactly, and for `tokens` and an eighth more."""
    _, heads, _, dim = like.shape
    if buffer is None:
        return mx.zeros((rows, heads, blocks(tokens), dim), like.dtype)
    has_rows, _, has_tokens, _ = buffer.shape
    if rows <= has_rows and tokens <= has_tokens:
        return buffer
    more_rows = max(0, rows - has_rows)
    more = 0 if tokens <= has_tokens else blocks(tokens + tokens // 8) - has_tokens
    return mx.pad(buffer, [(0, more_rows), (0, 0), (0, more), (0, 0)])


def blocks(tokens: int) -> int:
    """Return `tokens` rounded up to whole blocks."""
    return -(-tokens // BLOCK) * BLOCK


def sequence_cache(keys: mx.array, values: mx.array) -> KVCache:
    """Return mlx-lm's cache of one sequence that holds these keys and values."""
    cache = KVCache()
    cache.state = (keys, values, keys.shape[2])
    return cache
