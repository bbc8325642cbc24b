"""From what ripgrep printed to results. Everything is sorted here: it searches in parallel.

`prefix` is the folder that was searched, relative to the root, ``""`` for the root. Patterns are
anchored there; results are relative to the root. Output that is not `complete` was cut: counts
are then of what was read, and `truncated` is true.
"""

from typing import Any

from punie_workers.interp import ignore
from punie_workers.interp.globs import Glob
from punie_workers.interp.paths import Root

MAX_TEXT = 500
"""Characters of one matching line that are kept."""


def list_files(
    root: Root, output: bytes, prefix: str, pattern: str, limit: int, complete: bool
) -> dict[str, Any]:
    """Return a `ListFilesResult` from ``rg --files --null``."""
    keep = _Filter(root, prefix, pattern)
    paths = sorted(path for raw in output.split(b"\0") if raw and (path := keep.path(raw)))
    truncated = len(paths) > limit or not complete
    return {"count": len(paths), "truncated": truncated, "files": paths[:limit]}


def search(
    root: Root, output: bytes, prefix: str, pattern: str, limit: int, complete: bool
) -> dict[str, Any]:
    """Return a `SearchResult` from ``rg --null --line-number``: records of path, NUL, line
    number, colon, text, newline. A record that was cut off is left out."""
    keep = _Filter(root, prefix, pattern)
    found: list[tuple[str, int, bytes]] = []
    for record in output.split(b"\n"):
        raw, separator, rest = record.partition(b"\0")
        number, _, text = rest.partition(b":")
        if separator and number.isdigit() and (path := keep.path(raw)):
            found.append((path, int(number), text))
    found.sort(key=lambda match: match[:2])
    return {
        "match_count": len(found),
        "truncated": len(found) > limit or not complete,
        "matches": [
            {"file": path, "line": line, "text": _text(text)} for path, line, text in found[:limit]
        ],
    }


class _Filter:
    """Which paths count: those of the pattern that ``.punieignore`` does not hide. Remembers its
    answers, as a file has many matches."""

    def __init__(self, root: Root, prefix: str, pattern: str) -> None:
        self._prefix = prefix + "/" if prefix else ""
        self._glob = Glob(pattern)
        self._ignore = ignore.load(root)
        self._known: dict[bytes, str | None] = {}

    def path(self, raw: bytes) -> str | None:
        """Return the path relative to the root, or ``None`` when it does not count."""
        if raw not in self._known:
            self._known[raw] = self._judge(raw.decode("utf-8", "replace").removeprefix("./"))
        return self._known[raw]

    def _judge(self, path: str) -> str | None:
        full = self._prefix + path
        return full if self._glob.matches(path) and not self._ignore.hides(full) else None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").rstrip("\r")[:MAX_TEXT]
