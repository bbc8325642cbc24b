"""JSON as models write it when they do it badly: single quotes, Python's words, bare keys and
values, commas too many or none, quotes inside strings that were not escaped, line feeds in
strings, brackets that are missing at the end. Nothing of a string is ever dropped."""

import json
import math
import re
from typing import Any, Final

_SPACE: Final = re.compile(r"[\s\ufeff]*")
_BARE_KEY: Final = re.compile(r"[\w$.\-]+")
_BARE_VALUE: Final = re.compile(r"[^,{}\[\]()\n\"']+")
_COLON: Final = re.compile(r"\s*(?::|=>|=(?!=))")
_NEXT_KEY: Final = re.compile(
    r"""\s*(?:["'][^"'\n]{1,128}["']|[\w$.\-]{1,128})\s*(?::|=)|\s*[}\])]"""
)
_KEY_WITHOUT_COMMA: Final = re.compile(r"""\s+["'][\w$.\-]{1,128}["']\s*:""")
_AFTER_CLOSE: Final = re.compile(r"\s*(?:[,}\])<`]|$)")
_TAIL: Final = " \t\r\n}])"
_ESCAPE: Final = re.compile(r"(?:\\u[0-9a-fA-F]{4})+|\\x[0-9a-fA-F]{2}|\\[\s\S]")
_FENCE: Final = re.compile(r"\s*```[\w-]*[ \t]*\n")
_SIMPLE: Final = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_WORDS: Final[dict[str, bool | None]] = {
    "true": True,
    "false": False,
    "null": None,
    "none": None,
    "undefined": None,
}
RAW_QUOTES: Final = ('<|"|>', "<escape>")
"""Quotes of the Gemma models: nothing is escaped between them."""
_QUOTES: Final = (*RAW_QUOTES, '"""', "'''", '"', "'")


class NotJsonError(ValueError):
    """The text is no JSON, not even nearly. The message says what was found where."""


def strict(text: str, at: int = 0) -> tuple[Any, int]:
    """Return the JSON value at `at` and where it ends; control characters in strings are allowed,
    numbers that are none are not. Raises `NotJsonError`."""
    try:
        value, end = _decoder.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        raise NotJsonError(str(error)) from None
    return value, end


def loose(text: str, *, closed: bool = False) -> Any:
    """Return the value that `text` nearly is. `closed` says that the whole of it was written, so
    that a string may lack its closing quote too. Raises `NotJsonError`."""
    reader = LooseReader(unfenced(text), closed=closed)
    try:
        value = reader.value("")
    except RecursionError:
        raise NotJsonError("nested too deep") from None
    reader.end()
    return value


def unfenced(text: str) -> str:
    """Return what a Markdown fence round the whole of `text` holds, else `text`."""
    opening = _FENCE.match(text)
    body = text.rstrip()
    if opening is None or not body.endswith("```") or len(body) < opening.end() + 3:
        return text
    return body[opening.end() : -3].rstrip(" \t").removesuffix("\n")


def _no_number(text: str) -> Any:
    raise NotJsonError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


_decoder: Final = json.JSONDecoder(strict=False, parse_constant=_no_number, parse_float=_finite)


