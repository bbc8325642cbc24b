"""Keys and values of the draft model: of the rows that it drafts for, and of conversations that
may go on. For the engine's thread."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from punie_model_host.batch import LayerCaches, RaggedBatch, Row
from punie_model_host.engine_messages import Key
from punie_model_host.loading import LoadedModel
from punie_model_host.memory import KVBudget
from punie_model_host.sampling import RowSampler
from punie_model_host.sequences import arrays_of, new_caches

ROWS: Final = 4
"""Rows that have drafts from a model at once, and sequences whose keys and values are held."""
_TOGETHER: Final = 64
"""Tokens of a forward of all rows that are cheaper than to take a row out and put it back in."""


@dataclass(frozen=True, slots=True)
class Wish:
    """At most `count` tokens are wanted after `tokens`, uint32: prompt and answer so far, a view
    that is not kept. `row` is where the answer is; it is not changed."""

    key: Key
    tokens: np.ndarray
    count: int
    row: RowSampler


@dataclass(slots=True, eq=False)
class _Held:
    """A sequence whose keys and values are held: in the batch, or else in `caches`."""

    tokens: np.ndarray
    caches: LayerCaches | None


class _Together(RaggedBatch):
    """Rows that are computed in one forward, each by as many tokens as it has to."""

    def cut(self, key: Key, length: int) -> None:
        """Let a row have only its first `length` tokens."""
        self._lengths[self.keys.index(key)] = length

    def compute(self, inputs: mx.array, counts: Sequence[int]) -> mx.array:
        """Return the logits ``(rows, n, vocabulary)`` after `inputs` ``(rows, n)``, lazily. The
        first ``counts[b]`` of them are row *b*'s next tokens; what is behind is not kept."""
        self._frame.set(self._lengths)
        logits = self._model(inputs, cache=self._layers)
        self._lengths = [had + new for had, new in zip(self._lengths, counts, strict=True)]
        self._inputs = inputs[:, -1]  # not used here; what grew by every join is let go of
        return logits


