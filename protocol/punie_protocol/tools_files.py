"""The file tools: reading, listing, searching, editing."""

from typing import Annotated

from msgspec import Meta

from punie_protocol.limits import MAX_PATTERN, MAX_READ_FILE
from punie_protocol.tool_types import Arguments, Glob, Path, Result

type ContentHash = Annotated[
    str,
    Meta(
        max_length=64,
        description="`content_hash` of the file as you read it: fails if it changed since.",
    ),
]
type Text = Annotated[str, Meta(max_length=MAX_READ_FILE)]


class ReadFile(Arguments, frozen=True, tag="read_file"):
    """Read lines of a text file."""

    path: Path
    start_line: Annotated[int, Meta(ge=1, description="First line, from 1.")] = 1
    max_lines: Annotated[int, Meta(ge=1, le=100_000, description="How many lines at most.")] = 2000


class ReadFileResult(Result, frozen=True):
    """`text` holds lines `start_line` to `end_line` of `total_lines`, both included;
    `end_line` is `start_line - 1` when there are none. Line ends are ``\\n`` whatever the file
    has. `content_hash` is of the whole file's bytes."""

    text: str
    start_line: int
    end_line: int
    total_lines: int
    truncated: bool
    encoding: str
    content_hash: str


class ListFiles(Arguments, frozen=True, tag="list_files"):
    """List files but hidden and git-ignored ones."""

    pattern: Glob = "*"
    path: Path = "."
    limit: Annotated[int, Meta(ge=1, le=100_000, description="How many files at most.")] = 1000


class ListFilesResult(Result, frozen=True):
    """`count` files exist; `files` holds them by path, cut to the limit when `truncated`."""

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


class EditFile(Arguments, frozen=True, tag="edit_file"):
    """Replace `old_text`, which must stand exactly once in the file, by `new_text`."""

    path: Path
    old_text: Annotated[Text, Meta(min_length=1, description="Exactly as `read_file` shows it.")]
    new_text: Text
    content_hash: ContentHash = ""


class WriteFile(Arguments, frozen=True, tag="write_file"):
    """Write a whole text file; missing folders are made."""

    path: Path
    text: Text
    content_hash: ContentHash = ""


class DeleteFile(Arguments, frozen=True, tag="delete_file"):
    """Delete a file."""

    path: Path
    content_hash: ContentHash = ""


class MoveFile(Arguments, frozen=True, tag="move_file"):
    """Move or rename a file; the destination must not exist."""

    path: Path
    destination: Path


class EditResult(Result, frozen=True):
    """What an edit did to the file `path` (after a move, its new place). `diff` is unified, cut
    at 64 KB; `added` and `removed` count its lines. `content_hash` is of the file as it is now,
    empty when it was deleted."""

    path: str
    diff: str
    added: int
    removed: int
    content_hash: str
