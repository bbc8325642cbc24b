"""The symbol index of one project: what its Python files define and use.

A file is parsed once for each content: its digest is kept with its status, and what a content
holds is kept by digest, so that a touched or renamed file is not parsed again. Both are bounded;
contents least recently used go first and are parsed anew when asked for. Work comes in slices of
about `SLICE` bytes, so that other calls of the project get their turn in between.
"""

import hashlib
import os
import time
from bisect import bisect_left
from collections import OrderedDict
from typing import Any, NamedTuple
from unicodedata import normalize

from punie_workers.interp import ripgrep, symbols, watched
from punie_workers.interp.failures import Failure, Kind
from punie_workers.interp.paths import Root
from punie_workers.interp.symbols import Module

MAX_FILES = 20_000
"""Files of one listing; the rest is left out, and answers are `truncated`."""

MAX_MEMORY = 64 * 1024 * 1024
"""Bytes, about, of what is kept of contents."""

MAX_SIZE = 1024 * 1024
"""Bytes of the largest file that is parsed: its tree takes a hundred times as much."""

SLICE = 256 * 1024
"""Bytes read in one call, and then at most the rest of one file: some 150 ms."""

MAX_TEXT = 500
"""Characters of a line that refers to something."""

PATTERN = "*.{py,pyi}"

_FILE_COST = 64
"""What a file counts for in a slice, besides what is read of it."""

_EMPTY_SIZE = 200

_FILE_SIZE = 600
"""Bytes, about, that a listed file takes besides what its content holds."""

_SETTLED_NS = 100_000_000
"""A file that changed less than that before it was read may change again and look the same: file
systems stamp with a clock of some milliseconds. Its digest is not relied on."""


class _File(NamedTuple):
    """A file as it was read. `digest` is of its content, empty when that cannot be had; `stamp`
    is ``None`` when the next check shall read it in any case."""

    stamp: tuple[int, int, int, int] | None
    digest: bytes


class Index:
    """Of one root, which it does not own. Listings are named by a slot and a number: a newer one
    in a slot ends the one before."""

    def __init__(self, root: Root, memory: int = MAX_MEMORY) -> None:
        self._root = root
        self._memory = memory
        self._used = 0
        self._files: dict[str, _File] = {}
        self._contents: OrderedDict[bytes, Module | None] = OrderedDict()
        self._listings: dict[str, tuple[int, list[str]]] = {}
        self._parsed = 0

    def place(self, path: str) -> dict[str, Any]:
        """Return where `path` leads, relative to the root, and whether that is a file."""
        fd, folder, name = self._root.open_place(path)
        os.close(fd)
        if name == ".":
            return {"path": folder, "is_file": False}
        return {"path": f"{folder}/{name}" if folder else name, "is_file": True}

    def folders(self, output: bytes) -> dict[str, Any]:
        """Return the folders to watch; see `watched.folders`."""
        return {"folders": watched.folders(self._root, output)}

    def take(
        self, slot: str, listing: int, output: bytes, prefix: str, complete: bool
    ) -> dict[str, Any]:
        """Take the Python files of ``rg --files --null`` in the folder `prefix` as a listing."""
        found = ripgrep.list_files(self._root, output, prefix, PATTERN, MAX_FILES, complete)
        self._listings[slot] = (listing, found["files"])
        known = {path for _, paths in self._listings.values() for path in paths}
        self._files = {path: file for path, file in self._files.items() if path in known}
        return {"count": found["count"], "truncated": found["truncated"]}

    def take_file(self, slot: str, listing: int, path: str) -> dict[str, Any]:
        """Take one file, whatever its name, as a listing; `path` is resolved."""
        self._listings[slot] = (listing, [path])
        return {"count": 1, "truncated": False}

    def refresh(self, slot: str, listing: int, prefix: str, start: int) -> dict[str, Any]:
        """Check the files of a listing below `prefix`, from number `start` on, and read what has
        changed. `next` is where to go on, -1 at the end; `known` is false for a listing that is
        no more. `parsed` counts contents since the beginning, `memory` is what it all takes now,
        about."""
        paths = self._paths(slot, listing)
        done = 0
        for at in _below(paths or [], prefix, start):
            if done >= SLICE:
                return {"known": True, "next": at, **self._counts()}
            done += _FILE_COST + self._check((paths or [])[at])
        return {"known": paths is not None, "next": -1, **self._counts()}

    def query(
        self,
        slot: str,
        listing: int,
        prefix: str,
        start: int,
        name: str,
        definitions: int,
        references: int | None,
    ) -> dict[str, Any]:
        """Return what the files of a listing below `prefix` hold as they were checked, from
        number `start` on: every definition, or those of `name`, and its uses unless `references` is
        ``None``. All are counted, so many `definitions` and `references` at most come with it.
        `files` are from `start` on; `known` and `next` as in `refresh`."""
        paths = self._paths(slot, listing)
        files = _below(paths or [], prefix, start)
        asked = _Question(normalize("NFKC", name), definitions, references)
        done = 0
        for at in files:
            if done >= SLICE:
                return {"known": True, "next": at, "files": len(files), **asked.answer()}
            done += _FILE_COST + self._ask((paths or [])[at], asked)
        known = paths is not None
        return {"known": known, "next": -1, "files": len(files), **asked.answer()}

    def _counts(self) -> dict[str, int]:
        listed = sum(len(paths) for _, paths in self._listings.values())
        return {"parsed": self._parsed, "memory": self._used + _FILE_SIZE * listed}

    def _paths(self, slot: str, listing: int) -> list[str] | None:
        number, paths = self._listings.get(slot, (-1, []))
        return paths if number == listing else None

    def _check(self, path: str) -> int:
        """See that what is known of a file is so now; return the bytes read for it."""
        known = self._files.get(path)
        try:
            status = os.stat(path, dir_fd=self._root.fd, follow_symlinks=False)
        except OSError:
            self._files.pop(path, None)
            return 0
        return 0 if known and known.stamp == _stamp(status) else len(self._read(path))

    def _read(self, path: str) -> bytes:
        """Read a file: what is known of it is then of what is returned."""
        self._files.pop(path, None)
        try:
            fd = self._root.open_file(path)
        except Failure as failure:
            if failure.kind is Kind.PERMISSION:
                self._files[path] = _File(None, b"")
            return b""
        with os.fdopen(fd, "rb") as file:
            now, status = time.time_ns(), os.fstat(fd)
            data = file.read(MAX_SIZE + 1) if status.st_size <= MAX_SIZE else b""
        if status.st_size > MAX_SIZE or len(data) > MAX_SIZE:
            self._files[path] = _File(_stamp(status), b"")
            return b""
        digest = hashlib.sha256(data).digest()
        self._files[path] = _File(_stamp(status) if _is_settled(status, now) else None, digest)
        self._keep(digest, data)
        return data

    def _keep(self, digest: bytes, data: bytes) -> None:
        if digest in self._contents:
            self._contents.move_to_end(digest)
            return
        module = self._contents[digest] = symbols.parse(data)
        self._parsed += 1
        self._used += _size(module)
        while self._used > self._memory and len(self._contents) > 1:
            self._used -= _size(self._contents.popitem(last=False)[1])

    def _ask(self, path: str, asked: _Question) -> int:
        """Add what a file holds to the answer; return the bytes read for it."""
        cost, lines = 0, list[str]()
        if (file := self._files.get(path)) and file.digest and file.digest not in self._contents:
            cost += len(self._read(path))
        if (module := self._module(path)) and asked.needs_lines(module):
            data = self._read(path)
            cost += len(data)
            module, lines = self._module(path), symbols.lines_of(data)
        if path in self._files:
            asked.add(path, module, lines)
        return cost

    def _module(self, path: str) -> Module | None:
        file = self._files.get(path)
        if file is None or file.digest not in self._contents:
            return None
        self._contents.move_to_end(file.digest)
        return self._contents[file.digest]


