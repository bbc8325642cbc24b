"""Commands and what programs print, in updates and questions: shown as they are.

Clients render texts as Markdown, in which part of a command could hide or look like another one.
So such a text stands in a fence that nothing in it closes.
"""

import re
from typing import Final

_BACKTICKS: Final = re.compile(r"`{3,}")
_FENCED: Final = re.compile(r"(`{3,})\n(.*)\n\1", re.DOTALL)


def fenced(text: str) -> str:
    """Return `text` as a block of Markdown that shows it as it is."""
    longest = max(map(len, _BACKTICKS.findall(text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}\n{text}\n{fence}"


def unfenced(text: str) -> str:
    """Return what `fenced` was given; any other text as it is."""
    found = _FENCED.fullmatch(text)
    return found.group(2) if found else text
