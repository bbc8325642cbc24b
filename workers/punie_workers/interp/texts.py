"""Files as text: which encoding one has, and where its bytes stand in the text that is shown.

Text is shown with ``\\n`` for ``\\r\\n``; a ``\\r`` alone is a character like any other. An edit is
made in the shown text and carried over, so that what it does not touch keeps its bytes.
"""

import codecs
import re
from hashlib import sha256
from typing import Final, NamedTuple

from punie_workers.interp.diffs import changes, lines
from punie_workers.interp.failures import Failure, Kind

MAX_SIZE = 2 * 1024 * 1024
"""Bytes of the largest file that is read or written; a test keeps it equal to the wire's limit."""

HASH_DIGITS: Final = 16


class Encoding(NamedTuple):
    """`name` is what the model is told, `codec` is Python's, `bom` stands before the text."""

    name: str
    codec: str
    bom: bytes = b""


UTF_8: Final = Encoding("utf-8", "utf-8")
_MARKED: Final = (
    Encoding("utf-8-sig", "utf-8", codecs.BOM_UTF8),
    Encoding("utf-16", "utf-16-le", codecs.BOM_UTF16_LE),
    Encoding("utf-16", "utf-16-be", codecs.BOM_UTF16_BE),
)
_PYTHON: Final = (".py", ".pyi", ".pyw")
_HEAD: Final = 2000
_COOKIE: Final = re.compile(
    r"(?:[ \t\f]*(?:#[^\r\n]*)?(?:\r\n|\r|\n))??[ \t\f]*#[^\r\n]*?coding[:=][ \t]*([-\w.]+)",
    re.ASCII,
)
"""PEP 263: in the first line, or in the second after a comment or a blank line."""

_CODECS: Final = (
    *("ascii", "utf-8", "iso8859", "cp", "koi8", "mac", "tis-620"),
    *("gb", "big5", "euc", "shift_jis", "johab", "iso2022", "hz"),
)
"""Codecs a file may declare; others are no encodings of files, or slow (`punycode`)."""


class Text(NamedTuple):
    """A file's text, its line ends as they are in the file."""

    raw: str
    encoding: Encoding

    @property
    def shown(self) -> str:
        return self.raw.replace("\r\n", "\n")


def fingerprint(data: bytes) -> str:
    """Return what identifies a file's bytes; the model is shown its first `HASH_DIGITS`."""
    return sha256(data).hexdigest()


def decode(path: str, data: bytes) -> Text | None:
    """Return the text of the file at `path`; ``None`` when it is none: not UTF-8, not UTF-16
    with its mark, not what a Python file declares, or with a NUL in it."""
    for encoding in _candidates(path, data):
        try:
            raw = data[len(encoding.bom) :].decode(encoding.codec)
        except UnicodeDecodeError:
            continue
        if "\0" not in raw:
            return Text(raw, encoding)
    return None


def _candidates(path: str, data: bytes) -> list[Encoding]:
    for encoding in _MARKED:
        if data.startswith(encoding.bom):
            return [encoding]
    declared = _declared(path, data[:_HEAD].decode("latin-1"))
    return [declared, UTF_8] if declared else [UTF_8]


def _declared(path: str, text: str) -> Encoding | None:
    """Return what a Python file declares, if it is an encoding in which it says just that."""
    if not path.endswith(_PYTHON) or (found := _COOKIE.match(text, 0, _HEAD)) is None:
        return None
    try:
        codec = codecs.lookup(found[1].removesuffix("-unix").removesuffix("-dos")).name
        readable = found[1].encode().decode(codec) == found[1]
    except LookupError, UnicodeError:
        return None
    return Encoding(codec, codec) if readable and codec.startswith(_CODECS) else None


def encoding_for(path: str, shown: str, old: Text | None) -> Encoding:
    """Return the encoding of a file that is to hold `shown`: that of the `old` file, unless it is
    Python and declares another one now."""
    declared = _declared(path, shown)
    if old is not None and (old.encoding.bom or declared == _declared(path, old.raw)):
        return old.encoding
    return declared or UTF_8


def encode(path: str, raw: str, encoding: Encoding) -> bytes:
    """Return the bytes of `raw` without a mark. Raises `Failure` for what has none."""
    try:
        return raw.encode(encoding.codec)
    except UnicodeEncodeError as error:
        character = raw[error.start]
        what = f"{character!a} (U+{ord(character):04X})"
        message = f"'{path}' is {encoding.name}, which cannot hold {what}"
        raise Failure(Kind.ENCODING, message) from None


def spliced(text: Text, shown: str, start: int, end: int, new: str) -> tuple[str, str, str]:
    """Return the raw text before ``shown[start:end]``, what stands for `new` in its place, and
    the raw text after it."""
    first, last = raw_offset(text, shown, start), raw_offset(text, shown, end)
    raw = text.raw
    usual = line_end_at(raw, first)
    return raw[:first], with_line_ends(raw[first:last], new, usual), raw[last:]


def raw_offset(text: Text, shown: str, at: int) -> int:
    """Return where in the raw text the character stands that is shown at `at`."""
    number = shown.count("\n", 0, at)
    start = shown.rfind("\n", 0, at) + 1
    rest = text.raw.split("\n", number)[number]
    return len(text.raw) - len(rest) + at - start


def line_end_at(raw: str, at: int) -> str:
    """Return the line end used around `at`: of that line, else of the one before."""
    end = raw.find("\n", at)
    if end < 0:
        end = raw.rfind("\n", 0, at)
    return "\r\n" if end > 0 and raw[end - 1] == "\r" else "\n"


def with_line_ends(old: str, new: str, usual: str) -> str:
    """Return the shown text `new` with line ends as in the raw text `old`: of the same line where
    it stays, of the line it replaces else, `usual` when there is none."""
    total, windows = old.count("\n"), old.count("\r\n")
    if windows in (0, total):
        end = usual if not total else "\r\n" if windows else "\n"
        return new.replace("\n", end)
    before, after = lines(old.replace("\r\n", "\n")), lines(new)
    ends = ["\r\n" if line.endswith("\r\n") else "\n" for line in lines(old)]
    chosen = _aligned_ends(before, after, ends)
    return "".join(
        line.removesuffix("\n") + end if line.endswith("\n") else line
        for line, end in zip(after, chosen, strict=True)
    )


def _aligned_ends(before: list[str], after: list[str], ends: list[str]) -> list[str]:
    """Return a line end for each line of `after`."""
    chosen: list[str] = []
    at = 0
    for old_start, old_end, new_start, new_end in changes(before, after):
        chosen += ends[at:old_start]
        near = ends[old_start:old_end] or ends[max(old_start - 1, 0) : old_start] or ends[:1]
        chosen += [near[min(n, len(near) - 1)] for n in range(new_end - new_start)]
        at = old_end
    return chosen + ends[at:]
