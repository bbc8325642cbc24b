"""Changing files: the folder of a resolved path, and what is done in it in one step.

The path was resolved before; here no link is followed at all, so what has been swapped in
meanwhile is met as an error. A file's new bytes go to a temporary file beside it, whose name
begins with ``.punie-``, and take its place by `os.rename` or `os.link`: whoever looks finds the
old bytes or the new ones. What fails leaves nothing behind. A process that is killed on the way
may leave the temporary file: the next change in that folder takes it away (`tidy`).
"""

import errno
import os
import re
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from punie_workers.interp.failures import Failure, Kind, from_os_error
from punie_workers.interp.paths import Root, check_regular
from punie_workers.interp.protected import is_protected, is_repository
from punie_workers.interp.texts import MAX_SIZE, fingerprint

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SWAPPED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_TEMPORARY: Final = re.compile(r"\.punie-[0-9a-f]{16}")
LEFT_BEHIND: Final = 60.0
"""Seconds after which nobody is at work on a temporary file any more."""


def check_protected(root: Root, asked: str, path: str) -> None:
    """Raise `Failure` when the resolved `path`, asked for as `asked`, is protected, or in a folder
    that git takes for a repository's own, or would make one of it."""
    if is_protected(path):
        message = f"'{asked}' is protected: Punie changes nothing in .git, nor in .punie"
        raise Failure(Kind.PROTECTED, message)
    folders = _Folders(root)
    try:
        folders.enter(path.split("/"), make=False)
    except Failure as failure:
        if failure.kind is Kind.PROTECTED:
            raise _of_repository(asked) from None
    except OSError:
        return  # it cannot be entered: whatever changes it meets that too
    finally:
        folders.close()


def tidy(fd: int) -> None:
    """Take away the temporary files in a folder that an edit of ours left behind when it was
    killed: of that name, regular, our user's, and as old as no edit gets."""
    with suppress(FileNotFoundError, PermissionError):  # another did; a folder that shows nothing
        for name in filter(_TEMPORARY.fullmatch, os.listdir(fd)):
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if _is_left_behind(status):
                os.unlink(name, dir_fd=fd)


def _is_left_behind(status: os.stat_result) -> bool:
    ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
    return ours and status.st_nlink == 1 and status.st_ctime < time.time() - LEFT_BEHIND


class Content(NamedTuple):
    """What a file held."""

    data: bytes
    status: os.stat_result


