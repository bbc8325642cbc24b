"""Values of a tool call, turned into what the tool's schema says where that loses nothing.

A value that fits its schema is never changed. One that does not fit, and cannot be made to, stays
as it is: the tool's own check then tells the model what is wrong.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from punie_model_host.calls.loose_json import NotJsonError, loose, strict
from punie_model_host.calls.names import known

type Schemas = Mapping[str, Mapping[str, Any]]
"""Properties of the parameters of each tool, by tool name."""

_NULLS: Final = ("null", "none")
_BOOLEANS: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
_ALIASES: Final = {
    "int": "integer",
    "float": "number",
    "double": "number",
    "bool": "boolean",
    "str": "string",
    "dict": "object",
    "list": "array",
}
_INTEGER: Final = re.compile(r"[+-]?\d{1,300}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_CHECKS: Final[dict[str, Callable[[Any], bool]]] = {
    "string": lambda value: isinstance(value, str),
    "integer": _is_integer,
    "number": lambda value: _is_integer(value) or isinstance(value, float),
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "null": lambda value: value is None,
}


def fitted(name: str, arguments: Mapping[str, Any], schemas: Schemas) -> dict[str, Any]:
    """Return the arguments of a call as the schema of the tool `name` has them: names of
    parameters by `known`, values by `fit`."""
    properties = schemas.get(name, {})
    found: dict[str, Any] = {}
    for key, value in arguments.items():
        known_as = known(key, properties)
        known_as = key if known_as in arguments else known_as
        found[known_as] = fit(value, properties.get(known_as, {}))
    return found


def convert(text: str, schema: Mapping[str, Any]) -> Any:
    """Return `text`, as a value is written between tags, as one of the JSON types that `schema`
    allows. A schema that allows a string, or says nothing, keeps the text; one that names no type
    but is there keeps it unless it is a JSON object or array."""
    allowed = _types(schema)
    if "null" in allowed and text.strip().lower() in _NULLS:
        return None
    if "string" in allowed:
        return _choice(text, schema)
    if not allowed:
        value = _container(text) if schema.keys() & {"$ref", "properties", "items"} else None
        return text if value is None else value
    return _choice(_converted(text, allowed, schema), schema)


def fit(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return `value`, as JSON has it, as one of the types that `schema` allows, and all that is
    inside it too."""
    allowed = _types(schema)
    if not allowed or _is_one(value, allowed):
        return _choice(_inside(value, schema), schema)
    match value:
        case str():
            return convert(value, schema)
        case float() if "integer" in allowed and value.is_integer():
            return int(value)
        case 0 | 1 if "boolean" in allowed:
            return bool(value)
        case None:
            return None
        case _ if "string" in allowed:
            return json.dumps(value, ensure_ascii=False)
        case _ if "array" in allowed:
            return _wrapped(value, schema)
        case _:
            return value


def _converted(text: str, allowed: set[str], schema: Mapping[str, Any]) -> Any:
    bare = text.strip()
    value = _literal(bare)
    if "integer" in allowed and isinstance(value, float) and value.is_integer():
        value = int(value)
    if _is_one(value, allowed):
        return _inside(value, schema)
    if "boolean" in allowed and bare.lower() in _BOOLEANS:
        return _BOOLEANS[bare.lower()]
    if "array" in allowed and bare:
        return _wrapped(text if isinstance(value, dict | list) else value, schema, text)
    return text


def _wrapped(value: Any, schema: Mapping[str, Any], text: str | None = None) -> Any:
    """A value alone where an array of such values is expected becomes an array of one."""
    items = schema.get("items")
    kinds = _types(items) if isinstance(items, Mapping) else set()
    if text is not None and "string" in kinds:
        return [text]
    if kinds and not isinstance(value, list) and _is_one(value, kinds):
        return [value]
    return value if text is None else text


def _inside(value: Any, schema: Mapping[str, Any]) -> Any:
    properties, items = schema.get("properties"), schema.get("items")
    if isinstance(value, dict) and isinstance(properties, Mapping):
        schemas = {k: s for k, s in properties.items() if isinstance(s, Mapping)}
        return {k: fit(v, schemas.get(k, {})) for k, v in value.items()}
    if isinstance(value, list) and isinstance(items, Mapping):
        return [fit(v, items) for v in value]
    return value


def _choice(value: Any, schema: Mapping[str, Any]) -> Any:
    """One of the values of an enumeration, whatever its case or the space around it."""
    choices = _list(schema.get("enum"))
    if not isinstance(value, str) or value in choices:
        return value
    key = value.strip().casefold()
    found = [c for c in choices if isinstance(c, str) and c.casefold() == key]
    return found[0] if len(found) == 1 else value


def _is_one(value: Any, kinds: set[str]) -> bool:
    return any(_CHECKS[kind](value) for kind in kinds if kind in _CHECKS)


def _types(schema: Mapping[str, Any]) -> set[str]:
    kinds = schema.get("type")
    names = [kinds] if isinstance(kinds, str) else [str(kind) for kind in _list(kinds)]
    allowed = {_ALIASES.get(name.lower(), name.lower()) for name in names}
    for key in ("anyOf", "oneOf", "allOf"):
        for branch in _list(schema.get(key)):
            allowed |= _types(branch) if isinstance(branch, Mapping) else set()
    if not allowed:
        values = _list(schema.get("enum"))
        allowed = {kind for v in values for kind, check in _CHECKS.items() if check(v)}
    return allowed


def _list(value: Any) -> list[Any]:
    """What a schema says there, nothing if that is no list: clients write schemas as they like."""
    return value if isinstance(value, list) else []


def _literal(text: str) -> Any:
    """A number, a word of JSON or Python, a JSON object or array, else the text."""
    if _INTEGER.fullmatch(text):
        return int(text)
    try:
        value, end = strict(text)
        if end == len(text):
            return value
    except NotJsonError:
        pass
    word = text.lower()
    if word in ("true", "false"):
        return word == "true"
    if word in _NULLS:
        return None
    return text if (value := _container(text)) is None else value


def _container(text: str) -> dict[str, Any] | list[Any] | None:
    """The object or array that `text` is, nearly or quite; None for anything else."""
    if not text.lstrip().startswith(("{", "[", "(", "```")):
        return None
    try:
        value = loose(text.strip())
    except NotJsonError:
        return None
    return value if isinstance(value, dict | list) and _is_finite(value) else None


def _is_finite(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError, RecursionError:
        return False
    return True
