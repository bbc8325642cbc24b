"""``.punieignore`` in the root: gitignore's rules, for files Punie shall not list or search.

Before its rules stand those of `ALWAYS`, for projects without a ``.gitignore``; as the last rule
that matches wins, ``!node_modules/`` in the file takes one back. They do not hold inside a folder
that was asked for by its name.
"""

import itertools
import os
from functools import lru_cache

from punie_workers.interp.failures import Failure
from punie_workers.interp.globs import Globs
from punie_workers.interp.paths import Root

NAME = ".punieignore"
ALWAYS = "__pycache__/\nnode_modules/\n"
"""What tools put beside sources. Virtual environments hide themselves: by a dot, or by the
``.gitignore`` that `venv` and uv write into them."""

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
        folder = path.rpartition("/")[0]
        if folder not in self._folders:
            self._folders[folder] = self._hides_folder(folder)
        return self._folders[folder] or _verdict(self._runs, path, False)

    def _hides_folder(self, path: str) -> bool:
        parts = path.split("/") if path else []
        folders = ("/".join(parts[:n]) for n in range(1, len(parts) + 1))
        return any(_verdict(self._runs, folder, True) for folder in folders)


class _Run:
    """Neighbouring rules that all hide, or all show again: their order does not matter."""

    def __init__(self, hide: bool, patterns: list[str]) -> None:
        self.hide = hide
        self._of_folders = Globs(patterns)
        of_files = [pattern for pattern in patterns if not pattern.endswith("/")]
        self._of_files = Globs(of_files) if of_files else None

    def matches(self, path: str, is_folder: bool) -> bool:
        globs = self._of_folders if is_folder else self._of_files
        return globs is not None and globs.matches(path)


@lru_cache(maxsize=4)
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


def load(root: Root, folder: str) -> Ignore:
    """Return the rules for what is in `folder`, a path relative to `root`, ``""`` for itself."""
    always = "" if folder and Ignore(ALWAYS).hides(f"{folder}/any") else ALWAYS
    return Ignore(always + _own_rules(root))


def _own_rules(root: Root) -> str:
    """Return the rules in `root`; none when there is no readable file of that name."""
    try:
        fd = root.open_file(NAME)
    except Failure:
        return ""
    with os.fdopen(fd, "rb") as file:
        return file.read(_MAX_SIZE).decode("utf-8", "replace")
