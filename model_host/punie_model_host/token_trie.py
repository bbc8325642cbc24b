"""A compressed trie over tokens. Pure: no MLX, no files.

A node holds a span of at most `MAX_SPAN` tokens; the way from the root to it spells the beginning
of a sequence. Tokens are held as bytes, four each in the machine's order, so that spans are
compared by memcmp; a node's children are found by the four bytes of their first token.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

type LayerKV = tuple[Any, ...]
"""What one layer keeps of a span: MLX arrays of shape (1, heads, tokens, size)."""

MAX_SPAN: Final = 256
TOKEN_BYTES: Final = array("I").itemsize


@dataclass(slots=True, eq=False)
class Stored:
    """A file of keys and values for `tokens`, which continue the first `at` tokens of `parent`'s
    (the beginning of a sequence, without one). `size` in bytes; `mtime` in seconds since 1970;
    `stamp`: the greater, the later it was used; `used`: since `mtime` was last looked at.
    `children` counts the files that continue it."""

    id: str
    parent: Stored | None
    at: int
    tokens: bytes
    size: int
    mtime: float
    stamp: int = 0
    used: bool = False
    children: int = 0
    nodes: list[Node] = field(default_factory=list)
    """Those whose tokens are in it: one, or several after splits, in no order."""


@dataclass(slots=True, eq=False)
class Node:
    """A span of tokens. `layers` are its keys and values in memory, of `nbytes` bytes; `stored` is
    the file that has them, `offset` tokens after its beginning. One of the two there always is."""

    span: bytes
    parent: Node | None = None
    children: dict[bytes, Node] = field(default_factory=dict)
    layers: list[LayerKV] | None = None
    nbytes: int = 0
    stamp: int = 0
    pinned: bool = False
    stored: Stored | None = None
    offset: int = 0

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.span) // TOKEN_BYTES

    def add(self, child: Node) -> None:
        """Hang `child` below this node; no child may begin with the same token."""
        first = child.span[:TOKEN_BYTES]
        assert first not in self.children
        self.children[first] = child
        child.parent = self

    def unlink(self) -> None:
        """Take this node, and all below it, out of the trie."""
        assert self.parent is not None
        del self.parent.children[self.span[:TOKEN_BYTES]]
        self.parent = None

    def split(self, tokens: int) -> Node:
        """Put a new node for the first `tokens` tokens above this one, which keeps the rest and
        its children, and return the new one. Keys and values are the caller's to share out."""
        assert self.parent is not None
        assert 0 < tokens < self.length
        above, cut = self.parent, tokens * TOKEN_BYTES
        head = Node(
            self.span[:cut],
            stamp=self.stamp,
            pinned=self.pinned,
            stored=self.stored,
            offset=self.offset,
        )
        self.unlink()
        above.add(head)
        self.span = self.span[cut:]
        self.offset += tokens
        head.add(self)
        if head.stored is not None:
            head.stored.nodes.append(head)
        return head

    def below(self) -> Iterator[Node]:
        """Yield all nodes below this one, each before its children."""
        waiting = list(self.children.values())
        while waiting:
            node = waiting.pop()
            waiting.extend(node.children.values())
            yield node


def encode(tokens: Sequence[int]) -> bytes:
    """Return tokens as the trie compares them. Raises `OverflowError`, `TypeError` for no token."""
    return array("I", tokens).tobytes()


def walk(root: Node, key: bytes) -> tuple[list[Node], int]:
    """Return the nodes below `root` that spell the beginning of `key`, and how many tokens of it:
    the last node may go on differently. In time linear in `key`, by memcmp."""
    path: list[Node] = []
    node, at = root, 0
    while (child := node.children.get(key[at : at + TOKEN_BYTES])) is not None:
        path.append(child)
        if not key.startswith(child.span, at):
            common = common_prefix(child.span, key[at : at + len(child.span)])
            return path, at // TOKEN_BYTES + common // TOKEN_BYTES
        node, at = child, at + len(child.span)
    return path, at // TOKEN_BYTES


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
