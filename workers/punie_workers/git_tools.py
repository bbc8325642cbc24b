"""The git tools: status, diff and log of the project's repository, by the machine's git.

They only read, and start nothing that the repository names: see `git_guard`. The project may be a
folder of the repository; results are of that folder and relative to it.
"""

import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import PurePosixPath
from typing import Final

from punie_protocol.errors import Internal, PunieError
from punie_protocol.interp_codec import encode_request
from punie_protocol.limits import MAX_TOOL_OUTPUT
from punie_protocol.tool_types import Arguments, Result
from punie_protocol.tools_git import (
    GitDiff,
    GitDiffResult,
    GitLog,
    GitLogResult,
    GitStatus,
    GitStatusResult,
)
from punie_workers import git_guard, programs
from punie_workers.git_guard import Settings, Where
from punie_workers.halves import Halves, Opened
from punie_workers.programs import Kinds, Output, Program
from punie_workers.readers import Folder, Reader, nowhere, standing_in

TIMEOUT: Final = 30.0
MAX_OUTPUT: Final = 8 * 1024 * 1024

GIT: Final = Program(
    name="git",
    kinds=Kinds(missing="git_missing", failed="git_failed", output="git_output"),
    timeout=TIMEOUT,
    limit=MAX_OUTPUT,
)

_STATUS = [
    "--porcelain=v2",
    "-z",
    "--branch",
    "--ahead-behind",
    "--untracked-files=all",
    "--find-renames",
]
_DIFF = [
    *("-z", "--raw", "--numstat", "--patch"),
    *("--no-color", "--find-renames", "--unified=3", "--src-prefix=a/", "--dst-prefix=b/"),
    "--relative",
]
_LOG = [
    *("-z", "--format=tformat:%H%x00%an%x00%aI%x00%s%x00%b", "--encoding=UTF-8"),
    *("--no-color", "--no-decorate", "--no-notes", "--no-patch", "--no-follow"),
]

_LISTING = ["config", "--null", "--show-scope", "--list"]

_USER_SETTINGS = ("~/.config/git/ignore", "~/.config/git/attributes")
_OF_FOLDERS = (".gitignore", ".gitattributes")

_NO_REPOSITORY = ("not a git repository", "usage: git diff --no-index")
"""The second is said of a diff outside a repository, whatever its options."""
_NO_COMMITS = "does not have any commits yet"
_USELESS = 128
"""Exit status for what git calls fatal."""

_NEVER = re.compile(r"[:\s\x00-\x1f\x7f\ud800-\udfff]")
"""What no name of a commit holds; a colon would name a file in it, of any folder."""

_HASH = re.compile(r"[0-9a-f]{40,64}")


class _Place(Opened):
    """The project in its repository; see the project half's `git_place.place`."""

    root: str
    path: str
    exists: bool
    prefix: str
    up: str
    ceiling: str


class GitTools:
    """Git on one project. `find` returns the program, given the project's root."""

    def __init__(
        self,
        halves: Halves,
        find: Callable[[str], str] = git_guard.find,
        reader: Reader | None = None,
    ) -> None:
        self._halves = halves
        self._find = find
        self._reader = reader or Reader(halves, find=nowhere)

    async def run(self, arguments: Arguments) -> Result:
        """Return the result of one tool call. Raises `PunieError`, with ``not_a_repository`` where
        there is none."""
        match arguments:
            case GitStatus():
                return await self._status(arguments)
            case GitDiff():
                return await self._diff(arguments)
            case GitLog():
                return await self._log(arguments)
            case _:
                raise PunieError(Internal(message=f"{type(arguments).__name__} is no git tool"))

    async def _status(self, wanted: GitStatus) -> GitStatusResult:
        async with self._repository(wanted.path) as git:
            output = await git.run("status", *git_guard.options(Where.STATUS), *_STATUS, *git.paths)
            arguments = {"prefix": git.place.prefix, "limit": wanted.limit}
            found = await self._parse("git_status", _whole(output), arguments, GitStatusResult)
            return git.known(found, found.files, wanted.path)

    async def _diff(self, wanted: GitDiff) -> GitDiffResult:
        ends, dots = endpoints(wanted.revision)
        if wanted.staged and dots:
            message = "a staged diff is against one commit, not a range"
            raise programs.failed("invalid_revision", message)
        options = [*git_guard.options(Where.DIFF), *_DIFF]
        if wanted.staged:
            options.append("--cached")
        elif not ends:
            options.append("--ours")  # a conflict has a patch then, against our side
        async with self._repository(wanted.path) as git:
            options += await git.resolve(ends, dots)
            output = _whole(await git.run("diff", *options, *git.paths))
            arguments = {"max_text": MAX_TOOL_OUTPUT}
            found = await self._parse("git_diff", output, arguments, GitDiffResult)
            return git.known(found, found.files, wanted.path)

    async def _log(self, wanted: GitLog) -> GitLogResult:
        ends, dots = endpoints(wanted.revision)
        options = [*git_guard.options(Where.LOG), *_LOG, f"--max-count={wanted.limit + 1}"]
        async with self._repository(wanted.path) as git:
            options += await git.resolve(ends, dots)
            output = await git.run("log", *options, *git.paths)
            if output.code == _USELESS and not ends and _NO_COMMITS in output.errors:
                return GitLogResult(truncated=False, commits=[])
            arguments = {"limit": wanted.limit}
            found = await self._parse("git_log", _whole(output), arguments, GitLogResult)
            return git.known(found, found.commits, wanted.path)

    async def _parse[R](
        self, operation: str, output: Output, arguments: Mapping[str, object], result: type[R]
    ) -> R:
        request = {**arguments, "output": output.data, "complete": output.complete}
        return await self._halves.call(encode_request(operation, request), result)

    @asynccontextmanager
    async def _repository(self, path: str) -> AsyncGenerator[_Git]:
        opening = encode_request("git_place", {"path": path})
        async with self._halves.opened(opening, _Place) as place:
            git = _Git(self._halves, self._reader, self._find(place.root), place)
            await git.begin()
            yield git


