"""Which repository a project is in, and what of its configuration must be known beforehand."""

import os
import stat
from typing import Any

from punie_workers.interp.failures import Failure, Kind
from punie_workers.interp.paths import Root

MAX_INDEX = 512 * 1024 * 1024
"""Bytes of the largest index that is copied."""

_PARTS = 3
_OF_USER = (b"global", b"system")
_CHUNK = 1024 * 1024


def place(root: Root, path: str) -> dict[str, Any]:
    """Return a descriptor of the root, for the host half to close; `path` resolved, ``""`` for
    the root; the `prefix` of the root in the work tree; `up`, the work tree relative to the root;
    `ceiling`, the folder where git's own search shall stop, ``""`` for none."""
    asked = root.locate(path)
    top, prefix = _work_tree(root.path)
    return {
        "root": root.path,
        "path": asked,
        "prefix": "/".join(prefix),
        "up": "/".join(".." for _ in prefix) or ".",
        "ceiling": "" if top == "/" else os.path.split(top)[0],
        "fd": os.dup(root.fd),
    }


def _work_tree(folder: str) -> tuple[str, list[str]]:
    """Return the nearest folder with a ``.git`` and the names that lead down from there. Git finds
    the same one, but might believe a ``core.worktree`` that points elsewhere."""
    names: list[str] = []
    while not os.path.lexists(f"{folder}/.git"):
        parent, name = os.path.split(folder)
        if parent == folder:
            raise Failure(Kind.NOT_A_REPOSITORY, "this project is in no git repository")
        names.insert(0, name)
        folder = parent
    return folder, names


def settings(output: bytes) -> dict[str, Any]:
    """Return from ``git config --null --show-scope --list`` the `filters`, keys of every filter
    driver; `excludes`, the ignore file that the user (not the repository) names, or ``None``;
    `safe`, the folders that the user trusts whoever owns them; and `guarded`, whether settings of
    the environment count: git before 2.31 does not know them."""
    filters: list[bytes] = []
    excludes: bytes | None = None
    safe: list[bytes] = []
    guarded = False
    parts = output.split(b"\0")[:-1]
    for scope, setting in zip(parts[::2], parts[1::2], strict=True):
        key, _, value = setting.partition(b"\n")
        if key.startswith(b"filter.") and key.count(b".") >= _PARTS - 1:
            filters.append(key)
        elif scope == b"command":
            guarded = True
        elif scope in _OF_USER and key == b"core.excludesfile":
            excludes = value
        elif scope in _OF_USER and key == b"safe.directory":
            safe.append(value)
    return {
        "filters": sorted(set(filters)),
        "excludes": excludes,
        "safe": safe,
        "guarded": guarded,
    }


def copy_index(root: Root, path: str) -> dict[str, Any]:
    """Copy the index at `path`, relative to the root or absolute, to a `folder` made for it, which
    the host half removes. Without one the folder is empty: git takes that for an empty index."""
    folder = f"{os.environ.get('TMPDIR') or '/tmp'}/punie-git-{os.urandom(8).hex()}"
    os.mkdir(folder, 0o700)  # noqa: PTH102 - tempfile and pathlib are megabytes in an interpreter
    try:
        _copy(path if path.startswith("/") else f"{root.path}/{path}", f"{folder}/index")
    except BaseException:
        for name in os.listdir(folder):  # noqa: PTH208
            os.unlink(f"{folder}/{name}")  # noqa: PTH108
        os.rmdir(folder)  # noqa: PTH106
        raise
    return {"folder": folder}


def _copy(source: str, target: str) -> None:
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_INDEX:
            message = f"the index of this repository is no file, or larger than {MAX_INDEX} bytes"
            raise Failure(Kind.GIT_FAILED, message)
        copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(copy, "wb") as sink:
            while chunk := file.read(_CHUNK):
                sink.write(chunk)
    # Git compares a file that is no older than the index by content: a young copy would hide it.
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
