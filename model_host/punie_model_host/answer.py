"""What an answer is made of."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """More of the thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A whole call; `arguments` is a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Malformed:
    """A call that cannot be repaired: why, and how it began. Nothing comes after it. `is_cut` says
    that nothing is wrong with it but that the answer's limit of tokens ended it."""

    reason: str
    start: str
    is_cut: bool = False


type Piece = Text | Thinking | Call | Malformed
