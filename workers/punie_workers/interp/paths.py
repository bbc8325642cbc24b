"""Paths inside one project, resolved at the moment of use.

A path is walked component by component from a descriptor of the root with ``O_NOFOLLOW``, so
nothing that is swapped meanwhile can lead outside. A symbolic link is read and its target walked
again from the root. A plain `os.path.realpath` check followed by `open` would leave a gap between
the two.
"""

import errno
import os
import stat
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from punie_workers.interp.failures import Failure, Kind, from_os_error

MAX_LINKS = 40
"""Links followed for one path, as in Linux."""

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WALK = _DIRECTORY | (os.O_PATH if sys.platform == "linux" else os.O_RDONLY)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class Resolved(NamedTuple):
    """Where a path leads: `path` from the root after symbolic links, `links` the places of those
    that were followed."""

    path: str
    exists: bool
    links: tuple[str, ...]


class Root:
    """The folder that no path leads out of. Owns one descriptor until `close`. Raises `Failure`
    when there is no such folder."""

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)
        self.fd = self._open()

    def renew(self) -> bool:
        """Go on in the folder that has the path now, whether or not it is another one: the old
        one may have been deleted, and made again. Raises `Failure` when there is none."""
        with suppress(OSError):
            if os.path.samestat(os.lstat(self.path), os.fstat(self.fd)):
                return False
        fd = self._open()
        os.close(self.fd)
        self.fd = fd
        return True

    def _open(self) -> int:
        try:
            return os.open(self.path, _WALK)
        except OSError as error:
            message = f"the project's folder {self.path} cannot be opened: {error.strerror}"
            raise Failure(Kind.NOT_FOUND, message) from None

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)

    def open_file(self, path: str) -> int:
        """Return a descriptor of the regular file at `path`; the caller closes it."""
        with self._walk(path) as (parent, name, _):
            if name is None:
                raise _not_a_file(path, stat.S_IFDIR)
            check_regular(path, os.stat(name, dir_fd=parent, follow_symlinks=False))
            fd = os.open(name, _READ, dir_fd=parent)
        try:
            check_regular(path, os.fstat(fd))
        except Failure:
            os.close(fd)
            raise
        return fd

    def open_directory(self, path: str) -> tuple[int, str]:
        """Return a descriptor of the folder at `path` and its resolved path relative to the root,
        ``""`` for the root itself; the caller closes the descriptor."""
        with self._walk(path, noun="folder") as (parent, name, resolved):
            if name is None:
                return os.dup(parent), resolved
            try:
                return os.open(name, _WALK, dir_fd=parent), resolved
            except NotADirectoryError:
                message = f"'{path}' is a file, not a folder"
                raise Failure(Kind.NOT_A_DIRECTORY, message) from None

    def open_place(self, path: str) -> tuple[int, str, str]:
        """Return a descriptor of the folder to work in, its resolved path relative to the root,
        and the name in it: that of the regular file at `path`, ``.`` for a folder. The caller
        closes the descriptor."""
        with self._walk(path, noun="file or folder") as (parent, name, resolved):
            if name is None:
                return os.dup(parent), resolved, "."
            try:
                return os.open(name, _WALK, dir_fd=parent), resolved, "."
            except NotADirectoryError:
                check_regular(path, os.stat(name, dir_fd=parent, follow_symlinks=False))
                return os.dup(parent), resolved.rpartition("/")[0], name

    def locate(self, path: str) -> tuple[str, bool]:
        """Return where `path` leads, relative to the root, and whether something is there. What
        is gone is where it was."""
        if "\0" in path:
            raise Failure(Kind.NOT_FOUND, f"no file {path!r} in this project")
        try:
            with self._walk(path) as (_, _, resolved):
                return resolved, True
        except Failure as failure:
            if failure.kind not in (Kind.NOT_FOUND, Kind.NOT_A_DIRECTORY):
                raise
        return _Walk(self, path).written(), False

    def resolve(self, path: str, *, missing: bool = False) -> Resolved:
        """Return where the file at `path` stands. With `missing`, it and the folders above it
        need not exist. The root itself, and a missing ``folder/``, are no files."""
        walk = _Walk(self, path, missing=missing)
        with self._walk(path, walk=walk) as (_, name, resolved):
            if name is None or (walk.absent and path.endswith(("/", "/."))):
                raise _not_a_file(path, stat.S_IFDIR)
            return Resolved(resolved, not walk.absent, tuple(walk.links))

    @contextmanager
    def _walk(
        self, path: str, noun: str = "file", walk: _Walk | None = None
    ) -> Generator[tuple[int, str | None, str]]:
        """Yield the descriptor of the last folder on the way, the name in it (``None`` when the
        path is that folder) and the resolved path. Errors below become `Failure`."""
        walk = walk or _Walk(self, path)
        try:
            yield walk.to_end()
        except FileNotFoundError:
            raise Failure(Kind.NOT_FOUND, f"no {noun} '{path}' in this project") from None
        except OSError as error:
            raise from_os_error(error, path) from None
        finally:
            walk.close()


