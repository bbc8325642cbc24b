"""A project's root folder and the id that follows from it."""

import hashlib
import os
from pathlib import Path

from punie_protocol.errors import InvalidRequest, NotFound, PunieError


def real_path(cwd: str) -> str:
    """Return the absolute real path of a directory, which may be gone; blocks on the file system.

    Raises `PunieError` (`InvalidRequest`) for a relative path, and for what can be no path.
    """
    if not Path(cwd).is_absolute() or "\0" in cwd:
        raise PunieError(InvalidRequest(message=f"cwd {cwd!r} is not an absolute path"))
    return os.path.realpath(cwd)


def resolve_root(cwd: str) -> str:
    """Return the absolute real path of an existing directory; blocks on the file system.

    Raises `PunieError`: `InvalidRequest` for a relative path, `NotFound` for no directory.
    """
    root = real_path(cwd)
    if not Path(root).is_dir():
        raise PunieError(NotFound(message=f"project directory {cwd} does not exist", what=cwd))
    return root


def project_id(root: str) -> str:
    """Return the id of the project at `root`, which is its fairness key too: 16 hex digits."""
    return hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
