"""The git tools. They only read, and start nothing that a repository names."""

from typing import Annotated

from msgspec import Meta

from punie_protocol.limits import MAX_PATH
from punie_protocol.tool_types import Arguments, Path, Result

type Revision = Annotated[
    str, Meta(max_length=MAX_PATH, description='Commit, branch, tag or range, such as "main".')
]


class GitStatus(Arguments, frozen=True, tag="git_status"):
    """Show the branch and what is changed, staged or untracked."""

    path: Path = "."
    limit: Annotated[int, Meta(ge=1, le=10_000, description="How many files at most.")] = 500


class StatusEntry(Result, frozen=True):
    """A changed file. `staged` and `unstaged` are ``added``, ``modified``, ``deleted``,
    ``renamed``, ``copied``, ``type_changed``, ``untracked``, ``conflicted`` or empty;
    `renamed_from` is the former path of a renamed or copied one."""

    file: str
    staged: str
    unstaged: str
    renamed_from: str


class GitStatusResult(Result, frozen=True):
    """`branch` is empty on a detached head, `upstream` without one; `change_count` files differ
    and `files` holds them, cut to the limit when `truncated`."""

    branch: str
    head: str
    upstream: str
    ahead: int
    behind: int
    clean: bool
    change_count: int
    truncated: bool
    files: list[StatusEntry]


class GitDiff(Arguments, frozen=True, tag="git_diff"):
    """Show changes of the working tree, or `staged` ones, or against a `revision`."""

    path: Path = "."
    staged: bool = False
    revision: Revision = ""


class DiffFile(Result, frozen=True):
    """A file of a diff. `status` as in `git_status`; a `binary` one counts no lines."""

    file: str
    status: str
    added: int
    removed: int
    binary: bool
    renamed_from: str


class GitDiffResult(Result, frozen=True):
    """`diff` is the unified text, cut at 64 KB when `truncated`; `files` are all of them."""

    file_count: int
    added: int
    removed: int
    truncated: bool
    files: list[DiffFile]
    diff: str


class GitLog(Arguments, frozen=True, tag="git_log"):
    """List commits, newest first."""

    path: Path = "."
    limit: Annotated[int, Meta(ge=1, le=1000, description="How many commits at most.")] = 20
    revision: Revision = ""


class Commit(Result, frozen=True):
    """A commit; `date` is ISO 8601, `subject` the first line of its message, `body` the rest."""

    hash: str
    author: str
    date: str
    subject: str
    body: str


class GitLogResult(Result, frozen=True):
    """`truncated` when there are more."""

    truncated: bool
    commits: list[Commit]
