"""``.punieignore`` in the root: gitignore's rules, for files Punie shall not list or search."""

import itertools
import os
from functools import lru_cache

from punie_workers.interp.failures import Failure
from punie_workers.interp.globs import Globs
from punie_workers.interp.paths import Root

NAME = ".punieignore"
_MAX_SIZE = 64 * 1024


class Ignore:
    """The rules of one file, the last that matches wins. Remembers what it said of folders, as
    each holds many files."""

    def __init__(self, text: str) -> None:
        self._runs = _runs(text)
        self._folders: dict[str, bool] = {}

    def hides(self, path: str) -> bool:
        """Whether `path`, a file relative to the root, is ignored, itself or by a folder of it."""
        if not self._runs:
            return False
        parts = path.split("/")
        folders = ("/".join(parts[:n]) for n in range(1, len(parts)))
        return any(map(self._hides_folder, folders)) or _verdict(self._runs, path, False)

    def _hides_folder(self, path: str) -> bool:
        if path not in self._folders:
            self._folders[path] = _verdict(self._runs, path, True)
        return self._folders[path]


class _Run:
    """Neighbouring rules that all hide, or all show again: their order does not matter."""

    def __init__(self, hide: bool, patterns: list[str]) -> None:
        self.hide = hide
        self._of_folders = Globs(patterns)
        self._of_files = Globs([pattern for pattern in patterns if not pattern.endswith("/")])

    def matches(self, path: str, is_folder: bool) -> bool:
        return (self._of_folders if is_folder else self._of_files).matches(path)


@lru_cache(maxsize=1)
def _runs(text: str) -> list[_Run]:
    """Return the rules, last first. Compiling them takes longer than most calls: it is kept."""
    lines = (line.rstrip() for line in text.splitlines())
    rules = [line for line in lines if line and not line.startswith("#")]
    runs = itertools.groupby(reversed(rules), lambda rule: not rule.startswith("!"))
    return [_Run(hide, [_pattern(rule) for rule in group]) for hide, group in runs]


def _pattern(rule: str) -> str:
    return rule.removeprefix("!").removeprefix("\\")


def _verdict(runs: list[_Run], path: str, is_folder: bool) -> bool:
    return next((run.hide for run in runs if run.matches(path, is_folder)), False)


def load(root: Root) -> Ignore:
    """Return the rules of `root`; none when there is no readable file of that name."""
    try:
        fd = root.open_file(NAME)
    except Failure:
        return Ignore("")
    with os.fdopen(fd, "rb") as file:
        return Ignore(file.read(_MAX_SIZE).decode("utf-8", "replace"))
