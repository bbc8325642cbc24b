"""From what ripgrep printed to results. Everything is sorted here: it searches in parallel.

`prefix` is the folder that was searched, relative to the root, ``""`` for the root. Patterns are
anchored there; results are relative to the root. Output that is not `complete` was cut: counts
are then of what was read, and `truncated` is true. A name that is not UTF-8 cannot be asked for:
what it stands for is counted and left out, `truncated` says so.
"""

import re
from collections.abc import Iterator
from typing import Any

from punie_workers.interp import ignore
from punie_workers.interp.globs import Globs
from punie_workers.interp.paths import Root

MAX_TEXT = 500
"""Characters of one matching line that are kept."""

_WARNINGS = re.compile(
    rb"[^\0]*: WARNING: stopped searching binary file after match "
    rb'\(found "\\0" byte around offset \d+\)\n'
)
"""What ripgrep prints between two records, without a NUL."""


def list_files(
    root: Root, output: bytes, prefix: str, pattern: str, limit: int, complete: bool
) -> dict[str, Any]:
    """Return a `ListFilesResult` from ``rg --files --null``."""
    keep = _Filter(root, prefix, pattern)
    found = [raw for raw in output.split(b"\0")[:-1] if keep.counts(raw)]
    paths = sorted(path for raw in found if (path := keep.path(raw)) is not None)
    truncated = len(found) > len(paths[:limit]) or not complete
    return {"count": len(found), "truncated": truncated, "files": paths[:limit]}


def search(
    root: Root, output: bytes, prefix: str, pattern: str, limit: int, complete: bool
) -> dict[str, Any]:
    """Return a `SearchResult` from ``rg --null --line-number``: records of path, NUL, line
    number, colon, text, newline. A record that was cut off is left out."""
    keep = _Filter(root, prefix, pattern)
    found = [record for record in _records(output) if keep.counts(record[0])]
    named = [
        (path, line, text) for raw, line, text in found if (path := keep.path(raw)) is not None
    ]
    named.sort(key=lambda match: match[:2])
    return {
        "match_count": len(found),
        "truncated": len(found) > len(named[:limit]) or not complete,
        "matches": [
            {"file": path, "line": line, "text": _text(text)} for path, line, text in named[:limit]
        ],
    }


def _records(output: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield path, line number and text. Read in order, as a path may hold newlines."""
    at = 0
    while (end := output.find(b"\n", nul := output.find(b"\0", at))) > nul >= 0:
        number, _, text = output[nul + 1 : end].partition(b":")
        yield _WARNINGS.sub(b"", output[at:nul]), int(number), text
        at = end + 1


class _Filter:
    """Which paths count: those of the pattern that ``.punieignore`` does not hide. Remembers its
    answers, as a file has many matches."""

    def __init__(self, root: Root, prefix: str, pattern: str) -> None:
        self._prefix = prefix + "/" if prefix else ""
        self._glob = Globs([pattern])
        self._ignore = ignore.load(root, prefix)
        self._known: dict[bytes, bool] = {}

    def counts(self, raw: bytes) -> bool:
        """Whether the file that ripgrep calls `raw` counts."""
        if raw not in self._known:
            path = raw.decode("utf-8", "replace").removeprefix("./")
            hidden = self._ignore.hides(self._prefix + path)
            self._known[raw] = self._glob.matches(path) and not hidden
        return self._known[raw]

    def path(self, raw: bytes) -> str | None:
        """Return the path relative to the root, or ``None`` when its name is not UTF-8."""
        try:
            return self._prefix + raw.decode().removeprefix("./")
        except UnicodeDecodeError:
            return None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").rstrip("\r")[:MAX_TEXT]
