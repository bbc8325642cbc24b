"""What a program may not change in a writable project: files that make other programs start.

Git runs its hooks, and programs that its configuration names, whenever the user works in the
repository; editors start tasks and servers that their folders name. So these are mounted
read-only over themselves. What is not there yet gets a placeholder for as long as the program
runs: else it could be created. A folder that contains one is mounted over itself too, writable: a
mount point cannot be renamed, else another folder could be put in its place.

All is found by descriptor, no symbolic link is followed. On a file system that takes ``.GIT`` for
``.git`` both are one entry, so the mount covers both.
"""

import errno
import os
import posixpath
import stat
import sys
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, NamedTuple

from punie_protocol.errors import PunieError
from punie_workers.sandbox import placeholders
from punie_workers.sandbox.confinement import refused
from punie_workers.sandbox.names import IN_REPOSITORY, IN_ROOT, Absent
from punie_workers.sandbox.repositories import MAX_DEPTH, inner, named_in_config

_RETRIES: Final = 20
_NAMED: Final = os.O_PATH if sys.platform == "linux" else os.O_RDONLY
_ANY: Final = _NAMED | os.O_NOFOLLOW | os.O_CLOEXEC
_INSTEAD: Final = "put what it leads to in its place, or take it away"


class Guarded(NamedTuple):
    """Something mounted over itself: its path from the root, a descriptor, and whether it stays
    writable, so that only its name is held."""

    path: str
    fd: int
    writable: bool


@contextmanager
def guard(
    root: int,
    hidden: Iterable[str] = (),
    *,
    lasting: bool = False,
    depth: int = MAX_DEPTH,
    of: str = "the project",
) -> Generator[tuple[Guarded, ...]]:
    """Yield what is mounted over itself in the folder `root`, which is that `of` the project or
    another that programs may write to, parents first, with repositories up to `depth` levels down;
    also the folders on the way to what is `hidden` there, given from the root without links: under
    another name the next program would see it. For a `lasting` program repositories' own folders
    are read-only as a whole: outside, git replaces files in them, which takes away the mounts of
    those files, but not that of the folder. Owns the descriptors and placeholders until it is left;
    nothing may run in the sandbox any more by then.
    Raises `PunieError` with `Denied` when something cannot be held: a symbolic link in the place
    of a protected name, or on the way to one."""
    with ExitStack() as stack:
        held = _Held(stack, root, of)
        for rule in IN_ROOT:
            held.name(rule.name, rule.absent)
        repositories = _guard_repositories(held, depth, lasting=lasting)
        for path in hidden:
            with suppress(FileNotFoundError):
                held.folder(posixpath.dirname(path))
        if lasting:
            held.close(repositories)
        yield held.in_order()


def _guard_repositories(held: _Held, depth: int, *, lasting: bool) -> list[str]:
    """Return the folders that are repositories' own."""
    found: list[str] = []
    if not held.is_repository(".git"):
        held.name(".git", Absent.FOLDER)
    for path in inner(held.root, depth):
        if not held.is_repository(path):
            held.name(path, Absent.NOTHING)
            continue
        found.append(path)
        held.folder(path)
        for rule in IN_REPOSITORY:
            held.name(f"{path}/{rule.name}", Absent.NOTHING if lasting else rule.absent)
        for named in named_in_config(held.root, path):
            held.name(named, Absent.FOLDER)
    return found


def tidy(root: str) -> None:
    """Take away what a killed program's protection left in a project's folder. Blocks for less than
    a millisecond, or as long as the disk takes. What cannot be taken away stays."""
    names = [rule.name for rule in IN_ROOT] + [f".git/{rule.name}" for rule in IN_REPOSITORY]
    for name in (*names, ".git/info", ".git"):
        with suppress(OSError, PunieError), ExitStack() as stack:
            above, _, last = name.rpartition("/")
            parent = os.open(f"{root}/{above}", _ANY | os.O_DIRECTORY)
            stack.callback(os.close, parent)
            found = os.open(last, _ANY, dir_fd=parent)
            stack.callback(os.close, found)
            if used := placeholders.use(parent, last, name, found):
                used.give_back()


def replaced(root: int, names: Iterable[tuple[str, os.stat_result]]) -> str | None:
    """Return the first path from the folder `root` that is no longer what it was; ``None`` when
    all are."""
    for path, was in names:
        try:
            now = os.stat(path, dir_fd=root, follow_symlinks=False)
        except OSError:
            return path
        if not os.path.samestat(was, now):
            return path
    return None


