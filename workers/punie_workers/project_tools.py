"""Every tool of one project but Code Mode: typed arguments in, typed result out.

They raise `PunieError`; `ToolFailed` for what the model is to be told. Cancelling a call ends
what it started.
"""

from collections.abc import Sequence

from punie_protocol.errors import Internal, PunieError
from punie_protocol.tool_types import Arguments, Result
from punie_protocol.tools_checks import RuffCheck, Typecheck
from punie_protocol.tools_code import Symbols
from punie_protocol.tools_files import (
    DeleteFile,
    EditFile,
    ListFiles,
    MoveFile,
    ReadFile,
    Search,
    WriteFile,
)
from punie_protocol.tools_git import GitDiff, GitLog, GitStatus
from punie_workers.actions import Action
from punie_workers.checkers import Checkers
from punie_workers.edit_tools import EditTools
from punie_workers.file_tools import FileTools
from punie_workers.git_tools import GitTools
from punie_workers.halves import Halves
from punie_workers.symbol_tools import SymbolTools


class ProjectTools:
    """Owns the file watcher of the symbol index until `close`."""

    def __init__(self, root: str, halves: Halves) -> None:
        self._files = FileTools(halves)
        self._symbols = SymbolTools(root, halves)
        self._edits = EditTools(halves, self._changed)
        self._checkers = Checkers(halves)
        self._git = GitTools(halves)

    async def read(self, arguments: Arguments) -> Result:
        """Return the result of a call of permission class READ."""
        match arguments:
            case ReadFile() | ListFiles() | Search():
                return await self._files.run(arguments)
            case Typecheck() | RuffCheck():
                return await self._checkers.run(arguments)
            case GitStatus() | GitDiff() | GitLog():
                return await self._git.run(arguments)
            case Symbols():
                return await self._symbols.run(arguments)
            case _:
                raise PunieError(Internal(message=f"{type(arguments).__name__} does not read"))

    async def prepare(self, arguments: Arguments) -> Action:
        """Return what a call of any other class would do. Nothing has happened yet."""
        match arguments:
            case EditFile() | WriteFile() | DeleteFile() | MoveFile():
                return await self._edits.prepare(arguments)
            case _:
                raise PunieError(Internal(message=f"{type(arguments).__name__} has no effects"))

    def close(self) -> None:
        """Stop watching; does not wait."""
        self._symbols.close()

    def _changed(self, paths: Sequence[str]) -> None:
        self._symbols.changed(paths)
