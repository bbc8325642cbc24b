"""Reading text files."""

import os
from typing import Any

from punie_workers.interp import texts
from punie_workers.interp.diffs import lines
from punie_workers.interp.failures import Failure, Kind
from punie_workers.interp.paths import Root
from punie_workers.interp.texts import HASH_DIGITS, MAX_SIZE, fingerprint


def read_file(root: Root, path: str, start_line: int, max_lines: int) -> dict[str, Any]:
    """Return a window of lines, numbered like ripgrep's: only ``\\n`` ends one, ``\\r\\n`` is
    read as that. The text ends with a line end when the last line of the window has one."""
    data = _read_bytes(root, path)
    if (text := texts.decode(path, data)) is None:
        raise Failure(Kind.NOT_TEXT, f"'{path}' is not a text file")
    every = lines(text.shown)
    first = start_line - 1
    window = every[first : first + max_lines]
    end = first + len(window)
    return {
        "text": "".join(window),
        "start_line": start_line,
        "end_line": end,
        "total_lines": len(every),
        "truncated": end < len(every) and bool(window),
        "encoding": text.encoding.name,
        "content_hash": fingerprint(data)[:HASH_DIGITS],
    }


def _read_bytes(root: Root, path: str) -> bytes:
    with os.fdopen(root.open_file(path), "rb") as file:
        data = file.read(MAX_SIZE + 1)
    if len(data) > MAX_SIZE:
        raise Failure(Kind.TOO_LARGE, f"'{path}' is larger than {MAX_SIZE // 1024**2} MB")
    return data
