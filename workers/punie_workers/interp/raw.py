"""Files as they are, for the host half itself: settings and the like, no tool."""

import os
from typing import Any

from punie_workers.interp.failures import Failure, Kind, from_os_error
from punie_workers.interp.paths import Root

_MISSING = (Kind.NOT_FOUND, Kind.NOT_A_DIRECTORY)


def read_raw(root: Root, limits: dict[str, int]) -> dict[str, Any]:
    """Return `data` and whether it was `cut` of each path in `limits` that exists; `limits` has
    the bytes to read at most. Of one that cannot be read, `problem` says why."""
    found: dict[str, Any] = {}
    for path, limit in limits.items():
        try:
            found[path] = _read(root, path, limit)
        except Failure as failure:
            if failure.kind not in _MISSING:
                found[path] = {"problem": failure.message}
        except OSError as error:
            found[path] = {"problem": from_os_error(error, path).message}
    return found


def _read(root: Root, path: str, limit: int) -> dict[str, Any]:
    with os.fdopen(root.open_file(path), "rb") as file:
        data = file.read(limit + 1)
    return {"data": data[:limit], "cut": len(data) > limit}
