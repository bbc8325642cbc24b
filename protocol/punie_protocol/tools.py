"""The tools, defined once: arguments, result, documentation, permission class.

Everything else is derived from these: the JSON schema for the model, the Python stub for Code
Mode, the sandbox binding, the docs page. Names and result fields are frozen.
"""

from typing import Final

from punie_protocol.tool_types import Permission, Tool, define
from punie_protocol.tools_checks import RuffCheck, RuffCheckResult, Typecheck, TypecheckResult
from punie_protocol.tools_code import ExecuteCode, ExecuteCodeResult, Symbols, SymbolsResult
from punie_protocol.tools_commands import (
    PytestRun,
    PytestRunResult,
    RunCommand,
    RunCommandResult,
)
from punie_protocol.tools_files import (
    DeleteFile,
    EditFile,
    EditResult,
    ListFiles,
    ListFilesResult,
    MoveFile,
    ReadFile,
    ReadFileResult,
    Search,
    SearchResult,
    WriteFile,
)
from punie_protocol.tools_git import (
    GitDiff,
    GitDiffResult,
    GitLog,
    GitLogResult,
    GitStatus,
    GitStatusResult,
)

TOOLS: Final[dict[str, Tool]] = {
    tool.name: tool
    for tool in (
        define(ReadFile, ReadFileResult),
        define(ListFiles, ListFilesResult),
        define(Search, SearchResult),
        define(EditFile, EditResult, Permission.EDIT),
        define(WriteFile, EditResult, Permission.EDIT),
        define(DeleteFile, EditResult, Permission.EDIT),
        define(MoveFile, EditResult, Permission.EDIT),
        define(RunCommand, RunCommandResult, Permission.EXECUTE),
        define(Typecheck, TypecheckResult),
        define(RuffCheck, RuffCheckResult),
        define(PytestRun, PytestRunResult, Permission.EXECUTE),
        define(GitStatus, GitStatusResult),
        define(GitDiff, GitDiffResult),
        define(GitLog, GitLogResult),
        define(Symbols, SymbolsResult),
        define(ExecuteCode, ExecuteCodeResult, code_mode=False),
    )
}
"""Every tool by name, in the order the model sees them."""