class DraftRows:
    """Holds at most `ROWS` sequences, those of requests that are over too: the next turn of a
    conversation goes on from there. Which were not used for longest are dropped first.

    Rows are computed in one forward, those that nobody asks for along with the others, to no
    effect: that costs less than to move them. A row that lacks many tokens is computed apart.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = loaded.model
        self._vocabulary = loaded.facts.vocabulary
        self._window = loaded.profile.context_window
        self.budget = _most(loaded.model, self._window)
        self._batch = _Together(loaded.model, len(make_prompt_cache(loaded.model)))
        self._held: dict[Key, _Held] = {}
        self._spares: list[_Held] = []
        """Of requests that are over; the oldest is first, as in `_held`."""

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        apart = [held.caches or [] for held in (*self._held.values(), *self._spares)]
        arrays = [array for caches in apart for cache in caches for array in arrays_of(cache)]
        return self._batch.nbytes + sum(array.nbytes for array in arrays)

    def share(self, budget: KVBudget) -> KVBudget:
        """Take a part of `budget` for what is held here, and return the rest: as many tokens here
        as there, but no more than `ROWS` whole contexts."""
        each = self.budget.per_token
        part = min(self.budget.total, budget.total * each // (each + budget.per_token))
        self.budget = replace(self.budget, total=part)
        return replace(budget, total=budget.total - part)

    # sequences

    def hold(self, wish: Wish, wished: set[Key]) -> bool:
        """Begin with what is held of a wish, or of a conversation that it goes on, cut to tokens
        of its own, at least one too few. False, and nothing of it is held, if it is too long for
        the model or for the memory beside the other wishes' rows."""
        held = self._held.pop(wish.key, None) or self._spare(wish.tokens)
        if held is None:
            held = _Held(wish.tokens[:0].copy(), new_caches(self._model, None))
        self._held[wish.key] = held  # behind the others
        shared = _common(held.tokens, wish.tokens[:-1])
        if held.caches is None:
            self._batch.cut(wish.key, shared)
        else:
            for cache in held.caches:
                cache.trim(held.tokens.size - shared)
        held.tokens = held.tokens[:shared]
        if fits := self._makes_room(wish, wished):
            return fits
        self.discard(wish.key)
        return False

    def catch_up(self, wish: Wish, most: int) -> int:
        """Compute at most `most` of the tokens that are lacking, but not the last, and wait for
        them; return how many. The row is ready when few enough are left for the first forward."""
        held, stop = self._held[wish.key], wish.tokens.size - 1
        start = held.tokens.size
        if held.caches is None:
            if (stop - start + 1) * len(self._batch) <= _TOGETHER:
                return 0
            self._leave(wish.key)
        stop = min(stop, start + max(0, most))
        if stop > start:
            self._model(self._inputs(wish.tokens[start:stop])[None], cache=held.caches)
            mx.eval([arrays_of(cache) for cache in held.caches or []])
            held.tokens = wish.tokens[:stop].copy()
        if stop == wish.tokens.size - 1:
            self._join(wish, held)
        return stop - start

    def is_ready(self, key: Key) -> bool:
        """Whether the row can have drafts now."""
        return key in self._batch

    def went_on(self, key: Key, tokens: np.ndarray) -> None:
        """Of the row these tokens are held by now: it drafted."""
        self._held[key].tokens = tokens

    def release(self, key: Key) -> None:
        """A request is over, known or not: what is held of it may serve another that begins
        alike."""
        if key in self._held:
            self._leave(key)
            self._spares.append(self._held.pop(key))

    def discard(self, key: Key) -> None:
        """Hold nothing of a row."""
        self._held.pop(key, None)
        if key in self._batch:
            self._batch.leave(key)

    def drop(self) -> None:
        """Hold nothing: a forward failed."""
        self._held.clear()
        self._spares.clear()
        self._batch.drop()

    # forwards

    def first(self, wishes: Sequence[Wish]) -> mx.array:
        """Return the logits ``(wishes, vocabulary)`` after all tokens of ready rows, lazily."""
        at, counts = self._places(wishes), [0] * len(self._batch)
        lacking = [wish.tokens[self._held[wish.key].tokens.size :] for wish in wishes]
        inputs = np.zeros((len(self._batch), max(map(len, lacking))), dtype=np.uint32)
        for place, tokens in zip(at, lacking, strict=True):
            inputs[place, : tokens.size] = tokens
            counts[place] = tokens.size
        logits = self._batch.compute(self._inputs(inputs), counts)
        return logits[mx.array(at), mx.array([counts[place] - 1 for place in at])]

    def next(self, wishes: Sequence[Wish], tokens: mx.array) -> mx.array:
        """Return the logits ``(wishes, vocabulary)`` after one of `tokens` more each, lazily."""
        at, rows = self._places(wishes), len(self._batch)
        places = mx.array(at)
        inputs = mx.zeros((rows, 1), mx.uint32)
        inputs[places, 0] = tokens
        return self._batch.compute(inputs, [int(row in at) for row in range(rows)])[places, 0]

    def _places(self, wishes: Sequence[Wish]) -> list[int]:
        return [self._batch.keys.index(wish.key) for wish in wishes]

    def _inputs(self, tokens: np.ndarray) -> mx.array:
        """Return tokens as this model's inputs; of one that is not in its vocabulary the last: an
        embedding is read without a check."""
        return mx.array(np.minimum(tokens, self._vocabulary - 1).astype(np.uint32))

    # inside

    def _makes_room(self, wish: Wish, wished: set[Key]) -> bool:
        size = wish.tokens.size + wish.count
        while size <= self._window:
            others = [held for key, held in self._held.items() if key != wish.key]
            totals = [held.tokens.size for held in (*others, *self._spares)]
            if self.budget.fits([size, *totals]) and len(totals) < ROWS:
                return True
            idle = [key for key in self._held if key not in wished]
            if self._spares:
                self._spares.pop(0)
            elif idle:
                self.discard(idle[0])
            else:
                return False
        return False

    def _spare(self, tokens: np.ndarray) -> _Held | None:
        """Return the spare that `tokens` share most with, if that is worth more than what is
        lost of it."""
        pairs = [(_common(spare.tokens, tokens), spare) for spare in self._spares]
        shared, best = max(pairs, key=lambda pair: pair[0], default=(0, None))
        if best is None or 2 * shared < best.tokens.size:
            return None
        self._spares.remove(best)
        return best

    def _join(self, wish: Wish, held: _Held) -> None:
        row = Row(
            key=wish.key,
            caches=held.caches or [],
            length=held.tokens.size,
            token=mx.zeros((1,), mx.uint32),
            sampler=wish.row,
        )
        self._batch.join(row)
        held.caches = None

    def _leave(self, key: Key) -> None:
        if key in self._batch:
            row = self._batch.leave(key)
            row.detach()
            self._held[key].caches = row.caches or new_caches(self._model, None)


def _common(some: np.ndarray, others: np.ndarray) -> int:
    """Return how many tokens both begin with."""
    size = min(some.size, others.size)
    different = np.flatnonzero(some[:size] != others[:size])
    return int(different[0]) if different.size else size


def _most(model: Any, window: int) -> KVBudget:
    """Return the memory for `ROWS` whole contexts, of a model that is tried to see what one token
    needs."""
    caches = make_prompt_cache(model)
    mx.eval(model(mx.array([[0]]), cache=caches))
    each = sum(array[:, :, :1].nbytes for cache in caches for array in arrays_of(cache))
    return KVBudget(KVBudget(0, each).predicted([window] * ROWS), each)
