"""A right-ragged KV cache: row *b* of a batch holds its own tokens at ``[0, length_b)``.

Stands in for mlx-lm's caches by their duck-typed contract (`offset`, `update_and_fetch`,
`make_mask`). Each row is written at its own offset, positions for RoPE and the mask go by each
row's length, and a row is taken back, cut or given up by a number: nothing is rolled or padded.
"""

from collections.abc import Sequence
from typing import Any, Final

import mlx.core as mx
from mlx_lm.models.cache import create_attention_mask

from punie_model_host.kv_arrays import LayerKV
from punie_model_host.profile import KVQuantization

BLOCK: Final = 256
"""Tokens by which the buffers grow, at least."""


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
        self._buffers: LayerKV = ()

    @property
    def offset(self) -> mx.array:
        """Tokens that each row had before this forward, ``(rows,)``."""
        return self._frame.offset

    @property
    def keys(self) -> mx.array:
        """The first buffer, once there is one: mlx-lm's pipelined models replace it by itself and
        what they send, to have that sent."""
        return self._buffers[0]

    @keys.setter
    def keys(self, keys: mx.array) -> None:
        self._buffers = (keys, *self._buffers[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, rubbish included."""
        return sum(buffer.nbytes for buffer in self._buffers)

    @property
    def room(self) -> tuple[int, int]:
        """Rows and tokens that the buffers have room for."""
        if not self._buffers:
            return 0, 0
        rows, _, tokens, _ = self._buffers[0].shape
        return rows, tokens

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """Write ``(rows, heads, n, dim)`` behind each row's tokens; return the rows' keys and
        values as far as the longest of them reaches now."""
        return self._update((keys, values))

    def _update(self, new: LayerKV) -> LayerKV:
        frame, (rows, _, tokens, _) = self._frame, new[0].shape
        end = frame.longest + tokens
        self.reserve(rows, end, new)
        pairs = list(zip(self._buffers, new, strict=True))
        if frame.is_even:
            for buffer, one in pairs:
                buffer[:rows, :, frame.longest : end] = one
        elif self.room[0] == rows:  # twice as fast as a scatter, on a CPU
            self._buffers = tuple(
                mx.put_along_axis(buffer, frame.places(one), one, 2) for buffer, one in pairs
            )
        else:
            row, place = frame.rows[:, None], frame.offset[:, None] + mx.arange(tokens)
            for buffer, one in pairs:
                buffer[row, :, place] = one.transpose(0, 2, 1, 3)
        return tuple(buffer[:rows, :, :end] for buffer in self._buffers)

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

    def reserve(self, rows: int, tokens: int, like: LayerKV) -> None:
        """Have room for that many, of the shapes and types of `like`."""
        buffers = self._buffers or (None,) * len(like)
        self._buffers = tuple(
            _grown(buffer, rows, tokens, one) for buffer, one in zip(buffers, like, strict=True)
        )

    def put(self, row: int, layer: LayerKV) -> None:
        """Write all tokens of a row; there must be room."""
        for buffer, one in zip(self._buffers, layer, strict=True):
            buffer[row : row + 1, :, : one.shape[2]] = one

    def take(self, row: int, start: int, stop: int) -> LayerKV:
        """Return tokens of a row, as slices: they hold the whole buffer while they are not
        copied."""
        return tuple(buffer[row : row + 1, :, start:stop] for buffer in self._buffers)

    def move(self, source: int, target: int, tokens: int) -> None:
        """Overwrite a row by another one."""
        if tokens:  # before the first forward there may be no buffer yet
            self.put(target, self.take(source, 0, tokens))
        self.clear(target, tokens)

    def clear(self, row: int, start: int = 0) -> None:
        """Forget a row's values from `start` on. A masked key weighs nothing, but nothing times
        the NaN of a broken row is NaN: it must not be there when the place has a new owner."""
        for buffer in self._buffers[len(self._buffers) // 2 :]:
            buffer[row : row + 1, :, start:] = 0

    def shrink(self, rows: int, tokens: int) -> None:
        """Give back the room for more than that; all of it for no rows."""
        kept = self._buffers if rows else ()
        self._buffers = tuple(mx.contiguous(buffer[:rows, :, :tokens]) for buffer in kept)


class QuantizedRaggedKVCache(RaggedKVCache):
    """One layer of all rows in a few bits a number. `bits` and `group_size` are what mlx-lm's
    attention looks for."""

    def __init__(self, frame: Frame, quantization: KVQuantization) -> None:
        super().__init__(frame)
        self.bits = quantization.bits
        self.group_size = quantization.group_size

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """Write ``(rows, heads, n, dim)`` behind each row's tokens; return packed numbers, scales
        and biases of the rows' keys, and of their values."""
        packed = [
            mx.quantize(array, group_size=self.group_size, bits=self.bits)
            for array in (keys, values)
        ]
        found = self._update((*packed[0], *packed[1]))
        return found[:3], found[3:]


def ragged_cache(frame: Frame, quantization: KVQuantization | None) -> RaggedKVCache:
    """Return an empty cache of one layer."""
    if quantization is None:
        return RaggedKVCache(frame)
    return QuantizedRaggedKVCache(frame, quantization)


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
