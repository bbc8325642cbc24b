"""What the output of both checkers has in common: a list of findings as JSON."""

import json
import posixpath
from typing import Any, NoReturn

from punie_workers.interp.failures import Failure, Kind
from punie_workers.interp.paths import Root

_SHOWN = 200


def load(checker: str, output: bytes, code: int) -> list[dict[str, Any]]:
    """Return the findings. Output that is no list of them, or that disagrees with the exit
    status, is a failure: it must not pass for a clean project."""
    try:
        found = json.loads(output)
    except ValueError, RecursionError:
        unreadable(checker, f"no JSON: {_start(output)}")
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        unreadable(checker, f"no list of findings: {_start(output)}")
    if code != 0 and not found:
        unreadable(checker, f"no finding, and ended with status {code}, which means some")
    return found


def unreadable(checker: str, what: str) -> NoReturn:
    """Say that `checker` printed `what`."""
    raise Failure(Kind.CHECKER_OUTPUT, f"{checker} printed {what}")


def text(item: dict[str, Any], key: str) -> str:
    """Return a text of the item. Raises `TypeError` or `KeyError` for another shape."""
    return _typed(item[key], str)


def number(item: dict[str, Any], key: str) -> int:
    """Return a number of the item, as `text` does."""
    return _typed(item[key], int)


def _typed[T](value: object, kind: type[T]) -> T:
    if isinstance(value, kind):
        return value
    raise TypeError(f"{value!r} is no {kind.__name__}")


def _start(output: bytes) -> str:
    return repr(output[:_SHOWN].decode("utf-8", "replace"))


class Files:
    """From the names a checker gives its files to paths of the project. It ran in `folder`,
    relative to the root. Both checkers read a file behind a symbolic link; what lies outside the
    project is not told."""

    def __init__(self, root: Root, folder: str) -> None:
        self._root = root
        self._folder = folder
        self._known: dict[str, str | None] = {}

    def path(self, name: str) -> str | None:
        """Return the path relative to the root, ``None`` outside."""
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> str | None:
        path = posixpath.normpath(posixpath.join(self._root.path, self._folder, name))
        inside = self._root.path.rstrip("/") + "/"
        if not path.startswith(inside):
            return None
        path = path.removeprefix(inside)
        try:
            self._root.locate(path)
        except Failure as failure:
            if failure.kind is Kind.OUTSIDE_ROOT:
                return None
        return path
