"""What an answer's text can be read by, besides the parser of tool calls."""

from collections.abc import Sequence
from typing import Protocol

from punie_model_host.answer import Call, Piece, Text


class Parser(Protocol):
    """Takes the text of one answer as it comes, gives pieces."""

    @property
    def calls(self) -> int:
        """Tool calls so far."""
        ...

    def feed(self, text: str) -> list[Piece]:
        """Take more, return what it completes."""
        ...

    def finish(self, *, cut: bool = False) -> list[Piece]:
        """Return the rest. `cut` says that the answer ended at a limit."""
        ...


class Verbatim:
    """Nothing is looked for: all of the answer is text."""

    calls = 0

    def feed(self, text: str) -> list[Piece]:
        return [Text(text)] if text else []

    def finish(self, *, cut: bool = False) -> list[Piece]:
        del cut  # text may end anywhere
        return []


class OneCall:
    """Another parser's pieces up to the first call; what comes behind that is dropped."""

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self.calls = 0

    def feed(self, text: str) -> list[Piece]:
        return self._first(self._parser.feed(text))

    def finish(self, *, cut: bool = False) -> list[Piece]:
        return self._first(self._parser.finish(cut=cut))

    def _first(self, pieces: Sequence[Piece]) -> list[Piece]:
        taken: list[Piece] = []
        for piece in pieces:
            if self.calls:
                break
            self.calls += isinstance(piece, Call)
            taken.append(piece)
        return taken
