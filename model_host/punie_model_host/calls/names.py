"""Names that a model writes a little differently than the tool's schema does."""

import re
from collections.abc import Collection
from typing import Final

_NAMESPACE: Final = re.compile(r"^(?:(?:functions?|tools?|default_api|api)\s*[.:/]+\s*)+", re.I)
_CALL_NUMBER: Final = re.compile(r"(?::\d+|\(\s*\))+$")
_LONGEST: Final = 256
"""Characters of a name that is looked at."""
_NO_WORD: Final = re.compile(r"[\W_]+")


def known(name: str, names: Collection[str]) -> str:
    """Return the one of `names` that `name` means: itself, else the only one that is the same
    but for case, dashes, underscores, dots, a namespace before it (``functions.``) or a number of
    the call behind it (``:0``); `name` when there is none or more than one. Never a similar name.
    """
    if name in names or len(name) > _LONGEST:
        return name
    key = _key(name)
    found = [other for other in names if _key(other) == key] if key else []
    return found[0] if len(found) == 1 else name


def _key(name: str) -> str:
    bare = _CALL_NUMBER.sub("", _NAMESPACE.sub("", name.strip()))
    return _NO_WORD.sub("", bare).casefold()
