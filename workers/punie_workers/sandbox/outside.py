"""What a project or a user's ``PATH`` needs of the machine besides the system, read-only.

A project's files say where its Python and its repository are: they are its author's, so nothing
is shown because they name it, but because it is what they say it is. A folder with secrets, the
home, and what contains the home are never shown.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from punie_workers.sandbox import machine
from punie_workers.sandbox.view import Shown, within

SECRET: Final = frozenset(
    {".ssh", ".aws", ".azure", ".gnupg", ".kube", ".docker", ".netrc", ".git-credentials", ".pki"}
    | {".password-store", ".config", ".mozilla", ".thunderbird", ".npmrc", ".pypirc", "keyrings"}
    | {".local/state", ".oci", ".terraform.d", ".vault-token", ".gem", ".m2", ".cache"}
)
"""Names in a home folder that programs keep secrets in."""
ENVIRONMENTS: Final = (".venv", "venv")
"""Folders of a project that may hold its Python environment."""
MAX_TEXT: Final = 64 * 1024
"""Bytes that are read of a file that says where something is."""
_SHARED_PREFIX: Final = ".local"
_DATA: Final = ".local/share"
_TOOLS: Final = frozenset({"uv", "pipx", "pnpm", "mise", "rtx", "fnm"})
"""What is shown below `_DATA`, where keyrings are too: places of programs."""
_MAX_LINKS: Final = 10
_PREFIX_PARTS: Final = ("lib", "lib64", "libexec", "versions")
_SHARED: Final = ("~", "~/.local", "~/.cargo")
"""Parents of a ``bin`` that are no installation of one thing."""


class Programs(NamedTuple):
    """Of a ``PATH``: the folders that go on it inside, and what is shown for them."""

    path: list[str]
    shown: list[str]


def programs(path: str, home: str, root: str | None = None) -> Programs:
    """Return what of the user's ``PATH`` is to be seen: folders of the system, and others that
    hold programs. What is in the project `root` is seen anyway."""
    found = Programs([], [])
    places = [*machine.folders(), *([] if root is None else [root])]
    for folder in dict.fromkeys(path.split(os.pathsep)):
        if not folder.startswith("/"):
            continue
        real = os.path.realpath(folder)
        if any(within(real, place) for place in places):
            found.path.append(real)
        elif _holds_programs(folder) and _is_fit(folder, home):
            found.path.append(folder)
            found.shown.append(_installation(folder, home))
            found.shown.extend(_needed_by(folder, home))
    return found


def shown(root: str | None, home: str, write: Iterable[Shown]) -> Iterator[Shown]:
    """Yield what a project needs, where programs can change `write` besides."""
    if root is None:
        return
    places = [place.source for place in write]
    for path, real in of_project(root, home, places):
        inside = any(within(path, place) for place in (root, *places))
        yield from machine.as_named(real if inside else path, real)


class Named(NamedTuple):
    """Something outside a project: as it is written there, and its real path."""

    path: str
    real: str


def of_project(root: str, home: str, writable: Sequence[str] = ()) -> list[Named]:
    """Return the Python that the environments of a project were made from, and the repository that
    a linked work tree, a submodule or a folder of a repository belongs to. A program may swap
    links on the way at any moment, so each name is resolved once, and its real path is what was
    looked at: none that lies in the project or in other `writable` places."""
    pythons = [prefix for name in ENVIRONMENTS for prefix in _pythons(Path(root, name))]
    parts = [part for prefix in pythons for part in _whole_or_parts(prefix, home)]
    wanted = [*parts, *_repositories(Path(root), home)]
    seen = (root, *machine.folders(), *writable)
    return [
        one
        for one in dict.fromkeys(wanted)
        if all(_is_fit_name(name, home) for name in one)
        and not any(within(one.real, place) for place in seen)
    ]


def _holds_programs(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.is_file() and os.access(entry.path, os.X_OK) for entry in entries)
    except OSError:
        return False


def _installation(folder: str, home: str) -> str:
    """Return what a folder of programs needs: its parent, when that is the place of one thing, as
    ``~/.pyenv`` or an environment, and no folder that somebody works in."""
    place = Path(folder)
    if not any(part.startswith(".") for part in place.parent.parts):
        return folder
    shared = [home + one[1:] for one in _SHARED]
    if place.name not in ("bin", "shims") or str(place.parent) in shared:
        return folder
    if not _is_fit(str(place.parent), home):
        return folder
    whole = any((place.parent / part).is_dir() for part in _PREFIX_PARTS)
    return str(place.parent) if whole else folder


def _needed_by(folder: str, home: str) -> list[str]:
    """Return what programs of a folder need that lies elsewhere: rustup's toolchains, Pythons and
    tools that uv or pipx made links to."""
    if folder == f"{home}/.cargo/bin":
        return [f"{home}/.rustup"]
    if folder == f"{home}/.local/bin":
        shared = f"{home}/.local/share"
        return [f"{shared}/uv/python", f"{shared}/uv/tools", f"{shared}/pipx/venvs"]
    return []


def _is_fit(path: str, home: str) -> bool:
    """Whether a path may be shown, by what it is called and where it leads."""
    return all(_is_fit_name(one, home) for one in (path, os.path.realpath(path)))


def _is_fit_name(path: str, home: str) -> bool:
    """Whether it is not the home or above it, not a place of secrets or in one."""
    if path == "/" or (home and within(home, path)):
        return False
    return not (home and within(path, home) and _is_secret(path[len(home) + 1 :]))


def _is_secret(path: str) -> bool:
    """Whether a path below the home is one of secrets, or above some."""
    first, second, *rest = (*path.split("/"), "")
    if path == _SHARED_PREFIX:
        return True
    if f"{first}/{second}" == _DATA:
        return not rest or rest[0] not in _TOOLS
    return first in SECRET or f"{first}/{second}" in SECRET


def _pythons(environment: Path) -> Iterator[Named]:
    """Yield the prefixes of the Python that an environment names, as far as they are some."""
    settings = _text(environment / "pyvenv.cfg")
    if not settings:
        return
    named = re.search(r"^home *= *(/.*?) *$", settings, re.MULTILINE | re.IGNORECASE)
    folders = [Path(named[1])] if named else []
    folders += [link.parent for link in _links(environment / "bin" / "python")]
    for prefix in [_resolved(folder.parent) for folder in folders]:
        if is_python(Path(prefix.real)):
            yield prefix


def _resolved(path: Path) -> Named:
    return Named(str(path), os.path.realpath(path))


def _whole_or_parts(prefix: Named, home: str) -> list[Named]:
    """Return an installation, or what makes it one where it shares a folder with other things."""
    if prefix.real == "/" or all(_is_fit_name(name, home) for name in prefix):
        return [prefix]
    place = Path(prefix.real)
    return [_resolved(part) for part in (place / "bin", *place.glob("lib*/python3.*"))]


def _links(path: Path) -> Iterator[Path]:
    """Yield where a chain of links leads, step by step."""
    for _ in range(_MAX_LINKS):
        try:
            path = Path(os.path.normpath(path.parent / path.readlink()))
        except OSError:
            return
        yield path


def is_python(prefix: Path) -> bool:
    """Whether a folder is the prefix of a Python installation, with its standard library."""
    programs, libraries = prefix.glob("bin/python3*"), prefix.glob("lib*/python3.*/os.py")
    return any(programs) and any(libraries)


def _repositories(root: Path, home: str) -> Iterator[Named]:
    """Yield folders of a repository that lie outside `root`. Each must know `root` as its work
    tree: a ``.git`` file can name anything."""
    pointer = _text(root / ".git")
    if pointer.startswith("gitdir:"):
        folder = Path(os.path.realpath(root / pointer[7:].strip()))
        found = None if folder.is_relative_to(root) else _of_work_tree(root, folder)
    else:
        found = None if os.path.lexists(root / ".git") else _above(root, home)
    if found is not None:
        yield found


def _of_work_tree(root: Path, folder: Path) -> Named | None:
    """Return the repository of `folder`, which is real."""
    if _text(folder / "gitdir").strip() == f"{root}/.git":
        common = _normal(folder / _text(folder / "commondir").strip())
        if _is_repository(common) and folder.is_relative_to(common / "worktrees"):
            return Named(str(common), str(common))
    elif _is_repository(folder) and _work_tree_of(folder) == root:
        return Named(str(folder), str(folder))
    return None


def _work_tree_of(folder: Path) -> Path | None:
    named = re.search(r"^\s*worktree\s*=\s*(.+?)\s*$", _text(folder / "config"), re.MULTILINE)
    return _normal(folder / named[1]) if named else None


def _above(root: Path, home: str) -> Named | None:
    """Return the repository of the nearest folder above that has one, but not that of the home: who
    keeps their settings in one keeps secrets in it."""
    for folder in root.parents:
        if home and within(home, str(folder)):
            return None
        found = _resolved(folder / ".git")
        if _is_repository(Path(found.real)):
            return found
    return None


def _is_repository(folder: Path) -> bool:
    parts = [(folder / name).is_dir() for name in ("objects", "refs")]
    return all(parts) and (folder / "HEAD").is_file()


def _normal(path: Path) -> Path:
    return Path(os.path.normpath(path))


def _text(path: Path) -> str:
    """Return the beginning of a regular file; empty when there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return ""
    try:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        return os.read(fd, MAX_TEXT).decode("utf-8", "replace") if regular else ""
    finally:
        os.close(fd)
