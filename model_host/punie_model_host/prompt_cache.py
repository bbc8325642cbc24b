"""Keys and values kept between requests, so that a conversation's next step computes only what is
new. The caches themselves are mlx-lm's; this module decides which one a prompt can start from.

Not mlx-lm's own `LRUPromptCache`: that one returns nothing to compute for a prompt it has whole,
and searches in time quadratic in the length of what differs.
"""

import copy
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

_MAX_ENTRIES: Final = 32
_TOKEN_SIZE: Final = array("I").itemsize

type LayerCaches = list[Any]
"""mlx-lm's cache objects, one per layer; duck-typed there, without a common public base."""


@dataclass(slots=True)
class _Entry:
    tokens: bytes
    layers: LayerCaches
    conversation_id: str
    nbytes: int

    @property
    def length(self) -> int:
        return len(self.tokens) // _TOKEN_SIZE


@dataclass(frozen=True, slots=True)
class Lease:
    """Caches that hold the first `cached` tokens of a prompt; the borrower owns them."""

    layers: LayerCaches
    cached: int


class PromptCache:
    """The least recently used go when the bytes of all are over `budget`. Single thread."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(entry.nbytes for entry in self._entries)

    def take(self, model: Any, tokens: Sequence[int], conversation_id: str) -> Lease:
        """Return caches for as many of `tokens` as there are, the last one always left out.

        An entry of the same conversation, or one that `tokens` continue, is moved out; of any
        other a copy is made, so that a shared beginning stays for the rest.
        """
        wanted = array("I", tokens[:-1]).tobytes()
        best, size = None, 0
        for entry in self._entries:
            if (usable := _usable(entry, wanted)) > size:
                best, size = entry, usable
        if best is None:
            return Lease(make_prompt_cache(model), 0)
        self._entries.remove(best)
        layers = best.layers
        if best.conversation_id != conversation_id and size < best.length:
            layers = copy.deepcopy(layers)
            self._entries.append(best)
        if surplus := best.length - size:
            trim_prompt_cache(layers, surplus)
        return Lease(layers, size)

    def put(self, tokens: Sequence[int], layers: LayerCaches, conversation_id: str) -> None:
        """Take over `layers`, which hold exactly `tokens`."""
        if not tokens:
            return
        key = array("I", tokens).tobytes()
        nbytes = sum(layer.nbytes for layer in layers)
        self._entries = [entry for entry in self._entries if not key.startswith(entry.tokens)]
        self._entries.append(_Entry(key, layers, conversation_id, nbytes))
        while self._entries and (self.nbytes > self.budget or len(self) > _MAX_ENTRIES):
            del self._entries[0]

    def clear(self) -> None:
        """Forget everything: another model answers now."""
        self._entries.clear()


def _usable(entry: _Entry, wanted: bytes) -> int:
    """Return how many tokens of `wanted` `entry` can stand for."""
    common = common_prefix(entry.tokens, wanted) // _TOKEN_SIZE
    if common < entry.length and not can_trim_prompt_cache(entry.layers):
        return 0
    return common


def common_prefix(a: bytes, b: bytes) -> int:
    """Return the length of the longest common beginning, in O(n) with memcmp's constant."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