class LooseReader:
    """Reads one value after the other from `text`; `at` is how far it is. With `trusts` the first
    quotation mark that is not escaped ends a string, whatever comes behind it."""

    def __init__(
        self, text: str, at: int = 0, *, closed: bool = False, trusts: bool = False
    ) -> None:
        self._text = text
        self._closed = closed
        self._trusts = trusts
        self._depth = 0
        self.at = at
        self.complete = True
        """Whether every bracket and every string had its end."""

    def value(self, within: str) -> Any:
        """Return the next value; `within` is the bracket that it is inside, if any."""
        char = self.peek()
        if char == "{":
            return self._object()
        if char in "[(" and char:
            return self._array("]" if char == "[" else ")")
        if quote := self.quote():
            return self._string(quote, within)
        return self._bare()

    def keywords(self, head: re.Pattern[str]) -> dict[str, Any]:
        """Return the arguments ``key=value, ...`` up to a closing parenthesis; `head` matches
        ``key=``."""
        found: dict[str, Any] = {}
        self._depth += 1
        while not self._closes(")"):
            key = head.match(self._text, self.at)
            if key is None:
                raise NotJsonError(f"no key=value at character {self.at}")
            self.at = key.end()
            found[key["name"]] = self.value("(")
        self._depth -= 1
        return found

    def peek(self) -> str:
        """Skip white space; return the next character, empty at the end."""
        self.at = _space_end(self._text, self.at)
        return self._text[self.at : self.at + 1]

    def take(self, char: str) -> bool:
        """Skip `char`, if it is next."""
        found = self.peek() == char
        self.at += found
        return found

    def key(self, within: str) -> str:
        """Return the next key and skip the colon, or the equals sign, behind it."""
        if quote := self.quote():
            name = self._string(quote, "key")
        else:
            found = _BARE_KEY.match(self._text, self.at)
            name = found[0] if found else ""
            self.at += len(name)
        colon = _COLON.match(self._text, self.at)
        if not name or colon is None:
            raise NotJsonError(f"no key in {within} at character {self.at}")
        self.at = colon.end()
        return name

    def quote(self) -> str:
        """Return the quotation mark that is next, empty if there is none. Of four in a row the
        first stands alone: the text begins with three."""
        found = next((q for q in _QUOTES if self._text.startswith(q, self.at)), "")
        return found[0] if self._text.startswith(found[:1] * 4, self.at) and found else found

    def end(self) -> None:
        """Nothing but closing brackets may follow. Raises `NotJsonError`."""
        if self._text[self.at :].strip(_TAIL):
            raise NotJsonError(f"text behind the value, at character {self.at}")

    def _object(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self.at += 1
        self._depth += 1
        while not self._closes("}"):
            key = self.key("{")
            found[key] = self.value("{")
        self._depth -= 1
        return found

    def _array(self, close: str) -> list[Any]:
        found: list[Any] = []
        self.at += 1
        self._depth += 1
        while not self._closes(close):
            found.append(self.value("["))
        self._depth -= 1
        return found

    def _closes(self, bracket: str) -> bool:
        """Skip commas and the closing bracket, which may be missing at the end of the text."""
        while self.take(","):
            pass
        if self.take(bracket):
            return True
        self.complete = self.complete and bool(self.peek())
        return not self.peek()

    def _bare(self) -> Any:
        found = _BARE_VALUE.match(self._text, self.at)
        text = found[0].strip() if found else ""
        if found is None or not text:
            raise NotJsonError(f"no value at character {self.at}")
        self.at = found.end()
        if text.lower() in _WORDS:
            return _WORDS[text.lower()]
        try:
            value, end = strict(text)
        except NotJsonError:
            return text
        return value if end == len(text) else text

    def _string(self, quote: str, within: str) -> str:
        start = self.at + len(quote)
        at = start
        while (end := self._text.find(quote, at)) >= 0:
            escaped = quote not in RAW_QUOTES and _is_escaped(self._text, start, end)
            trusted = self._trusts or len(quote) > 1
            if not escaped and (trusted or self._ends_string(end + 1, within)):
                self.at = end + len(quote)
                return _unescape(self._text[start:end], quote)
            at = end + 1
        return self._unclosed(start, quote)

    def _ends_string(self, at: int, within: str) -> bool:
        """Whether what follows a quotation mark is what follows a string in JSON."""
        match within, self._text[_space_end(self._text, at) : _space_end(self._text, at) + 1]:
            case "key", char:
                return char in ":=" and char != ""
            case _, "":
                return True
            case "{", ",":
                at = _space_end(self._text, at) + 1
                return _NEXT_KEY.match(self._text, at) is not None
            case ("{", "}") | ("[", "]") | ("(", ")"):
                at = _space_end(self._text, at) + 1
                return _AFTER_CLOSE.match(self._text, at) is not None
            case ("[" | "(", ",") | ("", _):
                return True
            case "{", '"' | "'":
                return _KEY_WITHOUT_COMMA.match(self._text, at) is not None
            case _:
                return False

    def _unclosed(self, start: int, quote: str) -> str:
        text = self._text[start:]
        self.complete = False
        if not self._closed:
            raise NotJsonError("a string has no end")
        self.at = len(self._text)
        first = len(text.rstrip(_TAIL))
        brackets = [at for at in range(first, len(text)) if text[at] in "}])"]
        kept = max(0, len(brackets) - self._depth)
        end = brackets[kept] if kept < len(brackets) else len(text)
        return _unescape(text[:end].rstrip("\n"), quote)


def _space_end(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _is_escaped(text: str, start: int, at: int) -> bool:
    """Whether an odd number of backslashes is right before `at`."""
    first = at
    while first > start and text[first - 1] == "\\":
        first -= 1
    return (at - first) % 2 == 1


def _unescape(text: str, quote: str) -> str:
    """Return what a string means; an escape that JSON does not know stays as it was written."""
    if quote in RAW_QUOTES or "\\" not in text:
        return text
    return _ESCAPE.sub(_unescaped, text)


def _unescaped(found: re.Match[str]) -> str:
    escape = found[0]
    if escape.startswith("\\u") and len(escape) > 2:
        return json.loads(f'"{escape}"')
    if escape.startswith("\\x") and len(escape) > 2:
        return chr(int(escape[2:], 16))
    char = escape[1]
    return _SIMPLE.get(char) or (char if char in "\"'\\/" else escape)
