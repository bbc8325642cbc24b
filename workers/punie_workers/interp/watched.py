"""Which folders must be watched so that no new or changed source is missed."""

import os

from punie_workers.interp.paths import Root

MAX_FOLDERS = 4_096
"""Each costs the user one of the system's watches, of which there may be 8,192."""

MAX_ENTRIES = 200_000
"""Names that are looked at for it."""

_SKIPPED = frozenset({"__pycache__", "node_modules"})


def folders(root: Root, output: bytes) -> list[str] | None:
    """Return the absolute paths of the folders to watch, sorted, or ``None`` when they are too
    many. `output` is ``rg --files --null`` in the root.

    They are those that hold a listed file, on any level; and of the others (empty ones, ignored
    ones) the topmost and what is below it until a folder holds a file. Hidden folders and links
    are left out, as in the listing: a recursive watch would follow links out of the project.
    """
    listed = _parents(output)
    found: list[str] = []
    entries = 0
    todo = [""]
    while todo:
        folder = todo.pop()
        found.append(os.path.join(root.path, folder).rstrip("/") or "/")  # noqa: PTH118 (strings)
        inside, files = _look(root, folder)
        entries += len(inside) + files
        if len(found) > MAX_FOLDERS or entries > MAX_ENTRIES:
            return None
        if folder in listed or not files:
            todo += inside
    return sorted(found)


def _parents(output: bytes) -> set[str]:
    """Return every folder on the way to a listed file, ``""`` for the root."""
    found = {""}
    for raw in output.split(b"\0")[:-1]:
        folder = os.fsdecode(raw).removeprefix("./").rpartition("/")[0]
        while folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def _look(root: Root, folder: str) -> tuple[list[str], int]:
    """Return the folders in a folder that count, and how many files are in it."""
    inside: list[str] = []
    files = 0
    try:
        with os.scandir(os.path.join(root.path, folder)) as entries:  # noqa: PTH118 (strings)
            for entry in entries:
                files += not entry.is_dir(follow_symlinks=False)
                if _counts(entry):
                    inside.append(f"{folder}/{entry.name}" if folder else entry.name)
    except OSError:
        return [], 0
    return inside, files


def _counts(entry: os.DirEntry[str]) -> bool:
    hidden = entry.name.startswith(".") or entry.name in _SKIPPED
    return not hidden and entry.is_dir(follow_symlinks=False) and _is_text(entry.name)


def _is_text(name: str) -> bool:
    """Whether the name is UTF-8: the watcher cannot take another."""
    return not any("\udc80" <= character <= "\udcff" for character in name)