class _Question:
    """What is asked, and the answer so far."""

    def __init__(self, name: str, definitions: int, references: int | None) -> None:
        self._name = name
        self._definitions = definitions
        self._references = references
        self._counts = [0, 0]
        self._symbols: list[dict[str, Any]] = []
        self._uses: list[dict[str, Any]] = []
        self._unreadable: list[str] = []

    def needs_lines(self, module: Module) -> bool:
        """Whether the text of lines of that file will be in the answer."""
        room = len(self._uses) < (self._references or 0)
        return room and any(True for _ in module.refers(self._name))

    def add(self, path: str, module: Module | None, lines: list[str]) -> None:
        """Add a file; `module` is ``None`` for one that cannot be read."""
        if module is None:
            self._unreadable.append(path)
            return
        for found in module.defines(self._name) if self._name else module.definitions:
            self._counts[0] += 1
            if len(self._symbols) < self._definitions:
                self._symbols.append({**found._asdict(), "file": path})
        if self._references is None:
            return
        for line, inside in module.refers(self._name):
            self._counts[1] += 1
            if len(self._uses) < self._references:
                text = lines[line - 1].strip()[:MAX_TEXT]
                self._uses.append({"file": path, "line": line, "text": text, "inside": inside})

    def answer(self) -> dict[str, Any]:
        """Return it as builtins."""
        return {
            "symbol_count": self._counts[0],
            "reference_count": self._counts[1],
            "symbols": self._symbols,
            "references": self._uses,
            "unreadable": self._unreadable,
        }


def _below(paths: list[str], prefix: str, start: int) -> range:
    """Return the numbers of the sorted `paths` in the folder `prefix`, from `start` on."""
    if not prefix:
        return range(start, len(paths))
    first = bisect_left(paths, prefix + "/")
    return range(max(start, first), bisect_left(paths, prefix + "0"))  # "0" comes after "/"


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)


def _is_settled(status: os.stat_result, now: int) -> bool:
    return status.st_ctime_ns + _SETTLED_NS < now


def _size(module: Module | None) -> int:
    return module.size if module else _EMPTY_SIZE
