"""The prefix cache's second tier: keys and values in files, so that a restart is warm.

One file a span (`kv_file` says what is in it), in a folder for each model's fingerprint: other
weights never share keys. Files form a tree as the trie's nodes do, parents are written before and
deleted after what continues them. Nothing that is found there is trusted, and nothing that goes
wrong there is an error of the host: a file that cannot be used is deleted with a log line, a disk
that cannot be written is not written any more.
"""

import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from punie_model_host.kv_arrays import LayerKV
from punie_model_host.kv_file import DamagedFile, Encoded, Head, read_head, read_layers
from punie_model_host.log import event
from punie_model_host.profile import KVQuantization
from punie_model_host.token_trie import TOKEN_BYTES, Stored

HOUR: Final = 3600.0
_SUFFIX: Final = ".kv.safetensors"
_FILE: Final = re.compile(r"[0-9a-f]{32}\.kv\.safetensors")
_TEMPORARY: Final = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{8}\.tmp")
_FOLDER: Final = re.compile(r"[0-9a-f]{32}")
_REFRESH_BATCH: Final = 64

_log = logging.getLogger(__name__)


def fingerprint(
    folder: Path,
    dtype: str,
    *,
    quantization: KVQuantization | None = None,
    adapter: Path | None = None,
) -> str:
    """Return what keys and values computed with the model in `folder` depend on, 32 hex digits:
    its configuration and that of an `adapter` folder, their weight files as far as names, sizes and
    times tell, the libraries that compute them, their `dtype`, and how they are packed. Raises
    `OSError`."""
    total = hashlib.blake2b((folder / "config.json").read_bytes(), digest_size=16)
    _add_files(total, folder, "model*.safetensors")
    total.update(f"\0{version('mlx')} {version('mlx-lm')} {dtype}".encode())
    if quantization is not None:
        total.update(f"\0{quantization.bits} bits by {quantization.group_size}".encode())
    if adapter is not None:
        total.update(b"\0" + (adapter / "adapter_config.json").read_bytes())
        _add_files(total, adapter, "*.safetensors")
    return total.hexdigest()


def _add_files(total: hashlib.blake2b, folder: Path, names: str) -> None:
    for path in sorted(folder.glob(names)):
        info = path.stat()
        total.update(f"\0{path.name} {info.st_size} {info.st_mtime_ns}".encode())


@dataclass(frozen=True, slots=True)
class _Neighbour:
    """Another model's folder."""

    path: Path
    size: int
    mtime: float


