"""Whole states of caches that cannot be sliced (sliding windows, state spaces), each at one exact
position: what a request can start from is one of them or nothing. In memory only."""

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from punie_model_host.token_trie import TOKEN_BYTES

type LayerCaches = list[Any]
"""mlx-lm's cache objects, one per layer; duck-typed there, without a common public base."""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    layers: LayerCaches
    nbytes: int


class Snapshots:
    """The least recently used go when the bytes of all pass `budget`. Single thread."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self._kept: OrderedDict[bytes, _Snapshot] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, key: bytes, layers: LayerCaches) -> None:
        """Keep a copy of `layers`, the state after the tokens `key`; nothing if there is one, or
        if it alone passes the budget."""
        nbytes = sum(layer.nbytes for layer in layers)
        if key in self._kept:
            self._kept.move_to_end(key)
        elif key and nbytes <= self.budget:
            self._shrink(self.budget - nbytes)
            self._kept[key] = _Snapshot(_copies(layers), nbytes)
            self.nbytes += nbytes

    def longest(self, key: bytes) -> int:
        """Return how many tokens of `key` the longest snapshot that it continues has seen."""
        best = max((kept for kept in self._kept if key.startswith(kept)), key=len, default=b"")
        if best:
            self._kept.move_to_end(best)
        return len(best) // TOKEN_BYTES

    def lease(self, key: bytes) -> tuple[int, LayerCaches | None]:
        """Return what `longest` does and copies of that state, which the borrower owns."""
        if not (length := self.longest(key)):
            return 0, None
        return length, _copies(self._kept[key[: length * TOKEN_BYTES]].layers)

    def resize(self, budget: int) -> None:
        """Drop what is over the new budget."""
        self.budget = budget
        self._shrink(budget)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
        self.nbytes = 0

    def _shrink(self, size: int) -> None:
        while self.nbytes > size:
            self.nbytes -= self._kept.popitem(last=False)[1].nbytes


def _copies(layers: LayerCaches) -> LayerCaches:
    """Return copies that share no array object: mlx-lm's caches assign into theirs."""
    copies = copy.deepcopy(layers)
    mx.eval([array for _, array in tree_flatten([layer.state for layer in copies])])
    return copies
