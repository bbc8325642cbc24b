"""A small project for programs of Code Mode, and its tools: reading is real, the rest stands in.

The stand-ins do on disk what the tools promise, by the simplest rule there is; the real ones have
tests of their own.
"""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from punie_protocol.errors import PunieError, ToolFailed
from punie_protocol.tool_types import Arguments, Result, Tool
from punie_protocol.tools_checks import (
    RuffCheck,
    RuffCheckResult,
    Typecheck,
    TypecheckResult,
    TypeProblem,
    Violation,
)
from punie_protocol.tools_code import Symbol, Symbols, SymbolsResult
from punie_protocol.tools_files import DeleteFile, EditFile, EditResult, MoveFile, WriteFile
from punie_protocol.tools_git import (
    Commit,
    DiffFile,
    GitDiff,
    GitDiffResult,
    GitLog,
    GitLogResult,
    GitStatus,
    GitStatusResult,
    StatusEntry,
)
from punie_workers.file_tools import FileTools
from punie_workers.halves import Abandoned, Halves

FILES = {
    "src/app.py": """\
import os
import sys


class Config:
    def __init__(self, name: str) -> None:
        self.name = name


def load(path: str) -> Config:
    # TODO: read the file
    return Config(path)


def main() -> int:
    config = load("settings.json")
    print(config.name)
    return 0
""",
    "src/util.py": '''\
"""Helpers."""


def slow(n: int) -> int:
    # TODO: faster
    return sum(range(n))


LIMIT: int = "10"
def quick() -> str: """Say it."""
''',
    "tests/test_app.py": """\
from app import load, main


def test_load() -> None:
    assert load("x").name == "x"
    assert main() == 0
""",
    "README.md": "# Sample\n\nA small program.\n\nRun it with `python -m app`.\n",
    "settings.json": '{"name": "sample", "ports": [80, 443]}\n',
    "pyproject.toml": ('[project]\nname = "sample"\ndependencies = ["msgspec>=0.19", "anyio"]\n'),
    "data/scores.csv": "name,score\nann,5\nbob,7\n",
}
_BAD = re.compile(r'^\w+: int = "')
_IMPORT = re.compile(r"^import (\w+)$")
_SYMBOL = re.compile(r"^(class|def) (\w+)")
_EDITS = (EditFile, WriteFile, DeleteFile, MoveFile)


