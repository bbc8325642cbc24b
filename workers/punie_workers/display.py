"""Arguments and results as clients are shown them: whole when they are small, else shortened.

Shortened ones keep their members and types; ``_cut`` says how many bytes of JSON are missing.
"""

from typing import Any, Final

import msgspec

from punie_protocol.tool_types import Arguments, Result

LIMIT: Final = 16 * 1024
"""Bytes of JSON of one value."""

_CUT: Final = "_cut"
_ROOM: Final = 64
"""Bytes for the note."""
_MAX_DEPTH: Final = 6
_STEPS: Final = ((4096, 200), (1024, 200), (256, 100), (128, 50), (64, 20), (16, 5))
"""Characters of a string and entries of a list that are kept, tried in order."""


def shown(value: Arguments | Result | dict[str, Any]) -> dict[str, Any]:
    """Return `value` as builtins whose JSON has at most `LIMIT` bytes."""
    whole = _members(value)
    size = _size(whole)
    if size is not None and size <= LIMIT:
        return whole
    for characters, entries in _STEPS:
        short = _shortened(whole, characters, entries, _MAX_DEPTH)
        left = _size(short) or 0
        if left <= LIMIT - _ROOM:
            return short if size is None else short | {_CUT: size - left}
    return {_CUT: size}


def _members(value: Arguments | Result | dict[str, Any]) -> dict[str, Any]:
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)  # without the tag
    return msgspec.to_builtins(value)


def _size(value: Any) -> int | None:
    """Return bytes of JSON, ``None`` when it has none: half a surrogate pair is no text."""
    try:
        return len(msgspec.json.encode(value))
    except UnicodeEncodeError:
        return None


def _shortened(value: Any, characters: int, entries: int, depth: int) -> Any:
    match value:
        case str():
            text = value[:characters].encode("utf-8", "replace").decode()
            return text + "…" if len(value) > characters else text
        case dict() | list() if not depth:
            return type(value)()
        case list():
            return [_shortened(one, characters, entries, depth - 1) for one in value[:entries]]
        case dict():
            return {
                _shortened(name, characters, entries, depth): _shortened(
                    value[name], characters, entries, depth - 1
                )
                for name in list(value)[:entries]
            }
        case _:
            return value