class _Held:
    """What is held of one folder, and how it came about."""

    def __init__(self, stack: ExitStack, root: int, of: str) -> None:
        self.root = root
        self._of = of
        self._stack = stack
        self._found: dict[str, Guarded] = {}
        self._folders: dict[str, int] = {"": root}

    def in_order(self) -> tuple[Guarded, ...]:
        return tuple(sorted(self._found.values(), key=lambda one: one.path.split("/")))

    def close(self, folders: Iterable[str]) -> None:
        """Have folders that are held read-only as a whole."""
        for folder in folders:
            if folder in self._found:  # else one above it is
                closed = self._found[folder]._replace(writable=False)
                below = f"{folder}/"
                others = {path: x for path, x in self._found.items() if not path.startswith(below)}
                self._found = {**others, folder: closed}

    def is_repository(self, path: str) -> bool:
        """Whether git could take a folder for a repository's own. What is called ``.git`` and is
        none, as a placeholder or a pointer, is held as a whole."""
        with suppress(OSError):
            found = os.stat(path, dir_fd=self.root, follow_symlinks=False)
            os.stat(f"{path}/HEAD", dir_fd=self.root, follow_symlinks=False)
            return stat.S_ISDIR(found.st_mode)
        return False

    def folder(self, path: str) -> int:
        """Hold the name of a folder, and of those it is in; return its descriptor. Raises
        `FileNotFoundError` also for what is no folder."""
        if path not in self._folders:
            above, _, name = path.rpartition("/")
            parent = self.folder(above)
            fd = self._open(parent, name, path)
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                raise FileNotFoundError(path)
            self._folders[path] = fd
            self._found.setdefault(path, Guarded(path, fd, writable=True))
        return self._folders[path]

    def name(self, path: str, absent: Absent) -> None:
        """Make a path unchangeable, whether or not it exists. Raises `PunieError`."""
        if self._is_held(path):
            return
        above, _, name = path.rpartition("/")
        for _ in range(_RETRIES):
            try:
                parent = self._parent(above, absent)
                if parent is not None:
                    self._hold(parent, name, path, absent)
                return
            except FileNotFoundError:
                continue  # a placeholder was removed this moment
            except OSError as error:
                message = f"'{path}' of {self._of} cannot be protected: {error.strerror}"
                raise refused(message, "look at who owns it, and its folder") from None
        raise refused(f"'{path}' of {self._of} changes all the time", "try again")

    def _is_held(self, path: str) -> bool:
        parts = path.split("/")
        ways = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        return any(way in self._found and not self._found[way].writable for way in ways)

    def _parent(self, above: str, absent: Absent) -> int | None:
        """Return the folder of a protected name. Where there is none, the name is out of reach
        once the first missing folder on the way is held."""
        try:
            return self.folder(above)
        except FileNotFoundError:
            if absent in (Absent.FOLDER, Absent.FILE):
                self.name(above, Absent.FOLDER)
            return None

    def _hold(self, parent: int, name: str, path: str, absent: Absent) -> None:
        try:
            fd = self._open(parent, name, path)
        except FileNotFoundError:
            if not self._made(parent, name, path, absent):
                return
            fd = self._open(parent, name, path)
        if used := placeholders.use(parent, name, path, fd):
            self._stack.callback(used.give_back)
        self._found[path] = Guarded(path, fd, writable=False)

    def _made(self, parent: int, name: str, path: str, absent: Absent) -> bool:
        """Whether there is a placeholder now."""
        if absent is Absent.NOTHING:
            return False
        try:
            placeholders.make(parent, name, absent)
        except OSError as error:
            if error.errno == errno.EROFS or os.fstat(parent).st_uid != os.getuid():
                return False  # nor can a program
            message = f"'{path}' of {self._of} cannot be protected: {error.strerror}"
            raise refused(message, "make its folder writable for you") from None
        return True

    def _open(self, parent: int, name: str, path: str) -> int:
        """Open what is no symbolic link. The descriptor is closed with the rest."""
        fd = os.open(name, _ANY, dir_fd=parent)
        self._stack.callback(os.close, fd)
        status = os.fstat(fd)
        if stat.S_ISLNK(status.st_mode):
            message = f"'{path}' of {self._of} is a symbolic link: it cannot be protected"
            raise refused(message, _INSTEAD)
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            message = f"'{path}' of {self._of} has a second name: it cannot be protected"
            raise refused(message, f"make it a file of its own: cp {path} x && mv x {path}")
        return fd
