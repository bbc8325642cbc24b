"""What the type checker of Code Mode found: what is certainly wrong, and what may be right.

A program with a certain error is not run at all. The checker also complains of what it cannot
know: that a value may be None, or one of several types, as in a dict of mixed values. Such a
program runs; a tool checks its own arguments anyway.
"""

import re
from typing import Final, NamedTuple

from punie_protocol.errors import ToolFailed
from punie_protocol.tools import TOOLS
from punie_workers.code_advice import advice

_LINE = re.compile(r"^[^:\n]+:(\d+):\d+: (error|warning)\[([\w-]+)\] (.*)$", re.MULTILINE)
_EXPECTED = re.compile(r"Expected `([^`]*)`, found `([^`]*)`")
_UNSURE: Final = re.compile(
    r" in union `|may not be iterable|may be missing|can implicitly return `None`"
    r"|type `None` with no `|`object`|Divergent"
)
_MIXED = re.compile(r"(?:type|types|found|and) `[^`]*(?: \| |Literal\[[^`]*, )[^`]*`")
_MAY_BE_RIGHT: Final = frozenset(
    {
        "unresolved-attribute",
        "unsupported-operator",
        "not-subscriptable",
        "not-iterable",
        "invalid-argument-type",
        "invalid-return-type",
        "invalid-assignment",
        "call-non-callable",
        "index-out-of-bounds",
    }
)
_MAX: Final = 3


class Diagnostic(NamedTuple):
    """One finding; `line` counts from 1."""

    line: int
    severity: str
    code: str
    message: str


def parse(text: str) -> list[Diagnostic]:
    """Return what the checker printed, in its concise format."""
    return [Diagnostic(int(line), *rest) for line, *rest in _LINE.findall(text)]


def is_certain(found: Diagnostic) -> bool:
    """Say whether a program with this finding must not run."""
    if "`__future__`" in found.message or "__future__ imports" in found.message:
        return False
    if found.severity == "warning":
        return False
    if found.code == "no-matching-overload":  # of a built-in function: no tool has overloads
        return False
    if found.code not in _MAY_BE_RIGHT:
        return True
    if types := _EXPECTED.search(found.message):
        return not _may_fit(*types.groups(), message=found.message)
    return not (_UNSURE.search(found.message) or _MIXED.search(found.message))


def rejection(text: str) -> ToolFailed | None:
    """Return why a program is not run, or None when it may be right after all."""
    found = parse(text)
    certain = [one for one in found if is_certain(one)]
    if found and not certain:
        return None
    message = "; ".join(f"{one.message} (line {one.line})" for one in certain[:_MAX])
    if len(certain) > _MAX:
        message += f"; and {len(certain) - _MAX} more"
    hints = dict.fromkeys(filter(None, (advice(one.message) for one in certain[:_MAX])))
    return ToolFailed(kind="type_check", message=message or text, hint="; ".join(hints))


def _may_fit(expected: str, found: str, *, message: str) -> bool:
    """Say whether some value of type `found` is of type `expected`. A tool is to be called with
    what it takes; the parameter of any other function is not known so well."""
    if any(f"function `{name}`" in message for name in TOOLS):
        return expected in found.split(" | ") and found != expected
    return bool(" | " in found or "object" in found.split() or "Divergent" in found)
