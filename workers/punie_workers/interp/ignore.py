"""``.punieignore`` in the root: gitignore's rules, for files Punie shall not list or search."""

import os

from punie_workers.interp.failures import Failure
from punie_workers.interp.globs import Glob
from punie_workers.interp.paths import Root

NAME = ".punieignore"
_MAX_SIZE = 64 * 1024


class Ignore:
    """The rules of one file, the last that matches wins."""

    def __init__(self, text: str) -> None:
        lines = (line.rstrip() for line in text.splitlines())
        self._rules = [_Rule(line) for line in lines if line and not line.startswith("#")]

    def hides(self, path: str) -> bool:
        """Whether `path`, a file relative to the root, is ignored, itself or by a folder of it."""
        if not self._rules:
            return False
        parts = path.split("/")
        folders = ("/".join(parts[:n]) for n in range(1, len(parts)))
        return any(self._verdict(folder, True) for folder in folders) or self._verdict(path, False)

    def _verdict(self, path: str, is_folder: bool) -> bool:
        for rule in reversed(self._rules):
            if rule.matches(path, is_folder):
                return rule.hide
        return False


class _Rule:
    def __init__(self, line: str) -> None:
        self.hide = not line.startswith("!")
        line = line.removeprefix("!").removeprefix("\\")
        self._folders_only = line.endswith("/")
        self._glob = Glob(line)

    def matches(self, path: str, is_folder: bool) -> bool:
        return (is_folder or not self._folders_only) and self._glob.matches(path)


def load(root: Root) -> Ignore:
    """Return the rules of `root`; none when there is no readable file of that name."""
    try:
        fd = root.open_file(NAME)
    except Failure:
        return Ignore("")
    with os.fdopen(fd, "rb") as file:
        return Ignore(file.read(_MAX_SIZE).decode("utf-8", "replace"))
