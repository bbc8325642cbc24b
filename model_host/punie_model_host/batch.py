"""The rows that are decoded together. A row joins with all its tokens but one computed and that one
as its input; each dispatch computes one more token of every row, and is read one step later.

Two kinds behind one interface: `RaggedBatch`, one forward for all rows, and `SoloBatch` for models
whose caches cannot be ragged, a forward for each. Both belong to the engine's thread.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from punie_model_host.engine_messages import Key
from punie_model_host.ragged import Frame, LayerKV, RaggedKVCache, blocks, sequence_cache
from punie_model_host.sampling import RowSampler, Sampled, sample

type LayerCaches = list[Any]
"""mlx-lm's cache objects of one sequence, one a layer; duck-typed there, without a common base."""

_SPARE: Final = 2
"""How many times too large a buffer may be before it is made smaller."""


@dataclass(slots=True, kw_only=True)
class Row:
    """A sequence apart from a batch: `caches` hold `length` tokens, `token` ``(1,)`` is the next
    one's input, not in them; it may be lazy."""

    key: Key
    caches: LayerCaches
    length: int
    token: mx.array
    sampler: RowSampler

    def detach(self) -> None:
        """Copy what are slices of a batch's buffers, so that those can be written in place."""
        arrays = [self.token]
        for cache in self.caches:
            if type(cache) is KVCache and cache.keys is not None:  # else no token is in it
                cache.keys, cache.values = mx.contiguous(cache.keys), mx.contiguous(cache.values)
                arrays += [cache.keys, cache.values]
        mx.async_eval(arrays)


@dataclass(frozen=True, slots=True)
class Flight:
    """A dispatched step: what was sampled for each key, None for one that was forgotten."""

    keys: tuple[Key | None, ...]
    sampled: Sampled

    def read(self) -> list[tuple[Key, int]]:
        """Wait for the tokens and return them; `UNSOUND` for a row that cannot go on."""
        tokens = zip(self.keys, self.sampled.read(), strict=True)
        return [(key, token) for key, token in tokens if key is not None]

    def without(self, key: Key) -> Flight:
        """Return this step less the token of `key`."""
        return Flight(tuple(None if k == key else k for k in self.keys), self.sampled)


class Batch(ABC):
    """Rows by key, in an order of their own."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.keys: list[Key] = []
        self._samplers: list[RowSampler] = []
        self._flights: deque[Flight] = deque()

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: Key) -> bool:
        return key in self.keys

    @property
    def in_flight(self) -> int:
        """Steps that were dispatched and not read."""
        return len(self._flights)

    @abstractmethod
    def join(self, row: Row) -> None:
        """Take a row in; its caches are copied or taken over."""

    @abstractmethod
    def leave(self, key: Key) -> Row:
        """Take a row out, as it is after all dispatched steps. Raises `ValueError` when it is not
        there."""

    @abstractmethod
    def forward(self) -> mx.array:
        """Return the logits after each row's input, lazily."""

    @abstractmethod
    def _advance(self, tokens: mx.array) -> None:
        """Each row has one token more, and `tokens` as its next inputs."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of keys and values."""

    def dispatch(self) -> None:
        """Begin to compute the next token of every row; nothing waits for it here. Raises
        `RowError` when one row's sampling fails: nothing has changed then, without it the others
        can go on."""
        sampled = sample(self.forward(), self._samplers)
        mx.async_eval(*sampled)
        self._advance(sampled.tokens)
        self._flights.append(Flight(tuple(self.keys), sampled))

    def read(self, *, ahead: int = 0) -> list[tuple[Key, int]]:
        """Wait for dispatched steps, oldest first, but for the last `ahead`; return their tokens,
        `UNSOUND` for a row that cannot go on. Rows that have left since are among them."""
        tokens: list[tuple[Key, int]] = []
        while len(self._flights) > ahead:
            tokens += self._flights.popleft().read()
        return tokens

    def forget(self, key: Key) -> None:
        """Read no more tokens of `key`, whose request is over."""
        self._flights = deque(flight.without(key) for flight in self._flights)

    def drop(self) -> None:
        """Forget all rows and steps: a forward failed."""
        self.keys.clear()
        self._samplers.clear()
        self._flights.clear()


