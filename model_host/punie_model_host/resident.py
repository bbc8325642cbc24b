"""Which nodes of the prefix cache have their keys and values in memory, within a budget of bytes.

The nodes are in order of their last use. Whoever uses one uses all above it too, and those count as
used later: so the first in order never has a child in memory, and dropping it breaks no path.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

from punie_model_host.token_trie import LayerKV, Node

_PINNED: Final = 4
"""The share of the budget that may be pinned, inverted."""


class Residents:
    """Never holds more than `budget` bytes, and at most a quarter of it pinned. Pure."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self.pinned_bytes = 0
        self._order: OrderedDict[Node, None] = OrderedDict()
        self._pinned: OrderedDict[Node, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order) + len(self._pinned)

    def __iter__(self) -> Iterator[Node]:
        """Yield the nodes, the pinned first, then the last used, each before its children."""
        return chain(reversed(self._pinned), reversed(self._order))

    def use(self, path: Sequence[Node], stamp: int) -> None:
        """Say that the nodes from the root down along `path` are used, at `stamp`."""
        for node in reversed(path):
            node.stamp = stamp
            if node.layers is not None:
                self._order_of(node).move_to_end(node)

    def room(self, need: int, stamp: int) -> int:
        """Drop what was not used at `stamp` itself, as far as `need` bytes take; return how many
        bytes are free, which may be fewer."""
        while self.nbytes + need > self.budget and self._order:
            oldest = next(iter(self._order))
            if oldest.stamp == stamp:
                break
            self.release(oldest)
        return self.budget - self.nbytes

    def hold(self, node: Node, layers: list[LayerKV], nbytes: int) -> None:
        """Keep `layers` as the node's; there must be room for their `nbytes` bytes."""
        assert node.layers is None
        assert self.nbytes + nbytes <= self.budget
        node.layers, node.nbytes = layers, nbytes
        self.nbytes += nbytes
        self.pinned_bytes += nbytes if node.pinned else 0
        self._order_of(node)[node] = None

    def release(self, node: Node) -> None:
        """Let go of a node's keys and values; without a file the node goes too."""
        del self._order_of(node)[node]
        self.nbytes -= node.nbytes
        self.pinned_bytes -= node.nbytes if node.pinned else 0
        node.layers, node.nbytes, node.pinned = None, 0, False
        if node.stored is None:
            assert not node.children
            node.unlink()

    def share(self, node: Node, head: Node, first: list[LayerKV], nbytes: int) -> None:
        """Give `head`, which was split off `node`, its part `first` of the node's `nbytes`."""
        head.layers, head.nbytes = first, nbytes
        node.nbytes -= nbytes
        self._order_of(head)[head] = None

    def pin(self, path: Sequence[Node]) -> None:
        """Pin the nodes from the root down along `path`, as far as their share of the budget
        reaches; what was pinned and used longest ago makes room."""
        for node in path:
            if node.pinned:
                continue
            if node.layers is None or not self._may_pin(node, path):
                break
            del self._order[node]
            node.pinned = True
            self.pinned_bytes += node.nbytes
            self._pinned[node] = None
        for node in reversed(path):
            if node.pinned:
                self._pinned.move_to_end(node)

    def resize(self, budget: int, stamp: int) -> None:
        """Drop what is over the new budget; what is pinned over its share is so no longer."""
        self.budget = budget
        while self.pinned_bytes > budget // _PINNED:
            self._unpin(next(iter(self._pinned)))
        self.room(0, stamp)

    def clear(self) -> None:
        """Let go of all; the nodes stay where they are."""
        for node in self:
            node.layers, node.nbytes, node.pinned = None, 0, False
        self._order.clear()
        self._pinned.clear()
        self.nbytes = self.pinned_bytes = 0

    def _may_pin(self, node: Node, path: Sequence[Node]) -> bool:
        share = self.budget // _PINNED
        while self.pinned_bytes + node.nbytes > share and self._pinned:
            oldest = next(iter(self._pinned))
            if oldest in path:
                return False
            self._unpin(oldest)
        return self.pinned_bytes + node.nbytes <= share

    def _unpin(self, node: Node) -> None:
        del self._pinned[node]
        self._order[node] = None
        node.pinned = False
        self.pinned_bytes -= node.nbytes

    def _order_of(self, node: Node) -> OrderedDict[Node, None]:
        return self._pinned if node.pinned else self._order