class CodeProject:
    """`calls` are the names of the tools that were called, in order."""

    def __init__(self, root: Path, files: FileTools) -> None:
        self.root = root
        self.calls: list[str] = []
        self._files = files

    @classmethod
    @asynccontextmanager
    async def at(cls, root: Path) -> AsyncGenerator[CodeProject]:
        """A project in the empty folder `root`, with its interpreter."""
        for path, text in FILES.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        halves = Halves(real(root), Abandoned(lambda: None))
        await halves.start()
        try:
            yield cls(root, FileTools(halves))
        finally:
            halves.stop()

    def restore(self) -> None:
        """Put every file back as it was."""
        for path in [path for path in self.root.rglob("*") if path.is_file()]:
            if str(path.relative_to(self.root)) not in FILES:
                path.unlink()
        for name, text in FILES.items():
            (self.root / name).write_text(text)
        self.calls.clear()

    def unchanged(self) -> bool:
        """Whether every file is as it was."""
        found = {
            str(path.relative_to(self.root)): path.read_text()
            for path in self.root.rglob("*")
            if path.is_file()
        }
        return found == FILES

    async def call(self, tool: Tool, arguments: Arguments) -> Result:
        """Run a tool, as the agent would."""
        self.calls.append(tool.name)
        if isinstance(arguments, _EDITS):
            return self._edit(arguments)
        if (result := self._look(arguments)) is not None:
            return result
        return await self._files.run(arguments)

    def _edit(self, arguments: Arguments) -> EditResult:
        match arguments:
            case EditFile(path=path, old_text=old, new_text=new):
                text = self._text(path)
                if (count := text.count(old)) != 1:
                    message = f"{path!r} has the text {count} times"
                    raise PunieError(ToolFailed(kind="edit", message=message))
                return self._write(path, text.replace(old, new), _lines(new), _lines(old))
            case WriteFile(path=path, text=text):
                old = self._text(path).splitlines() if (self.root / path).exists() else []
                added = sum(line not in old for line in text.splitlines())
                return self._write(path, text, added, 0)
            case DeleteFile(path=path):
                (self.root / path).unlink()
            case MoveFile(path=path, destination=destination):
                (self.root / path).rename(self.root / destination)
        return EditResult(path="", diff="", added=0, removed=0, content_hash="")

    def _write(self, path: str, text: str, added: int, removed: int) -> EditResult:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)
        return EditResult(path=path, diff="", added=added, removed=removed, content_hash="h")

    def _text(self, path: str) -> str:
        return (self.root / path).read_text()

    def _look(self, arguments: Arguments) -> Result | None:
        match arguments:
            case Typecheck():
                return self._typecheck()
            case RuffCheck():
                return self._ruff_check()
            case Symbols(path=path, name=name):
                return self._symbols(path, name)
            case GitStatus():
                return _STATUS
            case GitDiff():
                return _DIFF
            case GitLog(limit=limit):
                return GitLogResult(truncated=False, commits=_COMMITS[:limit])
            case _:
                return None

    def _python(self) -> list[tuple[str, int, str]]:
        return [
            (str(path.relative_to(self.root)), number, line)
            for path in sorted(self.root.rglob("*.py"))
            for number, line in enumerate(path.read_text().splitlines(), 1)
        ]

    def _typecheck(self) -> TypecheckResult:
        errors = [
            TypeProblem(
                file=file,
                line=line,
                column=text.index("=") + 2,
                severity="error",
                code="invalid-assignment",
                message="`str` is not assignable to `int`",
            )
            for file, line, text in self._python()
            if _BAD.match(text)
        ]
        return TypecheckResult(
            ok=not errors,
            error_count=len(errors),
            warning_count=0,
            truncated=False,
            errors=errors,
        )

    def _ruff_check(self) -> RuffCheckResult:
        found = [
            Violation(
                file=file,
                line=line,
                column=8,
                code="F401",
                message=f"`{match[1]}` imported but unused",
                fixable=True,
            )
            for file, line, text in self._python()
            if (match := _IMPORT.match(text))
        ]
        return RuffCheckResult(
            ok=not found,
            violation_count=len(found),
            fixable_count=len(found),
            truncated=False,
            violations=found,
        )

    def _symbols(self, path: str, name: str) -> SymbolsResult:
        found = [
            Symbol(
                name=match[2],
                kind="class" if match[1] == "class" else "function",
                file=file,
                line=line,
                end_line=line + 2,
                signature=text,
            )
            for file, line, text in self._python()
            if (match := _SYMBOL.match(text))
            and (path == "." or file.startswith(path))
            and name in ("", match[2])
        ]
        return SymbolsResult(
            symbol_count=len(found),
            reference_count=0,
            truncated=False,
            symbols=found,
            references=[],
            unreadable=[],
        )


class Waiting:
    """A tool call that waits: `begun` says that it does, `outcome` how it ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.calls = 0
        self.outcome = ""

    async def call(self, tool: Tool, _arguments: Arguments) -> Result:
        """Wait for `go_on`."""
        self.calls += 1
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.outcome = f"{tool.name} cancelled"
            raise
        return GitLogResult(truncated=False, commits=[])


def real(path: Path) -> str:
    """Return the path without links."""
    return str(path.resolve())


def _lines(text: str) -> int:
    return len(text.splitlines())


_STATUS = GitStatusResult(
    branch="main",
    head="1a2b3c4d5e",
    upstream="",
    ahead=0,
    behind=0,
    clean=False,
    change_count=2,
    truncated=False,
    files=[
        StatusEntry(file="src/app.py", staged="", unstaged="modified", renamed_from=""),
        StatusEntry(file="notes.txt", staged="", unstaged="untracked", renamed_from=""),
    ],
)
_DIFF = GitDiffResult(
    file_count=1,
    added=1,
    removed=1,
    truncated=False,
    files=[
        DiffFile(
            file="src/app.py",
            status="modified",
            added=1,
            removed=1,
            binary=False,
            renamed_from="",
        )
    ],
    diff="--- a/src/app.py\n+++ b/src/app.py\n@@ -18 +18 @@\n-    return 1\n+    return 0\n",
)
_COMMITS = [
    Commit(
        hash="1a2b3c4d5e",
        author="Ada Lovelace",
        date="2026-03-02T10:00:00+00:00",
        subject="Read settings",
        body="",
    ),
    Commit(
        hash="5d6e7f8a9b",
        author="Grace Hopper",
        date="2026-03-01T09:00:00+00:00",
        subject="Start",
        body="",
    ),
]
