"""What the first characters of something say: a call, none, or too early to tell."""

import re
from collections.abc import Collection
from enum import Enum
from typing import Final

from punie_model_host.calls.names import known
from punie_model_host.calls.tags import GLM, QWEN, Dialect, Role, Tag, plain_name

_LIMIT: Final = 300
"""Characters after which it is no longer too early."""
_KEYS: Final = ("name", "tool", "function")
_OBJECT: Final = re.compile(
    r"""(?:\[\s*)?\{\s*["'](?:name|tool|function)["']\s*:\s*["'](?P<name>[^"'\n]{1,128})["']"""
)
_OBJECT_PART: Final = re.compile(
    r"""(?:\[\s*)?(?:\{\s*(?:["'](?P<key>\w{0,8})(?:["']\s*(?::\s*(?:["'][^"'\n]{0,128})?)?)?)?)?"""
)
_FENCE: Final = re.compile(r"```(?:json|xml|tool_call|tool_code|tool)?[ \t]*\n\s*")
_FENCE_PART: Final = re.compile(r"`{1,3}(?P<language>[a-z_]*)[ \t]*")
_LANGUAGES: Final = ("json", "xml", "tool_call", "tool_code", "tool")
_MARKS: Final = ("<tool_call>", "<function=", "<function ")


class Sniff(Enum):
    """What it is."""

    CALL = "call"
    JSON = "json"
    PLAIN = "plain"
    NOTHING = "nothing"
    UNKNOWN = "unknown"


def after_opener(text: str, names: Collection[str], *, final: bool) -> Sniff:
    """Tell how the call is written that `text` (no white space before it) begins after
    ``<tool_call>``: with tags (CALL), as JSON, or its name first (PLAIN)."""
    if not text:
        return Sniff.NOTHING if final else Sniff.UNKNOWN
    if text[0] in "{[" or text.startswith("```"):
        return Sniff.JSON
    if text in ("`", "``") and not final:
        return Sniff.UNKNOWN
    if text[0] == "<":
        if not final and QWEN.may_begin(text):
            return Sniff.UNKNOWN
        tag = QWEN.tag(text, final=final)
        return Sniff.CALL if tag and tag.role is Role.FUNCTION else Sniff.NOTHING
    return _plain(text, names, final=final)


def _plain(text: str, names: Collection[str], *, final: bool) -> Sniff:
    name = plain_name(text)
    behind = text[len(name) :].lstrip()
    if not name:
        return Sniff.NOTHING
    if not final and len(text) <= _LIMIT and (not behind or GLM.may_begin(behind)):
        return Sniff.UNKNOWN
    if not final and QWEN.may_begin(behind):
        return Sniff.UNKNOWN
    tag = GLM.tag(behind, final=final)
    is_known = known(name, names) in names
    good = behind.startswith("{") or (tag is not None) or (not behind and is_known)
    return Sniff.PLAIN if good else Sniff.NOTHING


def bare_function(text: str, dialect: Dialect, names: Collection[str], *, final: bool) -> Sniff:
    """Tell whether `text` is a call that lacks its block: a function's tag with a name, and behind
    it what belongs to a call, or nothing more if a tool has that name."""
    if not final and dialect.may_begin(text):
        return Sniff.UNKNOWN
    tag = dialect.tag(text, final=final)
    if tag is None or tag.role is not Role.FUNCTION or tag.is_closing or not tag.name:
        return Sniff.NOTHING
    behind = text[len(tag.text) :].lstrip()
    early = not behind or behind in ("`", "``") or dialect.may_begin(behind)
    if not final and len(text) <= _LIMIT and early:
        return Sniff.UNKNOWN
    if not behind:
        return Sniff.CALL if known(tag.name, names) in names else Sniff.NOTHING
    match dialect.tag(behind, final=final):
        case Tag(Role.PARAMETER | Role.JSON, False) | Tag(Role.FUNCTION | Role.BLOCK, True):
            return Sniff.CALL
        case _:
            return Sniff.CALL if behind.startswith(("{", "```")) else Sniff.NOTHING


def bare_object(text: str, names: Collection[str], *, final: bool) -> Sniff:
    """Tell whether `text` begins as a call in JSON, for one of the tools `names`."""
    found = _OBJECT.match(text)
    if found:
        return Sniff.JSON if known(found["name"], names) in names else Sniff.NOTHING
    part = None if final or len(text) > _LIMIT else _OBJECT_PART.fullmatch(text)
    if part is None or not any(key.startswith(part["key"] or "") for key in _KEYS):
        return Sniff.NOTHING
    return Sniff.UNKNOWN


def fence(text: str, names: Collection[str], *, final: bool) -> Sniff:
    """Tell whether `text` begins as a Markdown fence round a call."""
    opening = _FENCE.match(text)
    if opening is None:
        part = None if final else _FENCE_PART.fullmatch(text)
        waits = part and any(name.startswith(part["language"]) for name in _LANGUAGES)
        return Sniff.UNKNOWN if waits and len(text) <= _LIMIT else Sniff.NOTHING
    inside = text[opening.end() :]
    if not inside:
        return Sniff.NOTHING if final or len(text) > _LIMIT else Sniff.UNKNOWN
    if inside[0] != "<":
        return bare_object(inside, names, final=final) if inside[0] in "{[" else Sniff.NOTHING
    if inside.lower().startswith(_MARKS):
        return Sniff.CALL
    waits = not final and any(mark.startswith(inside.lower()) for mark in _MARKS)
    return Sniff.UNKNOWN if waits else Sniff.NOTHING
