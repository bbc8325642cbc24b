"""Finds what looks like a file and never comes to an end: pipes and devices.

A program that reads the project opens some by their names and waits for ever. Looked for only once
one has waited for long.
"""

import os
import stat
from typing import Final

from punie_workers.interp.paths import Root

MAX_ENTRIES: Final = 100_000
"""Names that are looked at: some 200 ms."""

MAX_FOUND: Final = 10

_OPENED: Final = (".py", ".pyi", ".pyw", ".ipynb", ".toml", "ignore", ".gitattributes")
"""How the names end of what the checkers, ripgrep and git open whatever it is."""

_SKIPPED: Final = frozenset({".git", "node_modules", "__pycache__"})


def find(root: Root) -> list[str]:
    """Return the first pipes and devices of the project, and links to some, that are opened; paths
    relative to the root."""
    found: list[str] = []
    seen = 0
    for folder, folders, files, fd in os.fwalk(".", dir_fd=root.fd):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        opened = [name for name in files if name.endswith(_OPENED)]
        found += [f"{folder}/{name}"[2:] for name in opened if _is_endless(name, fd)]
        seen += len(folders) + len(files)
        if seen > MAX_ENTRIES or len(found) >= MAX_FOUND:
            break
    return found[:MAX_FOUND]


def _is_endless(name: str, fd: int) -> bool:
    try:
        mode = os.stat(name, dir_fd=fd).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
