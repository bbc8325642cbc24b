"""The rows that are decoded together. A row joins with all its tokens but one computed and that one
as its input; each dispatch computes one more token of every row, and is read one step later.

Two kinds behind one interface: `RaggedBatch`, one forward for all rows, and `SoloBatch` for models
whose caches cannot be ragged, a forward for each. Both belong to the engine's thread.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import mlx.core as mx

from punie_model_host.engine_messages import Key
from punie_model_host.kv_arrays import LayerKV
from punie_model_host.profile import KVQuantization
from punie_model_host.ragged import Frame, blocks, ragged_cache
from punie_model_host.sampling import (
    UNSOUND,
    Place,
    RowError,
    RowSampler,
    Sampled,
    look_ahead,
    sample,
)
from punie_model_host.sequences import cache_of, detach, new_caches, span_of

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
            arrays += detach(cache)
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

    def __init__(self, model: Any, quantization: KVQuantization | None) -> None:
        self._model = model
        self._quantization = quantization
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

    def new_caches(self) -> LayerCaches:
        """Return the caches of a row that begins."""
        return new_caches(self._model, self._quantization)

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

    def verify(self, drafts: Mapping[Key, Sequence[int]]) -> dict[Key, list[int]]:
        """Compute what follows the input of every row, and what follows each token of its draft;
        wait, and return the next tokens of each row: its draft as far as that is what is sampled,
        and one more; `UNSOUND` is the last of a row that cannot go on. No step may be under way.
        Raises `RowError` when one row's sampling fails: nothing has changed then. Raises
        `ValueError` for rows that take no drafts."""
        raise ValueError(f"{type(self).__name__} takes no drafts")

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

    def __init__(self, model: Any, layers: int, quantization: KVQuantization | None = None) -> None:
        super().__init__(model, quantization)
        self._frame = Frame()
        self._layers = [ragged_cache(self._frame, quantization) for _ in range(layers)]
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
            arrays = span_of(cache, 0, row.length)
            layer.reserve(place + 1, longest + 1, arrays)
            layer.put(place, arrays)

    def read_row(self, key: Key, start: int, stop: int) -> list[LayerKV]:
        """Return keys and values of tokens of a row, as slices. Raises `ValueError` when it is not
        there."""
        place = self.keys.index(key)
        return [layer.take(place, start, stop) for layer in self._layers]

    def caches_of(self, layers: Sequence[LayerKV]) -> LayerCaches:
        """Return caches of a row that hold these arrays, one a layer."""
        return [cache_of(layer, self._quantization) for layer in layers]

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
            caches=self.caches_of(parts),
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
        has_rows, has_tokens = self._layers[0].room
        if not has_rows:
            return
        rows, tokens = len(self.keys), blocks(max(self._lengths, default=0) + 1)
        if not rows or has_rows >= _SPARE * rows or has_tokens >= _SPARE * tokens:
            for layer in self._layers:
                layer.shrink(rows, min(tokens, has_tokens))

    def forward(self) -> mx.array:
        assert self._inputs is not None
        self._frame.set(self._lengths)
        return self._model(self._inputs[:, None], cache=self._layers)[:, -1, :]

    def verify(self, drafts: Mapping[Key, Sequence[int]]) -> dict[Key, list[int]]:
        shown = [tuple(drafts.get(key, ())) for key in self.keys]
        said = self._said(shown)
        if misled := [n for n, row in enumerate(shown) if row and UNSOUND in said[n]]:
            self._clear_behind(misled)
            shown = [() if n in misled else row for n, row in enumerate(shown)]
            said = self._said(shown)
        rows = zip(self.keys, shown, said, strict=True)
        taken = {key: its[: _agreed(row, its) + 1] for key, row, its in rows}
        self._accept(taken)
        return taken

    def _said(self, shown: Sequence[tuple[int, ...]]) -> list[list[int]]:
        """Wait for what comes after the input and after each draft token of each row."""
        tokens = iter(self._look_ahead(shown).read())
        return [list(islice(tokens, len(row) + 1)) for row in shown]

    def _clear_behind(self, places: Sequence[int]) -> None:
        """Forget what is behind rows whose drafts may be no numbers to the model. Nothing times NaN
        is NaN: tokens before a draft do not look at it, and yet they are none then."""
        for place in places:
            for layer in self._layers:
                layer.clear(place, self._lengths[place])

    def _look_ahead(self, shown: Sequence[tuple[int, ...]]) -> Sampled:
        """Return what is sampled after the input and after each draft token of each row."""
        assert self._inputs is not None
        width = 1 + max(map(len, shown))
        drafts = [[0, *row, *[0] * (width - 1 - len(row))] for row in shown]
        drafted = [[0 < place <= len(row) for place in range(width)] for row in shown]
        # Shorter ones are filled up with the row's input: another token may have no numbers.
        inputs = mx.where(
            mx.array(drafted), mx.array(drafts, dtype=mx.uint32), self._inputs[:, None]
        )
        self._frame.set(self._lengths)
        logits = self._model(inputs, cache=self._layers)
        at = [n * width + place for n, row in enumerate(shown) for place in range(len(row) + 1)]
        places = [
            Place(sampler, row[:place])
            for sampler, row in zip(self._samplers, shown, strict=True)
            for place in range(len(row) + 1)
        ]
        try:
            return look_ahead(logits.reshape(-1, logits.shape[-1])[mx.array(at)], places)
        except RowError as error:
            raise RowError(at[error.index] // width, error.cause) from error

    def _accept(self, taken: Mapping[Key, Sequence[int]]) -> None:
        """Each row has its input and all of `taken` but the last, which is its next input."""
        lasts: list[int] = []
        for place, (key, sampler) in enumerate(zip(self.keys, self._samplers, strict=True)):
            tokens = [max(0, token) for token in taken[key]]  # `UNSOUND` is nothing to go on with
            sampler.take(tokens)
            self._lengths[place] += len(tokens)
            lasts.append(tokens[-1])
        self._inputs = mx.array(lasts, dtype=mx.uint32)

    def _advance(self, tokens: mx.array) -> None:
        self._inputs = tokens
        self._lengths = [length + 1 for length in self._lengths]

    def drop(self) -> None:
        super().drop()
        self._lengths.clear()
        self._inputs = None
        for layer in self._layers:
            layer.shrink(0, 0)


def _agreed(draft: Sequence[int], said: Sequence[int]) -> int:
    """Return how many tokens of a draft are what was said in their place."""
    pairs = enumerate(zip(draft, said, strict=False))
    return next((n for n, (ours, its) in pairs if ours != its), len(draft))


class SoloBatch(Batch):
    """Rows that are computed one after the other, each with its model's own caches."""

    def __init__(self, model: Any, quantization: KVQuantization | None = None) -> None:
        super().__init__(model, quantization)
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