class Place:
    """A name in an open folder; `path` is the whole resolved path. Methods raise `Failure` or
    `OSError`, and then have changed nothing."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self.name = path.rpartition("/")[2]

    def read(self) -> Content:
        """Return the regular file that stands here."""
        with os.fdopen(self._open(), "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(MAX_SIZE + 1)
        if len(data) > MAX_SIZE:
            message = f"'{self.path}' is larger than {MAX_SIZE // 1024**2} MB"
            raise Failure(Kind.TOO_LARGE, message)
        return Content(data, status)

    def expect(self, before: str) -> Content:
        """Return the file if its fingerprint is `before`."""
        found = self.read()
        if fingerprint(found.data) != before:
            raise _changed(self.path)
        return found

    def create(self, data: bytes) -> None:
        """Put a file where none is."""
        with self._temporary(data, None) as name:
            self._take(self, name)

    def replace(self, data: bytes, before: str) -> None:
        """Put a file in the place of the one whose fingerprint is `before`, with its mode, and
        its owner where the system allows it."""
        with self._temporary(data, self.expect(before).status) as name:
            self.expect(before)
            os.rename(name, self.name, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def remove(self, before: str) -> None:
        """Delete the file whose fingerprint is `before`."""
        self.expect(before)
        os.unlink(self.name, dir_fd=self.fd)

    def move_to(self, to: Place, before: str) -> None:
        """Give the file whose fingerprint is `before` another name, which none must have."""
        self.expect(before)
        linked = to._take(self, self.name)
        try:
            moved = to.expect(before).status
            if linked:
                self._part_from(moved)
        except BaseException:
            if linked:
                os.unlink(to.name, dir_fd=to.fd)
            else:
                self._take(to, to.name)
            raise

    def sync(self) -> None:
        """Make the folder's names durable."""
        os.fsync(self.fd)

    def _open(self) -> int:
        try:
            status = os.stat(self.name, dir_fd=self.fd, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                raise _changed(self.path)
            check_regular(self.path, status)
            fd = os.open(self.name, _READ, dir_fd=self.fd)
        except OSError as error:
            if error.errno in _SWAPPED:
                raise _changed(self.path) from None
            raise
        try:
            check_regular(self.path, os.fstat(fd))
        except Failure:
            os.close(fd)
            raise
        return fd

    def _part_from(self, moved: os.stat_result) -> None:
        """Drop the old name of a file that has the new one too."""
        with suppress(FileNotFoundError):  # another did
            here = os.stat(self.name, dir_fd=self.fd, follow_symlinks=False)
            if not os.path.samestat(here, moved):
                raise _changed(self.path)
            os.unlink(self.name, dir_fd=self.fd)

    def _take(self, source: Place, name: str) -> bool:
        """Give what is called `name` at `source` this name, never over another file. Whether it
        has both names now: not so where the file system knows no hard links."""
        try:
            os.link(
                name, self.name, src_dir_fd=source.fd, dst_dir_fd=self.fd, follow_symlinks=False
            )
        except FileExistsError:
            raise _exists(self.path) from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._reserve_and_take(source, name)
            return False
        return True

    def _reserve_and_take(self, source: Place, name: str) -> None:
        try:
            os.close(os.open(self.name, _CREATE, 0o600, dir_fd=self.fd))
        except FileExistsError:
            raise _exists(self.path) from None
        try:
            os.rename(name, self.name, src_dir_fd=source.fd, dst_dir_fd=self.fd)
        except BaseException:
            os.unlink(self.name, dir_fd=self.fd)
            raise

    @contextmanager
    def _temporary(self, data: bytes, like: os.stat_result | None) -> Generator[str]:
        """Yield the name of a durable file with `data`, gone afterwards if it still is there."""
        name = f".punie-{os.urandom(8).hex()}"
        fd = os.open(name, _CREATE, 0o600 if like else 0o666, dir_fd=self.fd)
        try:
            with os.fdopen(fd, "wb") as file:
                if like is not None:
                    _make_alike(fd, like)
                file.write(data)
                file.flush()
                os.fsync(fd)
            yield name
        finally:
            with suppress(FileNotFoundError):  # renamed
                os.unlink(name, dir_fd=self.fd)


def _make_alike(fd: int, like: os.stat_result) -> None:
    mine = os.fstat(fd)
    if (mine.st_uid, mine.st_gid) != (like.st_uid, like.st_gid):
        with suppress(PermissionError):  # then it is ours, as with any editor
            os.fchown(fd, like.st_uid, like.st_gid)
    os.fchmod(fd, stat.S_IMODE(like.st_mode) & 0o777)


def _changed(path: str) -> Failure:
    return Failure(Kind.CHANGED, f"'{path}' changed meanwhile: read it again")


def _of_repository(path: str) -> Failure:
    message = f"'{path}' is protected: git takes its folder for a repository's own, like a .git"
    return Failure(Kind.PROTECTED, message)


def _exists(path: str) -> Failure:
    return Failure(Kind.EXISTS, f"'{path}' exists already")


@contextmanager
def opened(root: Root, path: str, *, make: bool = False) -> Generator[Place]:
    """Yield the place of a resolved path. With `make`, missing folders are made, and are gone
    again when what happens inside fails. `OSError` becomes `Failure`."""
    folders = _Folders(root)
    try:
        folders.enter(path.split("/"), make=make)
        yield Place(folders.last(), path)
    except BaseException as error:
        folders.unmake()
        if not isinstance(error, OSError):
            raise
        raise from_os_error(error, path, "change") from None
    finally:
        folders.close()


class _Folders:
    """The folders from the root to a file, each held open."""

    def __init__(self, root: Root) -> None:
        self._fds = [os.open(".", _FOLDER, dir_fd=root.fd)]
        self._made: list[tuple[int, str]] = []

    def last(self) -> int:
        return self._fds[-1]

    def enter(self, names: list[str], *, make: bool) -> None:
        """Open every folder but the last of `names`, which is a file's. Raises `Failure` where
        that would change a repository's own folder."""
        for at, name in enumerate(names):
            if is_repository(self.last(), name):
                raise _of_repository("/".join(names))
            if at == len(names) - 1:
                return
            try:
                self._fds.append(self._open(name, make=make))
            except OSError as error:
                if error.errno in _SWAPPED:
                    raise _changed("/".join(names)) from None
                raise

    def _open(self, name: str, *, make: bool) -> int:
        parent = self.last()
        try:
            return os.open(name, _FOLDER, dir_fd=parent)
        except FileNotFoundError:
            if not make:
                raise
        with suppress(FileExistsError):  # another was faster
            os.mkdir(name, dir_fd=parent)
            self._made.append((parent, name))
            os.fsync(parent)
        return os.open(name, _FOLDER, dir_fd=parent)

    def unmake(self) -> None:
        for parent, name in reversed(self._made):
            with suppress(OSError):  # no longer empty: another uses it
                os.rmdir(name, dir_fd=parent)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
