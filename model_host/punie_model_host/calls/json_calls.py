"""Calls as JSON: ``{"name": ..., "arguments": {...}}`` and what models make of it."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

from punie_model_host.calls.loose_json import NotJsonError, loose, strict, unfenced
from punie_model_host.calls.reading import CUT, NamedCall

_BETWEEN: Final = re.compile(r"(?:[\s,;]|</?tool_calls?>)*", re.I)
_BLOCKS: Final = re.compile(
    r"(?:</tool_calls?>\s*)?<tool_calls?>\s*(?=\{\s*[\"'](?:name|function|tool|type)\b)", re.I
)
_CLOSINGS: Final = ("</tool_call>", "</tool_calls>")
_NAMES: Final = ("name", "function", "tool", "tool_name", "function_name")
_ARGUMENTS: Final = ("arguments", "parameters", "args", "input", "kwargs", "arguments_json")
_NO_CALL: Final = "not a JSON object with name and arguments"


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a block holds: calls (name, arguments), text behind them, and why what follows the
    calls is no call; empty when nothing is wrong."""

    calls: tuple[NamedCall, ...] = ()
    rest: str = ""
    fault: str = ""


def parse_json(body: str, names: Collection[str], *, closed: bool, cut: bool) -> Parsed:
    """Return the calls of a block. `closed` says that its end was written, `cut` that the answer
    ended at a limit: then only what is complete counts."""
    calls: list[NamedCall] = []
    text = unfenced(body)
    at = _skip(text, 0)
    while at < len(text):
        try:
            value, at = strict(text, at)
        except NotJsonError:
            return _repaired(calls, text[at:], names, closed=closed, cut=cut)
        found = _calls_of(value, names)
        if found is None:
            return Parsed(tuple(calls), "", _NO_CALL)
        calls += found
        at = _skip(text, at)
    return Parsed(tuple(calls), "", "" if calls else "no call in the tool call")


def parse_arguments(text: str, *, closed: bool) -> dict[str, Any] | None:
    """Return the arguments that `text` is, an object; None for anything else."""
    try:
        value, end = strict(text.strip())
        if end == len(text.strip()):
            return value if isinstance(value, dict) else None
    except NotJsonError:
        pass
    try:
        value = loose(text, closed=closed)
    except NotJsonError:
        return None
    return value if isinstance(value, dict) else None


def parse_object(body: str, names: Collection[str], *, closed: bool, cut: bool) -> Parsed:
    """Return the arguments that a body is, as those of a call without a name."""
    if cut:
        try:
            strict(body.strip())
        except NotJsonError:
            return Parsed(fault=CUT)
    arguments = parse_arguments(body, closed=closed)
    if arguments is None:
        return Parsed(fault="not a JSON object")
    return Parsed((("", arguments),))


def _skip(text: str, at: int) -> int:
    found = _BETWEEN.match(text, at)
    return found.end() if found else at


def _without_closing(text: str) -> str:
    """Return `text` without white space and closing tags at its end."""
    end = len(text)
    while end:
        if text[end - 1].isspace():
            end -= 1
        elif mark := next(
            (m for m in _CLOSINGS if text[max(0, end - len(m)) : end].lower() == m), ""
        ):
            end -= len(mark)
        else:
            break
    return text[:end]


def _repaired(
    calls: list[NamedCall],
    text: str,
    names: Collection[str],
    *,
    closed: bool,
    cut: bool,
) -> Parsed:
    if calls and not text.lstrip("}]) \n").startswith(("{", "[")):
        return Parsed(tuple(calls), text.lstrip("}]) \n"))
    if cut and not closed:
        return Parsed(tuple(calls), "", CUT)
    for part in _BLOCKS.split(text):
        body = _without_closing(part)
        try:
            found = _calls_of(loose(body, closed=closed or body != part), names)
        except NotJsonError as error:
            return Parsed(tuple(calls), "", f"{_NO_CALL}: {error}")
        if found is None:
            return Parsed(tuple(calls), "", _NO_CALL)
        calls += found
    return Parsed(tuple(calls))


def _calls_of(value: Any, names: Collection[str]) -> list[NamedCall] | None:
    """Return the calls that a JSON value stands for; None if it stands for none."""
    if isinstance(value, dict) and isinstance(several := value.get("tool_calls"), list):
        value = several
    try:
        found = [_call_of(one, names) for one in (value if isinstance(value, list) else [value])]
    except RecursionError:
        return None
    calls = [call for call in found if call is not None]
    return calls if calls and len(calls) == len(found) else None


def _call_of(value: Any, names: Collection[str]) -> NamedCall | None:
    if not isinstance(value, dict):
        return None
    for key in _NAMES:
        match value.get(key):
            case str(name) if name:
                return _with_arguments(name, key, value)
            case dict(inner):
                return _call_of({**value, **inner, key: inner.get(key)}, names)
    return next(_by_name(value, names), None)


def _with_arguments(name: str, key: str, value: dict[str, Any]) -> NamedCall | None:
    written = [value[k] for k in _ARGUMENTS if k in value]
    rest = {k: v for k, v in value.items() if k not in (key, "id", "type", "index", "call_id")}
    arguments = written[0] if written else rest
    if isinstance(arguments, str):
        arguments = parse_arguments(arguments, closed=True) if arguments.strip() else {}
    arguments = {} if arguments is None and written and written[0] is None else arguments
    return (name, arguments) if isinstance(arguments, dict) else None


def _by_name(value: dict[str, Any], names: Collection[str]) -> Iterator[NamedCall]:
    """``{"read_file": {"path": ...}}``: the only key is a tool's name."""
    if len(value) == 1:
        ((name, arguments),) = value.items()
        if name in names and isinstance(arguments, dict):
            yield name, arguments