def check_regular(path: str, status: os.stat_result) -> None:
    """Raise `Failure` for anything but a regular file."""
    if not stat.S_ISREG(status.st_mode):
        raise _not_a_file(path, status.st_mode)


def _not_a_file(path: str, mode: int) -> Failure:
    what = "a folder" if stat.S_ISDIR(mode) else "a special file"
    return Failure(Kind.NOT_A_FILE, f"'{path}' is {what}, not a file")


class _Walk:
    """One walk from the root. Owns the descriptors of the folders on the way. With `missing` it
    goes on by name where nothing exists any more, and `absent` is true."""

    def __init__(self, root: Root, path: str, *, missing: bool = False) -> None:
        self.absent = False
        self.links: list[str] = []
        self._missing = missing
        self._root = root
        self._asked = path
        self._links = 0
        self._names: list[str] = []
        self._fds: list[int] = []
        self._todo = self._relative(path)

    def to_end(self) -> tuple[int, str | None, str]:
        while self._todo:
            name = self._todo.pop()
            if name == "..":
                self._up()
            elif target := self._link(name):
                self.links.append("/".join([*self._names, name]))
                self._follow(target)
            elif self._todo:
                self._down(name)
            else:
                return self._here(), name, "/".join([*self._names, name])
        return self._here(), None, "/".join(self._names)

    def written(self) -> str:
        """Return the path as it is written, without a look at the disk."""
        names: list[str] = []
        for name in reversed(self._todo):
            if name != "..":
                names.append(name)
            elif not names:
                raise self._outside()
            else:
                names.pop()
        return "/".join(names)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)

    def _here(self) -> int:
        return self._fds[-1] if self._fds else self._root.fd

    def _relative(self, path: str) -> list[str]:
        """Return the components of `path` from the root, last first."""
        if "\0" in path:
            raise Failure(Kind.NOT_FOUND, f"no file {path!r} in this project")
        if path.startswith("/"):
            path = self._inside(path)
        return [name for name in reversed(path.split("/")) if name not in ("", ".")]

    def _inside(self, path: str) -> str:
        root = self._root.path
        if path.rstrip("/") == root or root == "/":
            return path.removeprefix(root)
        if not path.startswith(root + "/"):
            raise self._outside()
        return path.removeprefix(root + "/")

    def _up(self) -> None:
        if self.absent:
            raise FileNotFoundError(errno.ENOENT, "no folder to leave")
        if not self._names:
            raise self._outside()
        self._names.pop()
        os.close(self._fds.pop())

    def _down(self, name: str) -> None:
        if not self.absent:
            self._fds.append(os.open(name, _WALK, dir_fd=self._here()))
        self._names.append(name)

    def _link(self, name: str) -> str | None:
        if self.absent:
            return None
        try:
            return os.readlink(name, dir_fd=self._here())
        except FileNotFoundError:
            if not self._missing:
                raise
            self.absent = True
            return None
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise

    def _follow(self, target: str) -> None:
        self._links += 1
        if self._links > MAX_LINKS:
            raise Failure(Kind.IO, f"'{self._asked}': too many symbolic links")
        if target.startswith("/"):
            parts = self._relative(target)
            self.close()
            self._fds, self._names = [], []
        else:
            parts = self._relative(target)
        self._todo += parts

    def _outside(self) -> Failure:
        return Failure(Kind.OUTSIDE_ROOT, f"'{self._asked}' is outside this project")
