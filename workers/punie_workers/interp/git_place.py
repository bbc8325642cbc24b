"""Which repository a project is in, and what of its configuration must be known beforehand."""

import os
from typing import Any

from punie_workers.interp.failures import Failure, Kind
from punie_workers.interp.paths import Root

_PARTS = 3
_OF_USER = (b"global", b"system")


def place(root: Root, path: str) -> dict[str, Any]:
    """Return a descriptor of the root, for the host half to close; `path` resolved, ``""`` for
    the root, and whether it `exists`; the `prefix` of the root in the work tree; `up`, the work
    tree relative to the root; `ceiling`, the folder where git's own search shall stop, ``""`` for
    none."""
    asked, exists = root.locate(path)
    top, prefix = _work_tree(root.path)
    return {
        "root": root.path,
        "path": asked,
        "exists": exists,
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
