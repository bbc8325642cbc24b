"""The tools, defined once: arguments, result, documentation, permission class.

Everything else is derived from these: the JSON schema for the model, the Python stub for Code
Mode, the sandbox binding, the docs page. Names and result fields are frozen.
"""

from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from punie_protocol.limits import MAX_CODE, MAX_PATH, MAX_PATTERN

type Path = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_PATH,
        description="Path relative to the project root.",
    ),
]
type Glob = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_PATTERN,
        description='File name pattern; "*.py" matches at any depth, "{a,b}" either.',
    ),
]


class Permission(StrEnum):
    """What a tool may do; the permission policy decides by it."""

    READ = "read"
    EDIT = "edit"
    EXECUTE = "execute"
    NETWORK = "network"


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of argument sets; fields in the order of the positional call."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Base of results."""


class ReadFile(Arguments, frozen=True, tag="read_file"):
    """Read lines of a text file."""

    path: Path
    start_line: Annotated[int, Meta(ge=1, description="First line, from 1.")] = 1
    max_lines: Annotated[int, Meta(ge=1, le=100_000, description="How many lines at most.")] = 2000


class ReadFileResult(Result, frozen=True):
    """`text` holds lines `start_line` to `end_line` of `total_lines`, both included;
    `end_line` is `start_line - 1` when there are none."""

    text: str
    start_line: int
    end_line: int
    total_lines: int
    truncated: bool


class ListFiles(Arguments, frozen=True, tag="list_files"):
    """List files, hidden and git-ignored ones left out. Sorted by path."""

    pattern: Glob = "*"
    path: Path = "."
    limit: Annotated[int, Meta(ge=1, le=100_000, description="How many files at most.")] = 1000


class ListFilesResult(Result, frozen=True):
    """`count` files exist; `files` holds them, cut to the limit when `truncated`."""

    count: int
    truncated: bool
    files: list[str]


class Search(Arguments, frozen=True, tag="search"):
    """Find lines that match a regular expression (ripgrep's syntax)."""

    pattern: Annotated[str, Meta(min_length=1, max_length=MAX_PATTERN, description="The regex.")]
    glob: Glob = "*"
    path: Path = "."
    ignore_case: bool = False
    limit: Annotated[int, Meta(ge=1, le=10_000, description="How many matches at most.")] = 200


class Match(Result, frozen=True):
    """A matching line, without its end; very long lines are cut."""

    file: str
    line: int
    text: str


class SearchResult(Result, frozen=True):
    """`match_count` lines match; `matches` holds them in order of file and line, cut to the limit
    when `truncated`."""

    match_count: int
    truncated: bool
    matches: list[Match]


class ExecuteCode(Arguments, frozen=True, tag="execute_code"):
    """Run Python that calls the other tools as functions; what it prints is the result."""

    code: Annotated[str, Meta(min_length=1, max_length=MAX_CODE, description="Python source.")]


class ExecuteCodeResult(Result, frozen=True):
    """What the code printed."""

    output: str
    truncated: bool


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """One tool. `code_mode` says whether it is a function inside `execute_code`."""

    name: str
    arguments: type[Arguments]
    result: type[Result]
    permission: Permission
    code_mode: bool = True

    @property
    def doc(self) -> str:
        """What it does, one sentence, as the model reads it."""
        return " ".join((self.arguments.__doc__ or "").split())


def _tool(
    arguments: type[Arguments],
    result: type[Result],
    permission: Permission = Permission.READ,
    *,
    code_mode: bool = True,
) -> Tool:
    tag = arguments.__struct_config__.tag
    assert isinstance(tag, str)
    return Tool(
        name=tag,
        arguments=arguments,
        result=result,
        permission=permission,
        code_mode=code_mode,
    )


TOOLS: Final[dict[str, Tool]] = {
    tool.name: tool
    for tool in (
        _tool(ReadFile, ReadFileResult),
        _tool(ListFiles, ListFilesResult),
        _tool(Search, SearchResult),
        _tool(ExecuteCode, ExecuteCodeResult, code_mode=False),
    )
}
"""Every tool by name, in the order the model sees them."""
