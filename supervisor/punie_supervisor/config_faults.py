"""What is wrong with a config file, in words: the key, what was wanted, what there is. Pure."""

import difflib
import re
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import inspect

_AT: Final = re.compile(r" - at `\$\.?(.*)`$")
_TABLE: Final = re.compile(r"^(permissions|limits|sandbox|engine)\.")
_STEP: Final = re.compile(r"\w+|\[\d+\]")
_UNKNOWN: Final = re.compile(r"^Object contains unknown field `(.*)`$")
_MISSING: Final = re.compile(r"^Object missing required field `(.*)`$")
_ENUM: Final = re.compile(r"^Invalid enum value (.*)$")
_EXPECTED: Final = re.compile(r"^Expected (.*?)(?:, got (.*))?$")
_NAMES: Final = {
    "`str`": "a text in quotes",
    "`int`": "a whole number",
    "`float`": "a number",
    "`bool`": "true or false",
    "`array`": "a list",
    "`object`": "a table",
}


def explain(text: str, kind: type[msgspec.Struct]) -> tuple[str, str]:
    """Return what msgspec's `text` about a file of `kind` means, and what to do about it."""
    at = _AT.search(text)
    path, said = (at[1], text[: at.start()]) if at else ("", text)
    node, where = _node(kind, path), in_words(path)
    if unknown := _UNKNOWN.match(said):
        return _prefixed(where, f"there is no key '{unknown[1]}'"), _keys(node, unknown[1])
    if missing := _MISSING.match(said):
        return _prefixed(where, f"the key '{missing[1]}' is missing"), ""
    if isinstance(node, inspect.EnumType):
        return _prefixed(where, _choice(said, node)), ""
    if expected := _EXPECTED.match(said):
        got = f", this is {_named(expected[2])}" if expected[2] else ""
        return _prefixed(where, f"it must be {_named(expected[1])}{got}"), ""
    return _prefixed(where, said), ""


def in_words(path: str) -> str:
    """Return a key's path as it stands in the file: the table in brackets."""
    return _TABLE.sub(r"[\1] ", path)


def _prefixed(where: str, text: str) -> str:
    return f"{where}: {text}" if where else text


def _node(kind: type[msgspec.Struct], path: str) -> inspect.Type | None:
    """Return the type of what stands at `path`, ``None`` when there is no such place."""
    node: inspect.Type | None = inspect.type_info(kind)
    for step in _STEP.findall(path):
        match node:
            case inspect.StructType(fields=fields):
                node = next((one.type for one in fields if one.encode_name == step), None)
            case inspect.ListType(item_type=item):
                node = item
            case _:
                return None
    return node


def _keys(node: inspect.Type | None, wrong: str) -> str:
    if not isinstance(node, inspect.StructType):
        return ""
    names = [field.encode_name for field in node.fields]
    near = difflib.get_close_matches(wrong, names, n=1)
    return (f"did you mean '{near[0]}'? " if near else "") + f"keys there: {', '.join(names)}"


def _choice(said: str, node: inspect.EnumType) -> str:
    choices: Sequence[str] = [str(member.value) for member in node.cls]
    wrong = _ENUM.match(said)
    value = wrong[1] if wrong else "this"
    return f"{value} is not one of: {', '.join(choices)}"


def _named(text: str) -> str:
    plain = text.replace(" | null`", "`")  # TOML has no null: such a key is left out
    return re.sub(r"`\w+`", lambda found: _NAMES.get(found[0], found[0]), plain)
