"""What goes where: answers on stdout, everything else on stderr, colours only on a terminal."""

import os
import stat
import sys
import unicodedata
from typing import Any, TextIO

import msgspec

from punie_protocol.errors import WireError


def say(text: str) -> None:
    """Print one line for a person on stderr."""
    clear_progress()
    sys.stderr.write(f"punie: {text}\n")
    sys.stderr.flush()


def printable(text: str) -> str:
    """Return a line without what would steer a terminal: it may come from a file or a model. Each
    such character is shown as a sign of its own, as in commands: ``␛``, ``\\u202e``."""
    return "".join(c if c.isprintable() or c == "\t" else _sign(ord(c)) for c in text)


def _sign(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else f"\\u{code:04x}"


def colours(stream: TextIO) -> bool:
    """Whether colours may go there: to a terminal, unless ``NO_COLOR`` is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def paint(text: str, code: str, *, colours: bool) -> str:
    """Return a text in a colour, by its number in ECMA-48 (SGR)."""
    return f"\x1b[{code}m{text}\x1b[0m" if colours and code else text


def say_error(error: WireError) -> None:
    """Print a failure on stderr: what happened, and what to do."""
    say(f"error: {error.message}")
    if error.hint:
        sys.stderr.write(f"  {error.hint}\n")


def progress(text: str, done: int = 0, total: int = 0) -> None:
    """Show progress on stderr: in place on a terminal, one line each time the text changes
    elsewhere."""
    share = f" {done / total:.0%}" if total else ""
    if sys.stderr.isatty():
        line = fitted(text, _columns() - len(share))
        sys.stderr.write(f"\r\x1b[K\x1b[2m{line}{share}\x1b[0m")
        sys.stderr.flush()
        _Shown.line = text
    elif text != _Shown.line:
        _Shown.line = text
        sys.stderr.write(f"punie: {text}\n")
        sys.stderr.flush()


def fitted(text: str, columns: int) -> str:
    """Return a text that takes less than so many columns: a line that wraps cannot be taken
    away. Wide characters count as two."""
    room = columns - 2
    for at, character in enumerate(text):
        room -= 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if room < 0:
            return f"{text[:at]}…"
    return text


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


def clear_progress() -> None:
    """Take the progress line away, before something else is printed."""
    if _Shown.line and sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
    _Shown.line = ""


def print_json(value: Any) -> None:
    """Print one JSON document, indented, on stdout."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(text.decode() + "\n")
    sys.stdout.flush()


def print_json_line(value: Any) -> None:
    """Print one JSON document as a line on stdout."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def rounded(value: Any) -> Any:
    """Return what JSON is made of with its floats rounded to thousandths: microseconds, where they
    are milliseconds."""
    match value:
        case float():
            return round(value, 3)
        case dict():
            return {key: rounded(one) for key, one in value.items()}
        case list():
            return [rounded(one) for one in value]
        case _:
            return value


def silence_stdout() -> None:
    """After a broken pipe: keep the interpreter's last flush from failing too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def silence() -> None:
    """After the terminal was closed: what is still written to one goes nowhere. Files go on."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        # Not `isatty`: of a terminal that is gone it says no.
        if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode):
            os.dup2(null, stream.fileno())
    os.close(null)


class _Shown:
    """The progress line that stands on the terminal, or was printed last."""

    line: str = ""
