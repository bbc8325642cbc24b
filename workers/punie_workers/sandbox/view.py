"""What a program in the sandbox sees: from a `Confinement` and facts to mounts. Pure.

The file system is built from nothing. Later mounts lie over earlier ones::

    1  the system (/usr, /etc in part), read-only; /proc and /dev of its own
    2  empty folders in memory: /tmp, /var/tmp, /run, the user's home
    3  what is shown besides, parents before children: the project, folders that settings name,
       the project's Python, programs on the user's PATH
    4  empty things over what is hidden
    5  ``/proc``, ``/dev`` and the root itself are closed: nothing can be made beside the above
"""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Final

import msgspec

from punie_workers.sandbox.confinement import Confinement, refused

TEMPORARY: Final = 1024**3
"""Bytes that fit into ``/tmp``, and into the private home; the memory is taken when written."""
SMALL: Final = 64 * 1024**2
"""Bytes that fit into ``/run``, ``/var/tmp`` and ``/dev/shm`` each."""
CLOSED: Final = ("/proc", "/dev", "/")
"""What nothing can be made or changed in, beside what is mounted there."""


class Kind(StrEnum):
    """How something appears in the sandbox."""

    READ = "read"
    WRITE = "write"
    LINK = "link"
    EMPTY = "empty"
    PROC = "proc"
    DEVICES = "devices"
    MASK_FILE = "mask_file"
    MASK_FOLDER = "mask_folder"
    CLOSE = "close"


_MASKS: Final = {False: Kind.MASK_FILE, True: Kind.MASK_FOLDER}


class Mount(msgspec.Struct, frozen=True):
    """One thing in the sandbox. `source` is the path on the machine, or where a link leads; `size`
    is how many bytes an empty folder takes."""

    kind: Kind
    path: str
    source: str = ""
    size: int = 0


class Shown(msgspec.Struct, frozen=True):
    """Something of the machine: `source` is its real path, or, for a link that is kept, the words
    of the link."""

    path: str
    source: str
    link: bool = False


class Hidden(msgspec.Struct, frozen=True):
    """Something that exists and is never shown, by its real path."""

    path: str
    folder: bool


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the machine and of the project: `system` is shown to all; `home` is the
    user's, a real path, or empty; `read` and `write` are shown besides."""

    system: tuple[Shown, ...] = ()
    home: str = ""
    read: tuple[Shown, ...] = ()
    write: tuple[Shown, ...] = ()
    hidden: tuple[Hidden, ...] = ()


def within(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or lies in it. Both absolute and real, without a slash at the
    end."""
    return path == folder or path.startswith(folder if folder == "/" else f"{folder}/")


def mounts(wanted: Confinement, facts: Facts) -> tuple[Mount, ...]:
    """Return what is mounted, in order. Raises `PunieError` with `Denied` for a project that is a
    folder of the system, the home or above it, or in what is hidden; and for a place of the
    settings that would show the home or the whole machine."""
    base = [*_system(facts), *_private(facts)]
    _check(wanted, facts, base)
    shown = _places(wanted, facts)
    return (
        *base,
        *shown,
        *_masks(facts, [*base, *shown]),
        *(Mount(Kind.CLOSE, path) for path in CLOSED),
    )


def _system(facts: Facts) -> Iterator[Mount]:
    for shown in facts.system:
        yield Mount(Kind.LINK if shown.link else Kind.READ, shown.path, shown.source)
    yield Mount(Kind.PROC, "/proc")
    yield Mount(Kind.DEVICES, "/dev")
    yield Mount(Kind.EMPTY, "/dev/shm", size=SMALL)


def _private(facts: Facts) -> Iterator[Mount]:
    yield Mount(Kind.EMPTY, "/tmp", size=TEMPORARY)
    yield Mount(Kind.EMPTY, "/var/tmp", size=SMALL)
    yield Mount(Kind.EMPTY, "/run", size=SMALL)
    if facts.home:
        yield Mount(Kind.EMPTY, facts.home, size=TEMPORARY)


def _places(wanted: Confinement, facts: Facts) -> list[Mount]:
    """Return what is shown besides, parents first. The project's own right beats a setting's;
    a right to write beats one to read."""
    found = {shown.path: Mount(Kind.READ, shown.path, shown.source) for shown in facts.read}
    found |= {shown.path: Mount(Kind.WRITE, shown.path, shown.source) for shown in facts.write}
    if wanted.root is not None:
        kind = Kind.WRITE if wanted.writable else Kind.READ
        found[wanted.root] = Mount(kind, wanted.root, wanted.root)
    places = [mount for mount in found.values() if not _is_hidden(mount, facts)]
    return sorted(places, key=lambda mount: PurePosixPath(mount.path).parts)


def hidden(wanted: Confinement, facts: Facts) -> list[str]:
    """Return what is hidden in the project, from its root."""
    root = PurePosixPath(wanted.root or "/")
    paths = [PurePosixPath(one.path) for one in facts.hidden]
    return [str(path.relative_to(root)) for path in paths if path.is_relative_to(root)]


def _is_hidden(mount: Mount, facts: Facts) -> bool:
    return any(
        within(path, hidden.path) for hidden in facts.hidden for path in (mount.path, mount.source)
    )


def _masks(facts: Facts, mounts: Iterable[Mount]) -> list[Mount]:
    """Return what lies over all that is hidden and would be seen, wherever it would be."""
    real = [mount for mount in mounts if mount.kind in (Kind.READ, Kind.WRITE)]
    return [
        Mount(_MASKS[hidden.folder], _inside(mount, hidden.path))
        for hidden in facts.hidden
        for mount in real
        if within(hidden.path, mount.source)
    ]


def _inside(mount: Mount, path: str) -> str:
    """Return where something of the machine is seen through `mount`."""
    return str(PurePosixPath(mount.path, PurePosixPath(path).relative_to(mount.source)))


def _check(wanted: Confinement, facts: Facts, base: list[Mount]) -> None:
    for shown in (*facts.read, *facts.write):
        if facts.home and within(facts.home, shown.source):
            message = f"'{shown.path}' of the sandbox's settings would show the whole home folder"
            raise refused(message, "name folders in it: [sandbox] read, write in config.toml")
    if wanted.root is None:
        return
    for mount in base:
        if within(mount.path, wanted.root):
            message = f"no program is run in '{wanted.root}': {mount.path} is part of it"
            raise refused(message, "open a folder of its own as the project")
    for hidden in facts.hidden:
        if within(wanted.root, hidden.path):
            message = f"no program is run in '{wanted.root}': '{hidden.path}' is never shown to one"
            raise refused(message, "open a folder elsewhere as the project")