class KVTier:
    """The files of one model below `folder`; with those of other models, which go first, at most
    `budget` bytes. `write_bytes_per_hour` bounds what `allowed` lets through: a quarter of it at
    once. `clock` gives seconds since 1970. Single thread, one process at a time."""

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        budget: int,
        write_bytes_per_hour: int,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._base = folder
        self._folder = folder / fingerprint
        self._fingerprint = fingerprint
        self._budget = budget
        self._rate = write_bytes_per_hour
        self._clock = clock
        self._filled, self._level = clock(), self._burst
        self._files: dict[str, Stored] = {}
        self._neighbours: list[_Neighbour] = []
        self._forget: Callable[[Stored], None] = lambda stored: None
        self.nbytes = 0
        """Bytes of this model's files."""
        self.writable = True
        """Whether files can still be written and deleted; once false it stays."""

    # what is there

    def scan(self, forget: Callable[[Stored], None]) -> list[Stored]:
        """Return what files say they hold, each after the one it continues; their tensors are not
        read. `forget` is called from now on for each file that is deleted, after those that
        continue it."""
        self._forget = forget
        try:
            self._prepare()
            heads = {head.id: head for head in self._heads()}
            self._neighbours = sorted(self._others(), key=lambda other: other.mtime)
        except OSError as error:
            self._give_up("the folder cannot be used", error)
            return []
        self._link(heads)
        self._order_by_time()
        self._make_room(0, len(self._files) + 1)
        return list(self._files.values())

    def _prepare(self) -> None:
        self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        info = self._folder.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
            raise NotADirectoryError(20, "is not a folder of this user", str(self._folder))
        if stat.S_IMODE(info.st_mode) & 0o077:
            self._folder.chmod(0o700)

    def _heads(self) -> Iterator[Head]:
        for path in sorted(self._folder.iterdir()):
            if _TEMPORARY.fullmatch(path.name):
                self._remove(path)  # of a process that was killed while it wrote
            elif not _FILE.fullmatch(path.name):
                event(_log, logging.WARNING, "kv-file-skipped", file=path.name, reason="not ours")
            elif (head := self._head(path)) is not None:
                yield head

    def _head(self, path: Path) -> Head | None:
        try:
            head = read_head(path, self._fingerprint)
            if path.name != head.id + _SUFFIX:
                raise DamagedFile("has another name than its id")
        except (OSError, DamagedFile) as error:
            self._discard(path, error)
            return None
        return head

    def _link(self, heads: dict[str, Head]) -> None:
        """Make the tree of those whose parents are all there; delete the others."""
        children: dict[str, list[Head]] = {}
        for head in heads.values():
            children.setdefault(head.parent, []).append(head)
        waiting: list[tuple[Stored | None, Head]] = [(None, head) for head in children.get("", ())]
        while waiting:
            parent, head = waiting.pop()
            length = len(parent.tokens) // TOKEN_BYTES if parent else 0
            if (head.at == 0) if parent is None else (0 < head.at <= length):
                stored = Stored(head.id, parent, head.at, head.tokens, head.size, head.mtime)
                self._adopt(stored)
                waiting.extend((stored, child) for child in children.get(head.id, ()))
        for id in heads.keys() - self._files.keys():
            self._discard(self._path(id), "what it continues is missing")

    def _order_by_time(self) -> None:
        """Number the files by their times; none is older than what continues it."""
        times = {stored: stored.mtime for stored in self._files.values()}
        for stored in reversed(self._files.values()):
            if stored.parent is not None:
                times[stored.parent] = max(times[stored.parent], times[stored])
        parents_last = reversed(self._files.values())
        for stamp, stored in enumerate(sorted(parents_last, key=times.__getitem__), 1):
            stored.stamp = stamp

    def _others(self) -> Iterator[_Neighbour]:
        for path in self._base.iterdir():
            if path == self._folder or not _FOLDER.fullmatch(path.name) or path.is_symlink():
                continue
            try:
                infos = [file.lstat() for file in path.iterdir()]
            except OSError as error:
                event(_log, logging.WARNING, "kv-folder-left", folder=path.name, error=error)
                continue
            newest = max((info.st_mtime for info in infos), default=0.0)
            yield _Neighbour(path, sum(info.st_size for info in infos), newest)

    # reading

    def read(self, stored: Stored) -> list[LayerKV] | None:
        """Return the keys and values of a file, checked and evaluated; None when it cannot be used:
        then it, and all that continues it, has been forgotten."""
        try:
            return read_layers(self._path(stored.id), stored.id)
        except (OSError, DamagedFile) as error:
            self.drop(stored, error)
            return None

    def drop(self, stored: Stored, reason: object) -> None:
        """Delete a file that cannot be used, after all that continue it."""
        for file in reversed(list(self._files.values())):
            if file is not stored and _continues(file, stored):
                self._delete(file)
        event(_log, logging.WARNING, "kv-file-skipped", file=stored.id, reason=reason)
        self._delete(stored)

    # writing

    @property
    def allowed(self) -> bool:
        """Whether an idle host may write now. The last write may pass the limit, the next ones
        wait for it."""
        now = self._clock()
        gained = max(0.0, now - self._filled) * self._rate / HOUR
        self._filled, self._level = now, min(self._burst, self._level + gained)
        return self.writable and self._level > 0

    def write(
        self, parent: Stored | None, at: int, tokens: bytes, layers: Sequence[LayerKV], stamp: int
    ) -> Stored | None:
        """Write a file and return it; None when there is no room for it that something used
        before `stamp` has, or the disk takes nothing."""
        content = Encoded(self._fingerprint, parent.id if parent else "", at, tokens, layers)
        if not self.writable or not self._make_room(content.size, stamp):
            return None
        try:
            self._write(content)
        except OSError as error:
            self._give_up("a file cannot be written", error)
            return None
        self._level -= content.size
        stored = Stored(content.id, parent, at, tokens, content.size, self._clock(), stamp)
        self._adopt(stored)
        return stored

    def _write(self, content: Encoded) -> None:
        """A file appears whole or not at all, after a loss of power too."""
        temporary = self._folder / f".{content.id}.{secrets.token_hex(4)}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                content.write(stream)
                stream.flush()
                os.fsync(descriptor)
            temporary.rename(self._path(content.id))
        except BaseException:
            with contextlib.suppress(OSError):  # left for the next start
                temporary.unlink()
            raise

    def _make_room(self, size: int, stamp: int) -> bool:
        """Delete what was used least recently until `size` bytes fit; nothing, and False, if what
        was used since `stamp` leaves no room for them."""
        newer = sum(stored.size for stored in self._files.values() if stored.stamp >= stamp)
        if newer + size > self._budget:
            return False
        while self.nbytes + sum(other.size for other in self._neighbours) + size > self._budget:
            if self._neighbours:
                self._drop_neighbour()
            else:
                leaves = (stored for stored in self._files.values() if not stored.children)
                self._delete(min(leaves, key=lambda stored: stored.stamp))
        return True

    def _drop_neighbour(self) -> None:
        other = self._neighbours.pop(0)
        event(_log, logging.INFO, "kv-folder-deleted", folder=other.path.name, bytes=other.size)
        try:
            shutil.rmtree(other.path)
        except OSError as error:
            event(_log, logging.WARNING, "kv-folder-left", folder=other.path.name, error=error)

    def refresh(self) -> bool:
        """Write down that some files were used, each at most once an hour; True if more were."""
        used = [stored for stored in self._files.values() if stored.used]
        for stored in used[:_REFRESH_BATCH]:
            stored.used = False
            self._refresh(stored)
        return len(used) > _REFRESH_BATCH

    def _refresh(self, stored: Stored) -> None:
        now = self._clock()
        if not self.writable or now - stored.mtime < HOUR:
            return
        stored.mtime = now
        try:
            os.utime(self._path(stored.id), (now, now), follow_symlinks=False)
        except FileNotFoundError:
            return  # whoever deleted it is found out when it is read
        except OSError as error:
            self._give_up("a file cannot be touched", error)

    # housekeeping

    @property
    def _burst(self) -> float:
        return self._rate / 4

    def _path(self, id: str) -> Path:
        return self._folder / (id + _SUFFIX)

    def _adopt(self, stored: Stored) -> None:
        self._files[stored.id] = stored
        self.nbytes += stored.size
        if stored.parent is not None:
            stored.parent.children += 1

    def _delete(self, stored: Stored) -> None:
        assert not stored.children
        del self._files[stored.id]
        self.nbytes -= stored.size
        if stored.parent is not None:
            stored.parent.children -= 1
        self._remove(self._path(stored.id))
        self._forget(stored)

    def _discard(self, path: Path, reason: object) -> None:
        event(_log, logging.WARNING, "kv-file-skipped", file=path.name, reason=reason)
        self._remove(path)

    def _remove(self, path: Path) -> None:
        if not self.writable:
            return
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # a folder of that name, or a disk that is read-only now
            event(_log, logging.WARNING, "kv-file-left", file=path.name, error=error)

    def _give_up(self, what: str, error: OSError) -> None:
        self.writable = False
        event(_log, logging.ERROR, "kv-tier-not-written", reason=what, error=error)


def _continues(file: Stored, other: Stored) -> bool:
    parent = file.parent
    while parent is not None and parent is not other:
        parent = parent.parent
    return parent is other
