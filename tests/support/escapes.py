"""The corpus of escape attempts in `tests/data/escapes`; its README says what the fields mean."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

FOLDER: Final = Path(__file__).parent.parent / "data" / "escapes"
ESCAPED: Final = "ESCAPED"
"""What a program prints that got through."""

_REPEAT: Final = re.compile(r"@REPEAT\[(.*?)\]\*(\d+)@", re.DOTALL)


class Attempt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One case. `number` is its class; none of `leaks` may be in what comes of it."""

    id: str
    number: int = msgspec.field(name="class")
    target: str
    program: str
    expect: Literal["refused", "contained"]
    leaks: list[str] = []

    def filled(self, places: Mapping[str, str]) -> str:
        """Return the program with every ``@NAME@`` of `places` and ``@REPEAT[text]*n@``."""
        text = _REPEAT.sub(lambda found: found[1] * int(found[2]), self.program)
        for name, value in places.items():
            text = text.replace(f"@{name}@", value)
        return text


class _File(msgspec.Struct, forbid_unknown_fields=True):
    case: list[Attempt] = []


def attempts(file: str) -> list[Attempt]:
    """Return the cases of one file of the corpus, in order. Raises `msgspec.ValidationError`."""
    return msgspec.convert(tomllib.loads((FOLDER / file).read_text()), _File).case
