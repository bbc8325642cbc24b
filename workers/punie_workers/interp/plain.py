"""Text of others made safe to show and to tell. Pure.

What programs print is their own: it may move a cursor, set a title, hide text, turn its direction
round. Whoever is shown or told it, a person or a model, gets the same plain text.
"""

import re
import unicodedata

_KEPT = "\n\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_MAX_SIGNS = 4096
_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])"
)
"""A control sequence of a terminal (ECMA-48): with parameters, with a text, short."""


def visible(text: str) -> str:
    """Return `text` with each character that shows nothing, or changes how others are shown, as a
    sign of its own: ``␛`` for an escape, ``\\u202e`` for an override. Line ends and tabs stay."""
    return text.translate(_SIGNS)


def plain(text: str) -> str:
    """Return `text` without the control sequences of a terminal, else as `visible` does."""
    return visible(_SEQUENCE.sub("", text).replace("\r\n", "\n").replace("\r", "\n"))


class _Signs(dict[int, str]):
    """From characters to what stands for them; keeps the first that it is asked for."""

    def __missing__(self, code: int) -> str:
        sign = _sign(code)
        if len(self) < _MAX_SIGNS:
            self[code] = sign
        return sign


def _sign(code: int) -> str:
    character = chr(code)
    if character in _KEPT or unicodedata.category(character) not in _INVISIBLE:
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else f"\\u{code:04x}"


_SIGNS = _Signs()
