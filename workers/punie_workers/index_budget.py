"""How much memory the symbol indexes of all projects in this process may take together.

Pure: it says which shall go; whoever owns an index drops it.
"""

import functools
from collections import OrderedDict
from typing import Final

MAX_TOTAL: Final = 192 * 1024 * 1024
"""Bytes, about, that the indexes of one worker process may take. One alone is bounded by
`punie_workers.interp.symbol_index.MAX_MEMORY`."""


class IndexBudget[K]:
    """Sizes by owner, the least recently used first. Used from one event loop."""

    def __init__(self, total: int = MAX_TOTAL) -> None:
        self._total = total
        self._sizes: OrderedDict[K, int] = OrderedDict()

    def used(self, owner: K, size: int) -> list[K]:
        """Note that the index of `owner` was used and takes `size` bytes; return the owners whose
        indexes must go, which are forgotten. It may stay itself, whatever it takes."""
        self._sizes[owner] = size
        self._sizes.move_to_end(owner)
        gone: list[K] = []
        while sum(self._sizes.values()) > self._total and len(self._sizes) > 1:
            gone.append(self._sizes.popitem(last=False)[0])
        return gone

    def forget(self, owner: K) -> None:
        """Its index is no more."""
        self._sizes.pop(owner, None)


@functools.cache
def of_this_process() -> IndexBudget[object]:
    """Return the one that all projects of a worker process share."""
    return IndexBudget()
