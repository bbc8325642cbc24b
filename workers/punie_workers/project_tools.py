"""Every tool of one project but Code Mode: typed arguments in, typed result out.

They raise `PunieError`; `ToolFailed` for what the model is to be told. Cancelling a call ends
what it started.
"""

from collections.abc import Sequence
from typing import Final

from punie_protocol.client import BackgroundCommand
from punie_protocol.errors import Internal, PunieError
from punie_protocol.tool_types import Arguments, Result
from punie_protocol.tools_checks import RuffCheck, Typecheck
from punie_protocol.tools_code import Symbols
from punie_protocol.tools_commands import PytestRun, RunCommand
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
from punie_workers.command_tools import CommandTools, Show, unseen
from punie_workers.edit_tools import EditTools
from punie_workers.file_tools import FileTools
from punie_workers.git_tools import GitTools
from punie_workers.halves import Halves
from punie_workers.launching import Launcher, Premises
from punie_workers.pytest_tools import PytestTools
from punie_workers.readers import Reader
from punie_workers.symbol_tools import SymbolTools

_ALONE: Final = Premises()


class ProjectTools:
    """Owns the file watcher of the symbol index and the commands in the background until
    `close`."""

    def __init__(self, root: str, halves: Halves, premises: Premises = _ALONE) -> None:
        reader = Reader(halves, premises.settings, premises.hidden)
        launcher = Launcher(halves, premises)
        self._files = FileTools(halves, reader)
        self._symbols = SymbolTools(root, halves, reader=reader)
        self._edits = EditTools(halves, self._changed)
        self._checkers = Checkers(halves, reader=reader)
        self._git = GitTools(halves, reader=reader)
        self._commands = CommandTools(launcher, premises.on_change)
        self._tests = PytestTools(halves, launcher)

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

    async def prepare(
        self, arguments: Arguments, show: Show = unseen, *, read_only: bool = False
    ) -> Action:
        """Return what a call of any other class would do. Nothing has happened yet. What a program
        prints goes to `show`; where nothing may be changed, tests are planned so that they
        cannot."""
        match arguments:
            case RunCommand():
                return await self._commands.prepare(arguments, show)
            case PytestRun():
                return await self._tests.prepare(arguments, show, writable=not read_only)
            case EditFile() | WriteFile() | DeleteFile() | MoveFile():
                return await self._edits.prepare(arguments)
            case _:
                raise PunieError(Internal(message=f"{type(arguments).__name__} has no effects"))

    async def background(self, *, stop: bool) -> list[BackgroundCommand]:
        """Return the commands in the background, ended first when `stop`. Raises `PunieError`."""
        return await self._commands.running(stop=stop)

    def close(self) -> None:
        """Stop watching, end what runs in the background; does not wait."""
        self._symbols.close()
        self._commands.close()

    def _changed(self, paths: Sequence[str]) -> None:
        self._symbols.changed(paths)
