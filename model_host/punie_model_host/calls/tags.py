"""The tags of the formats that write a call as elements with verbatim values between them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Final

LONGEST_TAG: Final = 300
"""Characters of a tag that are waited for; what is longer is text."""

_ATTRIBUTE: Final = re.compile(
    r"""\b(?:name|tool|key)\s*=\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>[^\s"'>]+))""",
    re.I,
)
_ASSIGNED: Final = re.compile(r"""\s*=\s*["']?(?P<name>[^"'>]*?)["']?\s*""")
_TYPE: Final = re.compile(r"""\btype\s*=\s*["']?(?P<type>\w+)""", re.I)
_NAME: Final = re.compile(r"[\w$][\w$.\-:/]{0,127}(?:\(\s*\))?")


class Role(Enum):
    """What an element is: a block of calls, a call, the name of a parameter where that is an
    element of its own, its value, or all arguments as JSON."""

    BLOCK = "block"
    FUNCTION = "function"
    KEY = "key"
    PARAMETER = "parameter"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag as it was written. `name` is the one that it gives to a call or parameter, empty if
    none that can be used; `type` what it says of a value's type."""

    role: Role
    is_closing: bool
    name: str
    type: str
    text: str


@dataclass(frozen=True)
class Dialect:
    """Names of elements, in lower case. `marked` tags are ``<|open|>x<|sep|>``, others ``<x>``.
    With `plain_names` a call begins with its name as text; with `own_lines` the line feeds round a
    value are not the value's; `cdata` sections are taken as they are."""

    roles: Mapping[str, Role]
    marked: bool = False
    plain_names: bool = False
    own_lines: bool = False
    cdata: bool = False

    @cached_property
    def hit(self) -> re.Pattern[str]:
        """Finds where a tag, or a CDATA section, may begin."""
        section = r"|<!\[CDATA\[" if self.cdata else ""
        opening = r"<\|(?:open|close)\|>" if self.marked else "</?"
        return re.compile(rf"{opening}{self._names}\b{section}", re.I)

    @cached_property
    def starts(self) -> tuple[str, ...]:
        """Every text that `hit` finds."""
        openings = ("<|open|>", "<|close|>") if self.marked else ("<", "</")
        found = [opening + name for opening in openings for name in self.roles]
        return (*found, "<![cdata[") if self.cdata else tuple(found)

    @cached_property
    def longest(self) -> int:
        """Characters of the longest of `starts`."""
        return max(map(len, self.starts))

    @property
    def outermost(self) -> Role:
        """What ends a call in the end."""
        return Role.BLOCK if Role.BLOCK in self.roles.values() else Role.FUNCTION

    def may_begin(self, text: str) -> bool:
        """Whether `text` is the beginning of a tag that is not complete yet."""
        if not text.startswith("<") or len(text) > LONGEST_TAG:
            return False
        if len(text) <= self.longest and any(s.startswith(text.lower()) for s in self.starts):
            return True
        return self.hit.match(text) is not None and self._tag.match(text) is None

    def tag(self, text: str, *, final: bool = False) -> Tag | None:
        """Return the tag that `text` begins with. With `final`, its last character may lack."""
        found = self._tag.match(text[:LONGEST_TAG])
        if found is None and final:
            found = self._tag.match(text[:LONGEST_TAG] + self._end)
        if found is None:
            return None
        head = found["head"]
        kind = _TYPE.search(head)
        return Tag(
            role=self.roles[found["tag"].lower()],
            is_closing="/" in found["opening"] or "close" in found["opening"].lower(),
            name=_name(head),
            type=kind["type"].lower() if kind else "",
            text=text[: found.end()],
        )

    @property
    def _end(self) -> str:
        return "<|sep|>" if self.marked else ">"

    @property
    def _names(self) -> str:
        """A pattern for the elements: no letter but ASCII's is another case of one of theirs."""
        names = "|".join(map(re.escape, sorted(self.roles, key=len, reverse=True)))
        return f"(?a:{names})"

    @cached_property
    def _tag(self) -> re.Pattern[str]:
        if self.marked:
            opening, behind = r"<\|(?:open|close)\|>", r"(?P<head>[^<]*)<\|sep\|>"
        else:
            opening, behind = "</?", r"(?P<head>[^<>\n]*)(?:>|(?=[<\n]))"
        return re.compile(rf"(?P<opening>{opening})(?P<tag>{self._names})\b{behind}", re.I)


def _name(head: str) -> str:
    found = _ATTRIBUTE.search(head)
    if found:
        name = found["double"] or found["single"] or found["bare"] or ""
        name = name.replace("&quot;", '"').replace("&amp;", "&")
    else:
        assigned = _ASSIGNED.fullmatch(head)
        name = assigned["name"] if assigned else ""
    name = name.strip()
    return name if _NAME.fullmatch(name) else ""


def plain_name(text: str) -> str:
    """Return the name that `text` begins with, empty if with none."""
    found = _NAME.match(text)
    return found[0] if found else ""


_FUNCTIONS: Final = {"function": Role.FUNCTION, "invoke": Role.FUNCTION}
_PARAMETERS: Final = {"parameter": Role.PARAMETER, "param": Role.PARAMETER}

QWEN: Final = Dialect(
    {"tool_call": Role.BLOCK, "tool_calls": Role.BLOCK, **_FUNCTIONS, **_PARAMETERS},
    own_lines=True,
)
GLM: Final = Dialect(
    {
        "tool_call": Role.BLOCK,
        "tool_calls": Role.BLOCK,
        "arg_key": Role.KEY,
        "arg_value": Role.PARAMETER,
    },
    plain_names=True,
)
LONGCAT: Final = Dialect(
    {
        "longcat_tool_call": Role.BLOCK,
        "longcat_arg_key": Role.KEY,
        "longcat_arg_value": Role.PARAMETER,
    },
    plain_names=True,
)
MINIMAX: Final = Dialect(
    {"minimax:tool_call": Role.BLOCK, **_FUNCTIONS, **_PARAMETERS},
)
MUSE: Final = Dialect(
    {
        "atem:function_calls": Role.BLOCK,
        "atem:invoke": Role.FUNCTION,
        "atem:parameter": Role.PARAMETER,
    }
)
MINICPM: Final = Dialect({**_FUNCTIONS, **_PARAMETERS}, cdata=True)
KIMI_K3: Final = Dialect(
    {
        "tools": Role.BLOCK,
        "call": Role.FUNCTION,
        "argument": Role.PARAMETER,
        "json": Role.JSON,
    },
    marked=True,
)
