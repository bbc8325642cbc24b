"""From what git prints to typed results.

Formats: ``git help status`` (porcelain version 2), ``git help diff-index`` (raw output format,
with ``-z``), ``--numstat -z``, and for the log five fields, each ended by NUL, which no commit can
hold. Names are relative to the work tree in a status and to the project elsewhere; bytes that are
no UTF-8 are shown as U+FFFD.
"""

import re
from collections.abc import Iterator
from typing import Any

from punie_workers.interp.failures import Failure, Kind

STATES = {
    "A": "added",
    "M": "modified",
    "D": "deleted",
    "R": "renamed",
    "C": "copied",
    "T": "type_changed",
    "U": "conflicted",
    ".": "",
}

_HEADERS = {"branch.oid": "head", "branch.head": "branch", "branch.upstream": "upstream"}
_NONE = ("(detached)", "(initial)")
_FIELDS = 5
_HASH_DIGITS = 40
_RAW_FIELDS = 4
_QUOTED = re.compile(r'["\\\x00-\x1f\x7f]')


def git_status(output: bytes, prefix: str, limit: int, complete: bool) -> dict[str, Any]:
    """Return a `GitStatusResult`; `prefix` is the project's folder in the work tree."""
    result: dict[str, Any] = {"branch": "", "head": "", "upstream": "", "ahead": 0, "behind": 0}
    below = prefix + "/" if prefix else ""
    files: list[dict[str, Any]] = []
    records = _records(output, complete)
    try:
        for record in records:
            if record.startswith("# "):
                _header(record, result)
            else:
                files.append(_entry(record, records, below))
    except (ValueError, KeyError, StopIteration) as error:
        raise _unreadable("status", error) from None
    files.sort(key=lambda entry: entry["file"])
    return result | {
        "clean": not files,
        "change_count": len(files),
        "truncated": len(files) > limit or not complete,
        "files": files[:limit],
    }


def git_diff(output: bytes, max_text: int, complete: bool) -> dict[str, Any]:
    """Return a `GitDiffResult`; `max_text` is the limit of its text in bytes of UTF-8."""
    reader = _Reader(output)
    try:
        found = _files(reader)
    except EOFError:
        if complete:
            raise _unreadable("diff", EOFError("the end of a record is missing")) from None
        message = "the diff is too large to be listed; ask for a smaller folder or a single file"
        raise Failure(Kind.GIT_OUTPUT, message) from None
    except (ValueError, KeyError) as error:
        raise _unreadable("diff", error) from None
    patch = reader.rest()
    files = [
        file for name, file in found.items() if not complete or not _only_touched(name, file, patch)
    ]
    text = _cut(patch, max_text)
    return {
        "file_count": len(files),
        "added": sum(file["added"] for file in files),
        "removed": sum(file["removed"] for file in files),
        "truncated": len(text) < len(patch) or not complete,
        "files": files,
        "diff": text.decode("utf-8", "replace"),
    }


def git_log(output: bytes, limit: int, complete: bool) -> dict[str, Any]:
    """Return a `GitLogResult`."""
    fields = list(_records(output, complete))
    if complete and len(fields) % _FIELDS:
        raise _unreadable("log", ValueError(f"{len(fields)} fields"))
    starts = range(0, len(fields) - _FIELDS + 1, _FIELDS)
    commits = [_commit(fields[start : start + _FIELDS]) for start in starts]
    return {
        "truncated": len(commits) > limit or not complete,
        "commits": commits[:limit],
    }


def _records(output: bytes, complete: bool) -> Iterator[str]:
    """Yield what was ended by NUL; only what was cut may end without."""
    *whole, last = output.split(b"\0")
    if last and complete:
        raise Failure(Kind.GIT_OUTPUT, f"git printed a torn record: {last[:200]!r}")
    return (record.decode("utf-8", "replace") for record in whole)


def _unreadable(command: str, error: Exception) -> Failure:
    return Failure(Kind.GIT_OUTPUT, f"git {command} printed something unknown: {error!r}")


def _header(record: str, result: dict[str, Any]) -> None:
    _, name, value = record.split(" ", 2)
    if name == "branch.ab":
        ahead, behind = value.split(" ")
        result |= {"ahead": int(ahead), "behind": -int(behind)}
    elif field := _HEADERS.get(name):
        result[field] = "" if value in _NONE else value


