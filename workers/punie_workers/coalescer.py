"""When streamed text goes out: a pure rule, told the time.

A chunk goes out when its block ends, at 4 KB, or 250 ms after its first character; the first one
of a block after 30 ms, so that a terminal shows life.
"""

from enum import StrEnum
from typing import Final

import msgspec

FIRST_DELAY: Final = 0.030
DELAY: Final = 0.250
SIZE: Final = 4096
"""Characters."""


class BlockKind(StrEnum):
    """What the model says, or what it thinks."""

    MESSAGE = "agent_message_chunk"
    THOUGHT = "agent_thought_chunk"


class Block(msgspec.Struct, frozen=True):
    """A stretch of text that belongs together."""

    kind: BlockKind
    message_id: str


class Chunk(msgspec.Struct, frozen=True):
    """Text of one block, ready to go out."""

    block: Block
    text: str


class Coalescer:
    """Holds the text of one block at most. Times are seconds of any one clock."""

    def __init__(self) -> None:
        self.due: float | None = None
        """When `poll` has something to give, ``None`` while nothing waits."""
        self._block: Block | None = None
        self._text: list[str] = []
        self._size = 0
        self._started = False

    def add(self, block: Block, text: str, now: float) -> list[Chunk]:
        """Take text; return what goes out now."""
        out = self.flush() if block != self._block else []
        if block != self._block:
            self._block, self._started = block, False
        if not text:
            return out
        if not self._text:
            self.due = now + (DELAY if self._started else FIRST_DELAY)
        self._text.append(text)
        self._size += len(text)
        return out + self.flush() if self._size >= SIZE else out

    def poll(self, now: float) -> list[Chunk]:
        """Return what is due."""
        return self.flush() if self.due is not None and now >= self.due else []

    def flush(self) -> list[Chunk]:
        """Return what waits, due or not: the block ends here, or something else goes out."""
        if not self._text or self._block is None:
            return []
        chunk = Chunk(self._block, "".join(self._text))
        self._started = True
        self._clear()
        return [chunk]

    def drop(self) -> None:
        """Forget what waits."""
        self._clear()

    def _clear(self) -> None:
        self._text, self._size, self.due = [], 0, None
