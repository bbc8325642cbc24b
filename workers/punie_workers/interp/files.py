"""Reading text files."""

import os
from typing import Any

from punie_workers.interp.failures import Failure, Kind
from punie_workers.interp.paths import Root

MAX_SIZE = 2 * 1024 * 1024
"""Bytes of the largest file that is read; a test keeps it equal to the wire's limit."""


def read_file(root: Root, path: str, start_line: int, max_lines: int) -> dict[str, Any]:
    """Return a window of lines, numbered like ripgrep's: only ``\\n`` ends one, ``\\r\\n`` is
    read as that. The text ends with a line end when the last line of the window has one."""
    lines = _lines(_read_text(root, path))
    first = start_line - 1
    window = lines[first : first + max_lines]
    end = first + len(window)
    return {
        "text": "".join(window),
        "start_line": start_line,
        "end_line": end,
        "total_lines": len(lines),
        "truncated": end < len(lines) and bool(window),
    }


def _lines(text: str) -> list[str]:
    *whole, last = text.replace("\r\n", "\n").split("\n")
    lines = [line + "\n" for line in whole]
    return [*lines, last] if last else lines


def _read_text(root: Root, path: str) -> str:
    try:
        text = _read_bytes(root, path).decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise Failure(Kind.NOT_TEXT, f"'{path}' is not a text file")
    return text


def _read_bytes(root: Root, path: str) -> bytes:
    with os.fdopen(root.open_file(path), "rb") as file:
        data = file.read(MAX_SIZE + 1)
    if len(data) > MAX_SIZE:
        raise Failure(Kind.TOO_LARGE, f"'{path}' is larger than {MAX_SIZE // 1024**2} MB")
    return data
