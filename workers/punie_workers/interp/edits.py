"""Edits in two steps: `plan` works everything out and changes nothing, `apply` does just that.

What `apply` needs is in the plan as the bytes of a request, so nothing is kept in between. It
finds the files as the plan saw them or fails with ``changed``.
"""

import stat
from typing import Any, NamedTuple

from punie_workers.interp import near, places, texts, wire
from punie_workers.interp.diffs import Diff, quoted, unified
from punie_workers.interp.failures import Failure, Kind
from punie_workers.interp.paths import Root
from punie_workers.interp.texts import HASH_DIGITS, MAX_SIZE, Text, fingerprint


class _File(NamedTuple):
    """A file as the plan saw it; `text` is ``None`` when it is not text."""

    path: str
    data: bytes
    text: Text | None

    @property
    def shown(self) -> str | None:
        return None if self.text is None else self.text.shown


def plan(root: Root, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what the call of an edit tool would do: `paths` touched, `files` with their texts
    before and after, the `result`, and the request that does it, `apply`."""
    match tool:
        case "edit_file":
            return _plan_edit(root, **arguments)
        case "write_file":
            return _plan_write(root, **arguments)
        case "delete_file":
            return _plan_delete(root, **arguments)
        case "move_file":
            return _plan_move(root, **arguments)
        case _:
            raise ValueError(tool)


def apply(
    root: Root, action: str, path: str, before: str = "", data: bytes = b"", destination: str = ""
) -> dict[str, Any]:
    """Do what was planned: all of it, or nothing with a `Failure`. `trouble` is what went wrong
    after it was done, empty if nothing did."""
    for one in filter(None, (path, destination)):
        places.check_protected(root, one, one)
    with places.opened(root, path, make=action == "create") as place:
        places.tidy(place.fd)
        match action:
            case "create":
                place.create(data)
            case "replace":
                place.replace(data, before)
            case "delete":
                place.remove(before)
            case "move":
                with places.opened(root, destination, make=True) as to:
                    place.move_to(to, before)
                    trouble = _sync(to)
                return {"trouble": _sync(place) or trouble}
            case _:
                raise ValueError(action)
        return {"trouble": _sync(place)}


def _sync(place: places.Place) -> str:
    try:
        place.sync()
    except OSError as error:
        return f"'{place.path}' was changed, but may not survive a power loss: {error.strerror}"
    return ""


def _plan_edit(
    root: Root, path: str, old_text: str, new_text: str, content_hash: str
) -> dict[str, Any]:
    file = _read(root, path, content_hash)
    text = _writable_text(path, file)
    if old_text == new_text:
        raise Failure(Kind.NO_CHANGE, "old_text and new_text are the same")
    shown = text.shown
    if old_text not in shown:
        old_text = _plain(old_text)
    new_text = _plain(new_text)
    match near.places(shown, old_text):
        case [at]:
            return _planned_edit(file, text, shown, _Splice(at, at + len(old_text), new_text))
        case []:
            raise near.nowhere(path, shown, old_text)
        case several:
            raise near.several(path, shown, several)


class _Splice(NamedTuple):
    """Replace ``shown[start:end]`` by `new`."""

    start: int
    end: int
    new: str


def _planned_edit(file: _File, text: Text, shown: str, splice: _Splice) -> dict[str, Any]:
    after = shown[: splice.start] + splice.new + shown[splice.end :]
    if after == shown:
        raise Failure(Kind.NO_CHANGE, "old_text and new_text differ in line ends alone")
    encoding = texts.encoding_for(file.path, after, text)
    raw = texts.spliced(text, shown, *splice)
    if encoding == text.encoding:
        data = _spliced_bytes(file, text, raw)
    else:
        data = encoding.bom + texts.encode(file.path, "".join(raw), encoding)
    return _planned_write(file.path, after, data, file)


def _spliced_bytes(file: _File, text: Text, raw: tuple[str, str, str]) -> bytes:
    """Return the new bytes; those before and after the edit are the file's own."""
    before, new, after = (texts.encode(file.path, part, text.encoding) for part in raw)
    start = text.encoding.bom + before
    if not (file.data.startswith(start) and file.data.endswith(after)):
        name = text.encoding.name
        message = f"'{file.path}' cannot be edited there and written back as {name}"
        raise Failure(Kind.ENCODING, message)
    return start + new + after


def _plan_write(root: Root, path: str, text: str, content_hash: str) -> dict[str, Any]:
    resolved, exists = _resolve(root, path, missing=True)
    shown = _plain(text)
    if not exists:
        if content_hash:
            raise Failure(Kind.CHANGED, f"there is no '{path}': leave content_hash out to make it")
        encoding = texts.encoding_for(resolved, shown, None)
        return _planned_write(resolved, shown, texts.encode(resolved, shown, encoding), None)
    file = _read(root, path, content_hash)
    old = _writable_text(path, file)
    encoding = texts.encoding_for(resolved, shown, old)
    raw = texts.with_line_ends(old.raw, shown, "\n")
    data = encoding.bom + texts.encode(resolved, raw, encoding)
    return _planned_write(resolved, shown, data, file)


def _planned_write(path: str, after: str, data: bytes, old: _File | None) -> dict[str, Any]:
    """Return the plan of a file that is to hold `data`, which shows as `after`."""
    if len(data) > MAX_SIZE:
        raise Failure(Kind.TOO_LARGE, f"'{path}' would be larger than {MAX_SIZE // 1024**2} MB")
    if (new := texts.decode(path, data)) is None or new.shown != after:
        message = f"'{path}' cannot hold that text: a NUL, or odd line ends or encoding"
        raise Failure(Kind.ENCODING, message)
    before = (old.shown or "") if old else ""
    diff = unified(before, after, path if old else None, path)
    apply = {"action": "replace" if old else "create", "path": path, "data": data}
    if old:
        apply["before"] = fingerprint(old.data)
    files = [[path, before if old else None, after]]
    return _planned([path], files, _result(path, diff, data), apply)


def _plan_delete(root: Root, path: str, content_hash: str) -> dict[str, Any]:
    file = _read(root, path, content_hash)
    if file.shown is None:
        diff = Diff(f"Binary files a/{file.path} and /dev/null differ\n", 0, 0)
    else:
        diff = unified(file.shown, "", file.path, None)
    files = [] if file.shown is None else [[file.path, file.shown, None]]
    apply = {"action": "delete", "path": file.path, "before": fingerprint(file.data)}
    return _planned([file.path], files, _result(file.path, diff, None), apply)


def _plan_move(root: Root, path: str, destination: str) -> dict[str, Any]:
    file = _read(root, path, "")
    to, exists = _resolve(root, destination, missing=True)
    if exists:
        raise Failure(Kind.EXISTS, f"'{destination}' exists already")
    old, new = (quoted(one) if '"' in one or not one.isprintable() else one for one in (path, to))
    diff = Diff(f"similarity index 100%\nrename from {old}\nrename to {new}\n", 0, 0)
    shown = file.shown
    files = [] if shown is None else [[file.path, shown, None], [to, None, shown]]
    before = fingerprint(file.data)
    apply = {"action": "move", "path": file.path, "destination": to, "before": before}
    return _planned([file.path, to], files, _result(to, diff, file.data), apply)


def _planned(
    paths: list[str], files: list[list[str | None]], result: dict[str, Any], apply: dict[str, Any]
) -> dict[str, Any]:
    request = wire.encode_request("edits_apply", apply)
    return {"paths": paths, "files": files, "result": result, "apply": request}


def _result(path: str, diff: Diff, data: bytes | None) -> dict[str, Any]:
    return {
        "path": path,
        "diff": diff.text,
        "added": diff.added,
        "removed": diff.removed,
        "content_hash": "" if data is None else fingerprint(data)[:HASH_DIGITS],
    }


def _read(root: Root, path: str, content_hash: str) -> _File:
    resolved, _ = _resolve(root, path)
    with places.opened(root, resolved) as place:
        data, status = place.read()
    if not status.st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        raise Failure(Kind.PERMISSION, f"no permission to change '{path}': it is read-only")
    _check_hash(path, data, content_hash)
    return _File(resolved, data, texts.decode(resolved, data))


def _resolve(root: Root, path: str, *, missing: bool = False) -> tuple[str, bool]:
    resolved, exists, links = root.resolve(path, missing=missing)
    for one in (resolved, *links):
        places.check_protected(root, path, one)
    return resolved, exists


def _check_hash(path: str, data: bytes, expected: str) -> None:
    """Take the first digits that `read_file` shows, or more of them."""
    found = fingerprint(data)
    if expected and (len(expected) < HASH_DIGITS or not found.startswith(expected.lower())):
        raise Failure(
            Kind.CHANGED,
            f"'{path}' changed: its content_hash is {found[:HASH_DIGITS]}, not {expected}: "
            "read it again",
        )


def _writable_text(path: str, file: _File) -> Text:
    if file.text is None:
        raise Failure(Kind.NOT_TEXT, f"'{path}' is not a text file")
    return file.text


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n")
