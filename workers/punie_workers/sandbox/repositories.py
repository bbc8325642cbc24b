"""Where git's own folders are in a project, and what their configuration names. Read by
descriptor; no symbolic link is followed."""

import os
import re
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from posixpath import join, normpath
from typing import Final

from punie_workers.sandbox.confinement import refused

MAX_DEPTH: Final = 3
MAX_FOLDERS: Final = 2_000
"""How far repositories inside the project are looked for: levels, and folders in all. What lies
deeper is not found."""
MAX_CONFIG: Final = 256 * 1024
_SKIPPED: Final = frozenset({".venv", "venv", "node_modules", "__pycache__", ".tox", "target"})
_OWN: Final = frozenset({"HEAD", "objects", "refs"})
"""Names in a folder that git takes for a repository's own."""
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_SETTING: Final = re.compile(
    r"^\s*(?:\[[^\]]*\]\s*)?(hookspath|path)\s*=\s*\"?([^\"\n]+?)\"?\s*$", re.I | re.M
)


def inner(root: int, depth: int = MAX_DEPTH) -> Iterator[str]:
    """Yield the paths from the root of every ``.git`` that is no link, files too, in folders at
    most `depth` levels down, and of the folders of its submodules; and of folders of other names
    that are a repository's own: bare ones, those of ``git init --separate-git-dir``."""
    looked = 0
    todo = deque([("", 0)])
    while todo and looked < MAX_FOLDERS:
        folder, level = todo.popleft()
        looked += 1
        entries = _entries(root, folder)
        if folder and dict(entries).keys() >= _OWN:
            yield folder
            yield from _modules(root, f"{folder}/modules")
            continue
        for name, is_folder in entries:
            path = f"{folder}/{name}" if folder else name
            if name == ".git":
                yield path
                yield from _modules(root, f"{path}/modules") if is_folder else ()
            elif is_folder and level < depth and name not in _SKIPPED:
                todo.append((path, level + 1))


def _modules(root: int, folder: str) -> Iterator[str]:
    """Yield the folders of submodules: those that have a ``HEAD``. Their names may have parts.
    Raises `PunieError` for more than can be looked at: a program may have made them."""
    todo = deque([folder])
    looked = 0
    while todo:
        if (looked := looked + 1) > MAX_FOLDERS:
            message = f"'{folder}' of the project holds more than {MAX_FOLDERS} folders"
            raise refused(f"{message}: submodules in it cannot be protected", "clear it up")
        path = todo.popleft()
        entries = _entries(root, path)
        if any(name == "HEAD" for name, _ in entries):
            yield path
            todo.append(f"{path}/modules")
        else:
            todo += [f"{path}/{name}" for name, is_folder in entries if is_folder]


def _entries(root: int, path: str) -> list[tuple[str, bool]]:
    """Return the names in a folder, links left out, and which are folders."""
    try:
        fd = os.open(path or ".", _FOLDER, dir_fd=root)
    except OSError:
        return []
    try:
        with os.scandir(fd) as entries:
            return [
                (entry.name, entry.is_dir(follow_symlinks=False))
                for entry in entries
                if not entry.is_symlink()
            ]
    finally:
        os.close(fd)


def named_in_config(root: int, repository: str) -> list[str]:
    """Return the paths in the project that a repository's configuration names as the place of
    hooks or as more configuration, and those that links in its ``hooks`` lead to."""
    found = [normpath(path) for path in _named(root, repository)]
    found = [path for path in found if path != "." and not path.startswith(("/", "../", ".git/"))]
    return list(dict.fromkeys(path for path in found if path != ".."))


def _named(root: int, repository: str) -> Iterator[str]:
    here = str(Path(f"/proc/self/fd/{root}").readlink())
    for key, value in _SETTING.findall(_text(root, f"{repository}/config")):
        base = repository if key.lower() == "path" else join(repository, "..")
        yield _from_root(here, join(base, value))
    for link, target in _links(root, f"{repository}/hooks"):
        yield _from_root(here, join(link, target))


def _from_root(root: str, path: str) -> str:
    return os.path.relpath(path, root) if path.startswith("/") else path


def _links(root: int, folder: str) -> list[tuple[str, str]]:
    try:
        fd = os.open(folder, _FOLDER, dir_fd=root)
    except OSError:
        return []
    try:
        with os.scandir(fd) as entries:
            names = [entry.name for entry in entries if entry.is_symlink()]
        return [(folder, os.readlink(name, dir_fd=fd)) for name in names]
    finally:
        os.close(fd)


def _text(root: int, path: str) -> str:
    try:
        fd = os.open(path, _FILE, dir_fd=root)
    except OSError:
        return ""
    try:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        return os.read(fd, MAX_CONFIG).decode("utf-8", "replace") if regular else ""
    finally:
        os.close(fd)
