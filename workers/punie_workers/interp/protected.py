"""What Punie's file tools never change, by name or by what git would take it for.

Git reads ``config`` and ``hooks`` of a repository's own folder and runs what they name. Such a
folder is called ``.git``, or anything else: git finds it when somebody stands in it (a bare
repository) or when a ``.git`` file names it (``git init --separate-git-dir``, worktrees).
"""

import os
import stat
from typing import Final

_UNSEEN: Final = dict.fromkeys([*range(0x200B, 0x2010), *range(0x202A, 0x202F), 0xFEFF])
"""Characters that some file systems leave out of names."""

_FOLDERS: Final = ("objects", "refs")
_FILES: Final = ("HEAD", "config")
_WORKTREE: Final = ("HEAD", "commondir")


def is_protected(path: str) -> bool:
    """Whether a resolved path is one that Punie never changes: a ``.git`` at any depth, which
    could make git run programs, or ``.punie`` in the root, which says what Punie may do."""
    names = [name.translate(_UNSEEN).casefold() for name in path.split("/")]
    return ".git" in names or names[0] == ".punie"


def is_repository(fd: int, name: str) -> bool:
    """Whether git may take the open folder `fd` for a repository's own, or could once it has an
    entry called `name`: it has ``objects`` and ``refs`` and one of ``HEAD`` and ``config``, or it
    is a worktree's. That is wider than git's own test, so that the order in which the parts come
    does not matter."""
    name = name.translate(_UNSEEN).casefold()

    def has(entry: str) -> bool:
        return entry.casefold() == name or _exists(fd, entry)

    whole = all(map(has, _FOLDERS)) and any(map(has, _FILES))
    return whole or all(map(has, _WORKTREE))


def _exists(fd: int, name: str) -> bool:
    try:
        status = os.stat(name, dir_fd=fd)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) == (name in _FOLDERS)
