"""The formats whose calls are bodies: JSON, and what Kimi K2, Mistral, Gemma and the models with
Python's notation make of it."""

import re
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Final

from punie_model_host.calls.bodies import Notation
from punie_model_host.calls.json_calls import Parsed, parse_arguments, parse_json
from punie_model_host.calls.loose_json import LooseReader, NotJsonError, strict, unfenced
from punie_model_host.calls.reading import CUT, NamedCall

_KIMI_CALL: Final = re.compile(
    r"\s*+(?:<\|tool_call_begin\|>\s*+)?(?P<name>[^<>\s{]{1,200})\s*+"
    r"(?:<\|tool_call_argument_begin\|>\s*+|(?=\{))"
)
_KIMI_END: Final = "<|tool_call_end|>"
_MISTRAL_CALL: Final = re.compile(
    r"[\s,;]*+(?P<name>[\w.\-]{1,200})\s*+"
    r"(?:\[CALL_ID\]\s*+\w*+\s*+)?(?:\[ARGS\]\s*+)?(?=\{)"
)
_GEMMA_CALL: Final = re.compile(r"[\s,;]*(?:call\s*:\s*)?(?P<name>[\w.\-:]{1,200})\s*(?=\{)")
_PYTHON_CALL: Final = re.compile(r"[\s,;\[]*(?P<name>[A-Za-z_][\w.\-]{0,199})\s*\(")
_PYTHON_KEYWORD: Final = re.compile(r"\s*(?P<name>[A-Za-z_]\w{0,199})\s*[=:]\s*")
_END: Final = re.compile(r"[\s\]},;)]*")
_NO_CALL: Final = "no call in the tool call"


def parse_kimi(body: str, names: Collection[str], *, closed: bool, cut: bool) -> Parsed:
    """``functions.NAME:0<|tool_call_argument_begin|>{...}<|tool_call_end|>``, several times."""
    calls: list[NamedCall] = []
    at = 0
    while (found := _KIMI_CALL.match(body, at)) is not None:
        end, behind = _kimi_end(body, found.end())
        if behind == len(body) and cut and end == behind:
            return Parsed(tuple(calls), "", CUT)
        ended = closed or behind > end
        arguments = parse_arguments(body[found.end() : end], closed=ended)
        if arguments is None:
            return Parsed(tuple(calls), "", f"arguments of {found['name']}: not a JSON object")
        calls.append((found["name"], arguments))
        at = behind
    return _ended(calls, body[at:], cut=cut)


def _kimi_end(body: str, at: int) -> tuple[int, int]:
    """Return where the arguments at `at` end, and where what is behind their end begins."""
    with suppress(NotJsonError):  # then a mark inside a string is not looked past
        _, at = strict(body, at)
    end = body.find(_KIMI_END, at)
    return (len(body), len(body)) if end < 0 else (end, end + len(_KIMI_END))


def parse_mistral(body: str, names: Collection[str], *, closed: bool, cut: bool) -> Parsed:
    """``NAME[ARGS]{...}``, several times, or a JSON list of calls."""
    if body.lstrip().startswith(("[", "{")):
        return parse_json(body, names, closed=closed, cut=cut)
    return _each(body, _MISTRAL_CALL, _object, closed=closed, cut=cut)


def parse_gemma(body: str, names: Collection[str], *, closed: bool, cut: bool) -> Parsed:
    """``call:NAME{key:value}``, several times; strings are between the model's own quotes."""
    return _each(body, _GEMMA_CALL, _object, closed=closed, cut=cut)


def parse_python(body: str, names: Collection[str], *, closed: bool, cut: bool) -> Parsed:
    """``[name(key="value"), ...]``, or a JSON list of calls."""
    text = unfenced(body).strip()
    if text.startswith("{") or re.match(r"\[\s*\{", text):
        return parse_json(text, names, closed=closed, cut=cut)
    return _each(text, _PYTHON_CALL, _keywords, closed=closed, cut=cut)


def _each(
    body: str,
    head: re.Pattern[str],
    arguments: Callable[[LooseReader], dict[str, Any]],
    *,
    closed: bool,
    cut: bool,
) -> Parsed:
    """Read calls one after the other: what `head` finds, then its `arguments`. Quotes in strings
    that were not escaped are looked for only if they have to be."""
    parsed = _each_once(body, head, arguments, closed=closed, cut=cut, trusts=True)
    if not parsed.fault or cut:
        return parsed
    return _each_once(body, head, arguments, closed=closed, cut=cut, trusts=False)


def _each_once(
    body: str,
    head: re.Pattern[str],
    arguments: Callable[[LooseReader], dict[str, Any]],
    *,
    closed: bool,
    cut: bool,
    trusts: bool,
) -> Parsed:
    calls: list[NamedCall] = []
    at = 0
    while (found := head.match(body, at)) is not None:
        reader = LooseReader(body, found.end(), closed=closed, trusts=trusts)
        try:
            values = arguments(reader)
        except (NotJsonError, RecursionError) as error:
            return Parsed(
                tuple(calls), "", CUT if cut else f"arguments of {found['name']}: {error}"
            )
        if cut and not reader.complete:
            return Parsed(tuple(calls), "", CUT)
        calls.append((found["name"], values))
        at = reader.at
    return _ended(calls, body[at:], cut=cut)


def _ended(calls: list[NamedCall], behind: str, *, cut: bool) -> Parsed:
    found = _END.match(behind)
    rest = behind[found.end() if found else 0 :]
    if not calls or (cut and rest):
        return Parsed(tuple(calls), "", CUT if cut else _NO_CALL)
    return Parsed(tuple(calls), rest)


def _object(reader: LooseReader) -> dict[str, Any]:
    value = reader.value("")
    if not isinstance(value, dict):
        raise NotJsonError("not an object")
    return value


def _keywords(reader: LooseReader) -> dict[str, Any]:
    """Read ``key=value, ...)``."""
    return reader.keywords(_PYTHON_KEYWORD)


JSON: Final = Notation(
    parse_json,
    closers=("</tool_call>", "</tool_calls>"),
    openers=("<tool_call>", "<tool_calls>"),
    ends_itself=True,
)
KIMI_K2: Final = Notation(
    parse_kimi,
    closers=("<|tool_calls_section_end|>",),
    openers=("<|tool_calls_section_begin|>",),
)
MISTRAL: Final = Notation(parse_mistral, closers=(), openers=("[TOOL_CALLS]",))
GEMMA4: Final = Notation(
    parse_gemma,
    closers=("<tool_call|>",),
    openers=("<|tool_call>",),
    quotes=('<|"|>', '"'),
)
FUNCTION_GEMMA: Final = Notation(
    parse_gemma,
    closers=("<end_function_call>",),
    openers=("<start_function_call>",),
    quotes=("<escape>", '"'),
)
PYTHONIC: Final = Notation(
    parse_python,
    closers=("<|tool_call_end|>",),
    openers=("<|tool_call_start|>",),
    quotes=('"""', "'''", '"', "'"),
)