class RaggedBatch(Batch):
    """Rows in one right-ragged cache of `layers` layers."""

    def __init__(self, model: Any, layers: int) -> None:
        super().__init__(model)
        self._frame = Frame()
        self._layers = [RaggedKVCache(self._frame) for _ in range(layers)]
        self._lengths: list[int] = []
        self._inputs: mx.array | None = None

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self._layers)

    def join(self, row: Row) -> None:
        if row.length:  # else the first forward makes the room
            self._write(row)
        self.keys.append(row.key)
        self._samplers.append(row.sampler)
        self._lengths.append(row.length)
        inputs = [self._inputs] if self._inputs is not None else []
        self._inputs = mx.concatenate([*inputs, row.token.astype(mx.uint32)])

    def _write(self, row: Row) -> None:
        place, longest = len(self.keys), max([row.length, *self._lengths])
        for layer, cache in zip(self._layers, row.caches, strict=True):
            keys, values = cache.keys[..., : row.length, :], cache.values[..., : row.length, :]
            layer.reserve(place + 1, longest + 1, keys, values)
            layer.put(place, keys, values)

    def read_row(self, key: Key, start: int, stop: int) -> list[LayerKV]:
        """Return keys and values of tokens of a row, as slices. Raises `ValueError` when it is not
        there."""
        place = self.keys.index(key)
        return [layer.take(place, start, stop) for layer in self._layers]

    def leave(self, key: Key) -> Row:
        place = self.keys.index(key)
        row = self._row(place)
        last = len(self.keys) - 1
        for layer in self._layers:
            if place != last:
                layer.move(last, place, self._lengths[last])
            layer.clear(last)
        order = [*range(place), last, *range(place + 1, last)] if place != last else [*range(last)]
        self._keep(order)
        return row

    def _row(self, place: int) -> Row:
        assert self._inputs is not None
        length = self._lengths[place]
        parts = [layer.take(place, 0, length) for layer in self._layers] if length else []
        return Row(
            key=self.keys[place],
            caches=[sequence_cache(*part) for part in parts],
            length=length,
            token=self._inputs[place : place + 1],
            sampler=self._samplers[place],
        )

    def _keep(self, order: Sequence[int]) -> None:
        assert self._inputs is not None
        self.keys = [self.keys[at] for at in order]
        self._samplers = [self._samplers[at] for at in order]
        self._lengths = [self._lengths[at] for at in order]
        self._inputs = self._inputs[mx.array(list(order))] if order else None
        self._shrink()

    def _shrink(self) -> None:
        buffer = self._layers[0].keys
        if buffer is None:
            return
        rows, tokens = len(self.keys), blocks(max(self._lengths, default=0) + 1)
        if not rows or buffer.shape[0] >= _SPARE * rows or buffer.shape[2] >= _SPARE * tokens:
            for layer in self._layers:
                layer.shrink(rows, min(tokens, buffer.shape[2]))

    def forward(self) -> mx.array:
        assert self._inputs is not None
        self._frame.set(self._lengths)
        return self._model(self._inputs[:, None], cache=self._layers)[:, -1, :]

    def _advance(self, tokens: mx.array) -> None:
        self._inputs = tokens
        self._lengths = [length + 1 for length in self._lengths]

    def drop(self) -> None:
        super().drop()
        self._lengths.clear()
        self._inputs = None
        for layer in self._layers:
            layer.shrink(0, 0)


class SoloBatch(Batch):
    """Rows that are computed one after the other, each with its model's own caches."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._rows: list[Row] = []
        self._logits: dict[Key, mx.array] = {}

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for row in self._rows for cache in row.caches)

    def join(self, row: Row) -> None:
        self.keys.append(row.key)
        self._samplers.append(row.sampler)
        self._rows.append(row)

    def leave(self, key: Key) -> Row:
        place = self.keys.index(key)
        del self.keys[place], self._samplers[place]
        self._logits.pop(key, None)
        return self._rows.pop(place)

    def forward(self) -> mx.array:
        for row in self._rows:
            if row.key not in self._logits:  # else computed before another row's sampling failed
                logits = self._model(row.token[None], cache=row.caches)
                self._logits[row.key] = logits[:, -1, :]
        return mx.concatenate([self._logits[key] for key in self.keys])

    def _advance(self, tokens: mx.array) -> None:
        self._logits.clear()
        for place, row in enumerate(self._rows):
            row.token = tokens[place : place + 1]
            row.length += 1

    def drop(self) -> None:
        super().drop()
        self._rows.clear()
        self._logits.clear()