class _Git:
    """Runs git in one project, for one tool call. Owns nothing."""

    def __init__(self, halves: Halves, reader: Reader, executable: str, place: _Place) -> None:
        self._halves = halves
        self._reader = reader
        self._executable = executable
        self._place_environment = git_guard.place(place.up, place.ceiling)
        self._environment = git_guard.asking(self._place_environment)
        self._read: list[str] = []
        self.place = place

    @property
    def paths(self) -> list[str]:
        """What limits a command to the asked path; nothing for a whole repository."""
        wanted = self.place.path or ("." if self.place.prefix else "")
        return ["--", wanted] if wanted else ["--"]

    async def begin(self) -> None:
        """Ask the configuration what must be switched off by name. Whoever can change it between
        this and the next run could have had a program run without us. It starts nothing and
        shows no file, and the user's own settings are anywhere: this one needs no sandbox."""
        listing = await self._run(Reader(self._halves, find=nowhere), *_LISTING)
        data = programs.check(GIT, listing)
        request = encode_request("git_settings", {"output": data})
        settings = await self._halves.call(request, Settings)
        if not settings.guarded:
            message = "this git is too old to be run safely; git 2.31 or newer is needed"
            raise programs.failed(GIT.kinds.failed, message)
        self._environment = git_guard.guarded(self._place_environment, settings.pairs())
        self._read = [*_USER_SETTINGS, *settings.files(), *_above(self.place)]

    async def run(self, *arguments: str) -> Output:
        """Return what git printed. Raises `PunieError` when it cannot be started, hangs, or finds
        no repository."""
        return await self._run(self._reader, *arguments)

    async def _run(self, reader: Reader, *arguments: str) -> Output:
        command = [self._executable, *git_guard.options(Where.ALWAYS), *arguments]
        folder = Folder(self.place.fd, "")
        output = await reader.run(GIT, command, folder, self._environment, self._read)
        if output.code >= _USELESS and any(words in output.errors for words in _NO_REPOSITORY):
            message = "this project is in no git repository that git can read"
            raise programs.failed("not_a_repository", message)
        return output

    def known[R](self, result: R, entries: Sequence[object], path: str) -> R:
        """Return the result. Raises `PunieError` when it has no entries because there is no such
        path, now or in what git knows: a name with a mistake in it is not clean."""
        if entries or self.place.exists:
            return result
        message = f"no file or folder '{path}' in this project, and git knows of none"
        raise programs.failed("not_found", message)

    async def resolve(self, ends: Sequence[str], dots: str) -> list[str]:
        """Return the revision made of the hashes of its ends: no text of the model's is left in
        it. Nothing for no ends."""
        if not ends:
            return []
        names = [f"{end}^{{commit}}" for end in ends]
        output = await self.run("rev-parse", *names, "--")
        hashes = output.data.decode("utf-8", "replace").split()[:-1]
        if output.code != 0 or len(hashes) != len(ends) or not all(map(_HASH.fullmatch, hashes)):
            message = f"no commit {' or '.join(map(repr, ends))} in this repository"
            hint = "name a commit, branch, tag or range; git_log lists commits"
            raise programs.failed("unknown_revision", message, hint)
        return [dots.join(hashes)]


def _above(place: _Place) -> list[str]:
    """Return where files of the work tree above the project say what git ignores in it."""
    above = list(PurePosixPath(place.root).parents)[: len(PurePosixPath(place.prefix).parts)]
    return standing_in(above, _OF_FOLDERS)


def endpoints(revision: str) -> tuple[list[str], str]:
    """Return the commits that a revision names and the dots between them. Raises `PunieError` for
    what is none, such as an option."""
    if not revision:
        return [], ""
    dots = next((dots for dots in ("...", "..") if dots in revision), "")
    ends = [end or "HEAD" for end in revision.split(dots, 1)] if dots else [revision]
    if any(end.startswith("-") or _NEVER.search(end) for end in ends):
        message = f"{revision!r} names no commit"
        hint = 'name a commit, branch, tag or range, such as "main..HEAD"; files go in path'
        raise programs.failed("invalid_revision", message, hint)
    return ends, dots


def _whole(output: Output) -> Output:
    """Return the output of a git that came to its end, or was ended because it printed so much:
    the project half says then what is missing."""
    if output.complete:
        programs.check(GIT, output)
    return output