def _entry(record: str, rest: Iterator[str], below: str) -> dict[str, Any]:
    """Return a `StatusEntry`; a rename takes the next record too."""
    match record[0]:
        case "1":
            _, states, *_, name = record.split(" ", 8)
            return _status_entry(name, states, below)
        case "2":
            _, states, *_, name = record.split(" ", 9)
            return _status_entry(name, states, below, next(rest))
        case "u":
            name = record.split(" ", 10)[-1].removeprefix(below)
            return _row(name, "conflicted", "conflicted")
        case "?":
            return _row(record[2:].removeprefix(below), "", "untracked")
        case _:
            raise ValueError(record)


def _status_entry(name: str, states: str, below: str, former: str = "") -> dict[str, Any]:
    staged, unstaged = (STATES[letter] for letter in states)
    if former and not former.startswith(below):  # it came from outside the project
        staged, unstaged, former = staged and "added", unstaged and "added", ""
    return _row(name.removeprefix(below), staged, unstaged, former.removeprefix(below))


def _row(file: str, staged: str, unstaged: str, former: str = "") -> dict[str, Any]:
    return {"file": file, "staged": staged, "unstaged": unstaged, "renamed_from": former}


class _Reader:
    """Reads records ended by NUL up to an empty one, where the patch begins. Names keep every byte
    (``surrogateescape``): two of them may look alike once they are shown."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def more(self) -> bool:
        """Whether another record begins here."""
        return self._at < len(self._data) and self._data[self._at] != 0

    def take(self) -> str:
        """Return the next record. Raises `EOFError` when its end is missing."""
        end = self._data.find(b"\0", self._at)
        if end < 0:
            raise EOFError
        record = self._data[self._at : end].decode("utf-8", "surrogateescape")
        self._at = end + 1
        return record

    def rest(self) -> bytes:
        """Return what comes after the empty record."""
        return self._data[self._at + 1 :]


def _files(records: _Reader) -> dict[str, dict[str, Any]]:
    """Return every `DiffFile` by its name: first come the raw records, then the counts of lines. A
    conflict has two raw records and two counts: it is one, and the last count is meant. A text
    that was only touched has a raw record and no count: it is left out."""
    files: dict[str, dict[str, Any]] = {}
    uncounted: set[str] = set()
    while records.more():
        record = records.take()
        if record.startswith(":"):
            former = records.take() if _letter(record) in "RC" else ""
            files.setdefault(name := records.take(), _diff_file(record, name, former))
            if _content_alone(record):
                uncounted.add(name)
        else:
            added, removed, name = record.split("\t", 2)
            if not name:
                records.take()
                name = records.take()
            files[name].update(_counts(added, removed))
            uncounted.discard(name)
    return {name: file for name, file in files.items() if name not in uncounted}


def _content_alone(raw: str) -> bool:
    """Whether nothing but the content, in the work tree, can be what changed."""
    old_mode, mode, _, found, state = raw.removeprefix(":").split(" ")
    return state == "M" and old_mode == mode and not found.strip("0")


def _only_touched(name: str, file: dict[str, Any], patch: bytes) -> bool:
    """Whether a binary file has counts and no difference; not said of a name that git quotes."""
    if not file["binary"] or file["status"] != "modified" or _QUOTED.search(name):
        return False
    path = name.encode("utf-8", "surrogateescape")
    head = b"diff --git a/%b b/%b\n" % (path, path)
    return not patch.startswith(head) and b"\n" + head not in patch


def _letter(raw: str) -> str:
    """Return the state in a raw record: five fields, the last with a score for a rename."""
    *fields, state = raw.split(" ")
    if len(fields) != _RAW_FIELDS or not state:
        raise ValueError(raw)
    return state[0]


def _diff_file(raw: str, name: str, former: str) -> dict[str, Any]:
    return {
        "file": _shown(name),
        "status": STATES[_letter(raw)],
        "added": 0,
        "removed": 0,
        "binary": False,
        "renamed_from": _shown(former),
    }


def _shown(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _counts(added: str, removed: str) -> dict[str, Any]:
    if added == removed == "-":
        return {"binary": True}
    return {"added": int(added), "removed": int(removed)}


def _cut(patch: bytes, limit: int) -> bytes:
    """Return whole lines of at most `limit` bytes."""
    return patch if len(patch) <= limit else patch[: patch.rfind(b"\n", 0, limit) + 1]


def _commit(fields: list[str]) -> dict[str, Any]:
    name, author, date, subject, body = fields
    if len(name) < _HASH_DIGITS:
        raise _unreadable("log", ValueError(name))
    return {
        "hash": name,
        "author": author,
        "date": date,
        "subject": subject,
        "body": body.rstrip("\n"),
    }
