"""Keys and values kept between requests: what a prompt has in common with any conversation before
it is not computed again, and stands in memory once.

A trie over tokens (`token_trie`) whose nodes hold copies of their span, in memory within a budget
(`resident`), and in files (`kv_tier`) while there is time to write them. What is in memory is a
beginning of every path, and so is what is in files: both only ever lose leaves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import mlx.core as mx

from punie_model_host.kv_arrays import LayerKV, copies, joined, layout_of, length_of, part, size_of
from punie_model_host.kv_tier import KVTier
from punie_model_host.resident import Residents
from punie_model_host.snapshots import LayerCaches, Snapshots
from punie_model_host.token_trie import MAX_SPAN, TOKEN_BYTES, Node, Stored, encode, walk

QUIET: Final = 20.0
"""Nothing is written to disk until the cache was left alone for so long, seconds."""
_OTHER_LAYOUT: Final = "has tensors of other shapes or types than the model"

type Read = Callable[[int, int], list[LayerKV]]
"""The keys and values of tokens start..stop of a sequence, one pair a layer; slices will do."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Keys and values of the first `length` tokens of a prompt, for the borrower to keep: nothing
    that happens to the cache changes them. Not evaluated. ``None`` when there are none."""

    length: int
    layers: list[LayerKV] | None


class PrefixCache:
    """At most `budget` bytes in memory. All in the engine's thread.

    A model whose caches cannot be cut at any token is not `sliceable`: for it there are `put_state`
    and `lease_state`, else `put` and `lease`; all other methods serve both.
    """

    def __init__(
        self,
        budget: int,
        *,
        tier: KVTier | None = None,
        sliceable: bool = True,
        quiet: float = QUIET,
    ) -> None:
        self.lookups = 0
        """How often something was leased, or would have been."""
        self.hits = 0
        self._sliceable = sliceable
        self._root = Node(b"")
        self._residents = Residents(budget)
        self._snapshots = Snapshots(budget)
        self._layout: object = None
        self._layout_checked = False
        self._stamp = 0
        self._quiet = quiet
        self._used = True
        self._quiet_since = 0.0
        self._all_written = False
        self._tier = tier if sliceable else None
        for stored in self._tier.scan(self._forget) if self._tier else ():
            self._hang(stored)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return self._residents.nbytes + self._snapshots.nbytes

    @property
    def pinned_bytes(self) -> int:
        """Bytes of them that are pinned."""
        return self._residents.pinned_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of this model's files."""
        return self._tier.nbytes if self._tier else 0

    @property
    def unsaved(self) -> bool:
        """Whether `idle` may have something to do, now or in a while."""
        return self._tier is not None and (self._used or not self._all_written)

    # borrowing

    def match(self, tokens: Sequence[int]) -> int:
        """Return how many leading tokens are in memory or on disk, which counts as a use of them.
        The last token is never among them: a model needs one to go on from."""
        key = self._start(tokens[:-1])
        if not self._sliceable:
            return self._snapshots.longest(key)
        path, length = walk(self._root, key)
        self._use(path)
        return length

    def warm(self, tokens: Sequence[int], limit_bytes: int) -> bool:
        """Read from disk what `match` counts, one file at least and no more after `limit_bytes`;
        True while there is more that memory has room for."""
        path, _ = walk(self._root, self._start(tokens[:-1]))
        self._use(path)
        more = self._warm_path(path, limit_bytes)
        self._use(path)  # what came in now is behind what it continues again
        return more

    def _warm_path(self, path: Sequence[Node], limit_bytes: int) -> bool:
        done = 0
        for node in path:
            if node.layers is not None:
                continue
            if done and done >= limit_bytes:
                return True
            if not self._warm(node, path):
                return False
            done += node.nbytes
        return False

    def lease(self, tokens: Sequence[int]) -> Lease:
        """Return what `match` counts, as far as it is in memory."""
        assert self._sliceable
        path, length = walk(self._root, self._start(tokens[:-1]))
        self._use(path)
        spans: list[list[LayerKV]] = []
        end = 0
        for node in path:
            if node.layers is None:
                break
            spans.append(node.layers)
            end += node.length
        self.lookups += 1
        if not spans:
            return Lease(0, None)
        self.hits += 1
        if end > length:
            spans[-1] = part(spans[-1], 0, path[-1].length - (end - length))
        return Lease(min(end, length), joined(spans))

    # keeping

    def put(self, tokens: Sequence[int], read: Read, *, pinned: bool = False) -> None:
        """Copy what is not in memory of the keys and values of `tokens`, as far as the budget
        reaches once everything that was used less recently is gone. What is `pinned` stays, as far
        as a quarter of the budget reaches."""
        assert self._sliceable
        key = self._start(tokens)
        if not key:
            return
        self._check_layout(read)
        path, at = walk(self._root, key)
        self._use(path)
        path = self._opened(path, at, len(key) // TOKEN_BYTES, exactly=pinned)
        fresh: list[Node] = []
        try:
            self._add(key, path, read, fresh)
            mx.eval([node.layers for node in fresh])
        except BaseException:
            for node in reversed(fresh):
                self._residents.release(node)
            raise
        self._use(path)
        if pinned:
            self._residents.pin(path)
        self._all_written = False

    def put_state(self, tokens: Sequence[int], layers: LayerCaches) -> None:
        """Keep a copy of mlx-lm's cache objects, which have seen exactly `tokens`."""
        assert not self._sliceable
        self._snapshots.put(self._start(tokens), layers)

    def lease_state(self, tokens: Sequence[int]) -> tuple[int, LayerCaches | None]:
        """Return what `match` does, and copies of the caches that have seen so many tokens."""
        assert not self._sliceable
        length, layers = self._snapshots.lease(self._start(tokens[:-1]))
        self.lookups += 1
        self.hits += length > 0
        return length, layers

    def resize(self, budget: int) -> None:
        """Hold at most `budget` bytes from now on."""
        self._stamp += 1
        self._residents.resize(budget, self._stamp)
        self._snapshots.resize(budget)

    def clear(self) -> None:
        """Forget everything in memory and let go of the files, which stay: another model answers
        now, with a cache of its own."""
        self._root = Node(b"")
        self._residents.clear()
        self._snapshots.clear()
        self._tier = None

    # the disk

    def idle(self, now: float) -> bool:
        """Write one span to disk, if nobody used the cache for a while and the tier allows it; True
        if there may be more to write at once. `now` in seconds, from any fixed moment."""
        if self._used:
            self._used, self._quiet_since = False, now
        if self._tier is None or now - self._quiet_since < self._quiet:
            return False
        if self._tier.refresh():
            return True
        return not self._all_written and self._tier.allowed and self._write_next()

    def flush(self, deadline: Callable[[], bool]) -> int:
        """Write what is not on disk, the last used first, until `deadline` says that it is over;
        return how many spans were written."""
        if self._tier is None:
            return 0
        written = 0
        while not deadline() and self._write_next():
            written += 1
        while not deadline() and self._tier.refresh():
            pass
        return written

    def _write_next(self) -> bool:
        """Write the most valuable span that is not on disk; each comes after its parent."""
        node = next((node for node in self._residents if node.stored is None), None)
        if node is None or not self._write(node):
            self._all_written = True
            return False
        return True

    def _write(self, node: Node) -> bool:
        above = node.parent
        assert self._tier
        assert above
        assert node.layers
        end = above.offset + above.length
        stored = self._tier.write(above.stored, end, node.span, node.layers, node.stamp)
        if stored is None:
            return False
        node.stored, node.offset = stored, 0
        stored.nodes.append(node)
        return True

    def _hang(self, stored: Stored) -> None:
        """Put the node of a file that was found into the trie, cold."""
        above = self._root
        if stored.parent is not None:
            if not stored.parent.nodes:
                return  # forgotten, and this with it
            above = _ending(stored.parent, stored.at)
        if stored.tokens[:TOKEN_BYTES] in above.children:
            assert self._tier is not None
            self._tier.drop(stored, "another file has its tokens")
            return
        node = Node(stored.tokens, stamp=stored.stamp, stored=stored)
        stored.nodes.append(node)
        above.add(node)
        self._stamp = max(self._stamp, stored.stamp)

    def _forget(self, stored: Stored) -> None:
        """A file is gone: its nodes live on in memory or not at all."""
        for node in stored.nodes:
            node.stored, node.offset = None, 0
            if node.layers is None and node.parent is not None:
                node.unlink()
        stored.nodes.clear()
        self._all_written = False

    def _warm(self, node: Node, path: Sequence[Node]) -> bool:
        """Read a node's file, and give all nodes along `path` that are in it their parts."""
        stored = node.stored
        assert self._tier
        assert stored
        if not self._has_room(stored.size * node.length * TOKEN_BYTES // len(stored.tokens)):
            return False
        layers = self._tier.read(stored)
        if layers is None:
            return False
        if self._layout not in (None, layout := layout_of(layers)):
            self._tier.drop(stored, _OTHER_LAYOUT)
            return False
        self._layout = layout
        parts = [other for other in path if other.stored is stored and other.layers is None]
        return all(self._keep(other, layers) for other in parts)

    def _keep(self, node: Node, layers: list[LayerKV]) -> bool:
        """Keep a node's part of its file's `layers`."""
        if node.length < length_of(layers):
            layers = copies(part(layers, node.offset, node.offset + node.length))
            mx.eval(layers)
        if not self._has_room(size := size_of(layers)):
            return False
        self._residents.hold(node, layers, size)
        return True

    # the trie

    def _start(self, tokens: Sequence[int]) -> bytes:
        """Begin one use of the cache: what it touches is safe until the next one begins."""
        self._stamp += 1
        self._used = True
        return encode(tokens)

    def _use(self, path: Sequence[Node]) -> None:
        self._residents.use(path, self._stamp)
        for node in path:
            if node.stored is not None:
                node.stored.stamp, node.stored.used = self._stamp, True

    def _has_room(self, size: int) -> bool:
        return self._residents.room(size, self._stamp) >= size

    def _check_layout(self, read: Read) -> None:
        """What the model computes counts: a model never changes shapes, but files that were found
        may have others."""
        if self._layout_checked:
            return
        layout, self._layout_checked = layout_of(read(0, 1)), True
        if self._layout in (None, layout):
            self._layout = layout
            return
        for node in list(self._root.children.values()):
            if self._tier is not None and node.stored is not None:
                self._tier.drop(node.stored, _OTHER_LAYOUT)
        self._layout = layout
        self._residents.clear()
        self._root = Node(b"")

    def _opened(self, path: list[Node], at: int, end: int, *, exactly: bool) -> list[Node]:
        """Return the nodes that hold the first `at` tokens, and to which the tokens up to `end` can
        be added: a node that goes on differently, or whose rest cannot be read, is split (one that
        just goes on too, for `exactly`), a short one that nothing depends on yet is given up, to be
        copied again with what follows."""
        surplus = sum(node.length for node in path) - at
        if surplus and (at < end or exactly or path[-1].layers is None):
            return [*path[:-1], self._split(path[-1], path[-1].length - surplus)]
        if surplus or at == end or not path:
            return path
        last = path[-1]
        if last.children or last.stored is not None or last.length == MAX_SPAN or last.pinned:
            return path
        self._residents.release(last)
        return path[:-1]

    def _split(self, node: Node, tokens: int) -> Node:
        layers = node.layers
        head = node.split(tokens)
        if layers is not None:
            first = copies(part(layers, 0, tokens))
            node.layers = copies(part(layers, tokens, tokens + node.length))
            mx.eval(first, node.layers)
            self._residents.share(node, head, first, size_of(first))
        return head

    def _add(self, key: bytes, path: list[Node], read: Read, fresh: list[Node]) -> None:
        """Fill the cold nodes along `path`, then extend it to the end of `key`, as far as there is
        room; what is new in memory goes to `fresh`, not evaluated."""
        at, end = 0, len(key) // TOKEN_BYTES
        for node in path:
            start, at = at, at + node.length
            if node.layers is not None:
                continue
            if self._affordable(layers := read(start, at)) < node.length:
                return
            self._hold(node, layers, fresh)
        while at < end:
            layers = read(at, min(at + MAX_SPAN, end))
            if not (length := self._affordable(layers)):
                return
            node = Node(key[at * TOKEN_BYTES : (at + length) * TOKEN_BYTES], stamp=self._stamp)
            self._hold(node, part(layers, 0, length), fresh)
            (path[-1] if path else self._root).add(node)
            path.append(node)
            at += length

    def _affordable(self, layers: list[LayerKV]) -> int:
        """Return how many tokens of `layers` there is room for, once it is made."""
        length, size = length_of(layers), size_of(layers)
        return min(length, self._residents.room(size, self._stamp) * length // size)

    def _hold(self, node: Node, layers: list[LayerKV], fresh: list[Node]) -> None:
        layers = copies(layers)
        self._residents.hold(node, layers, size_of(layers))
        fresh.append(node)


def _ending(stored: Stored, at: int) -> Node:
    """Return the node whose end is `at` tokens into the file."""
    node = next(node for node in stored.nodes if node.offset < at <= node.offset + node.length)
    return node if at == node.offset + node.length else node.split(at - node.offset)
