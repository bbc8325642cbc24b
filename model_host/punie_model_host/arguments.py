"""Values of a tool call that arrive as text, turned into what the tool's schema says."""

import ast
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

_WORDS: Final[dict[str, bool | None]] = {
    "true": True,
    "false": False,
    "null": None,
    "none": None,
}


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_CHECKS: Final[dict[str, Callable[[Any], bool]]] = {
    "integer": _is_integer,
    "number": lambda value: _is_integer(value) or isinstance(value, float),
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "null": lambda value: value is None,
}


def convert(text: str, schema: Mapping[str, Any]) -> Any:
    """Return `text` as one of the JSON types that `schema` allows.

    A schema that allows a string, or says nothing, keeps the text; so does a text that fits none
    of the types: the tool's own check then tells the model what is wrong.
    """
    allowed = _types(schema)
    if "null" in allowed and text.strip().lower() in ("null", "none"):
        return None
    if not allowed or "string" in allowed:
        return text
    value = _literal(text.strip())
    if "integer" in allowed and isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if any(_CHECKS[kind](value) for kind in allowed if kind in _CHECKS) else text


def _types(schema: Mapping[str, Any]) -> set[str]:
    kinds = schema.get("type")
    allowed = {kinds} if isinstance(kinds, str) else {str(kind) for kind in _list(kinds)}
    for branch in (*_list(schema.get("anyOf")), *_list(schema.get("oneOf"))):
        if isinstance(branch, Mapping):
            allowed |= _types(branch)
    return allowed


def _list(value: Any) -> list[Any]:
    """What a schema says there, nothing if that is no list: clients write schemas as they like."""
    return value if isinstance(value, list) else []


def _literal(text: str) -> Any:
    """JSON, else a Python literal, else the text."""
    word = text.lower()
    if word in _WORDS:
        return _WORDS[word]
    try:
        return json.loads(text, strict=False)
    except ValueError, RecursionError:
        pass
    try:
        return ast.literal_eval(text)
    except ValueError, TypeError, SyntaxError, MemoryError, RecursionError:
        return text
