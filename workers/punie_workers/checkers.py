"""The checkers: Punie's own pinned ty and ruff. They read the project and run none of it.

Both are the ones that came with Punie, never those of the project or of ``PATH``, and neither
starts a program: ty finds the packages of a ``.venv`` by looking at its folders (it would ask a
``uv`` only when started by one). Neither writes: no cache, no fixes, whatever the project's
configuration says, which counts for everything else. ``HOME`` stays, for the user's own
configuration where the project has none.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import PurePosixPath
from typing import Final

from punie_protocol.errors import Internal, PunieError
from punie_protocol.interp_codec import encode_request
from punie_protocol.tool_types import Arguments, Result
from punie_protocol.tools_checks import RuffCheck, RuffCheckResult, Typecheck, TypecheckResult
from punie_workers import children, programs
from punie_workers.halves import Halves, Opened
from punie_workers.programs import Kinds, Program
from punie_workers.readers import Folder, Reader, nowhere, standing_in

TIMEOUT: Final = 60.0
MAX_OUTPUT: Final = 32 * 1024 * 1024

KINDS: Final = Kinds(missing="checker_missing", failed="checker_failed", output="checker_output")
TY: Final = Program(name="ty", kinds=KINDS, timeout=TIMEOUT, limit=MAX_OUTPUT)
RUFF: Final = Program(name="ruff", kinds=KINDS, timeout=TIMEOUT, limit=MAX_OUTPUT)

_TY = ["check", "--output-format=gitlab", "--no-progress", "--color=never", "--force-exclude"]
_RUFF = [
    "check",
    "--output-format=json",
    "--no-fix",
    "--no-fix-only",
    "--no-cache",
    "--force-exclude",
    "--extend-select=E902",  # a file that cannot be read is else a warning that nobody sees
]
_FINDINGS = frozenset({0, 1})
"""Exit statuses of a run that came to its end; any other one is a crash or a bad configuration."""
_UNREADABLE = 2
"""The exit status of ty for a bad configuration, and for a file that it cannot read, which is then
among its findings."""

_SETTINGS: Final = ("pyproject.toml", "ruff.toml", ".ruff.toml", "ty.toml")
_USER_SETTINGS: Final = (
    *("~/.config/ruff", "~/.config/ty"),
    *("~/Library/Application Support/ruff", "~/Library/Application Support/ty"),
)
"""Where both read configuration that is not the project's."""


class _Place(Opened):
    """The folder to work in; its path, relative to the root; the name in it."""

    path: str
    name: str


class Checkers:
    """Both checkers on one project. `find` returns where the program of a name is."""

    def __init__(
        self,
        halves: Halves,
        find: Callable[[str], str] = programs.bundled,
        reader: Reader | None = None,
    ) -> None:
        self._halves = halves
        self._find = find
        self._reader = reader or Reader(halves, find=nowhere)

    async def run(self, arguments: Arguments) -> Result:
        """Return the result of one tool call. Raises `PunieError`: a checker that is missing,
        hangs, crashes or prints something unreadable never looks like a clean project."""
        match arguments:
            case Typecheck():
                return await self._typecheck(arguments)
            case RuffCheck():
                return await self._ruff_check(arguments)
            case _:
                raise PunieError(Internal(message=f"{type(arguments).__name__} is no checker"))

    async def _typecheck(self, wanted: Typecheck) -> TypecheckResult:
        async with self._open(wanted.path) as place:
            root = "/".join(".." for _ in place.path.split("/") if place.path) or "."
            options = [*_TY, f"--project={root}"]
            request = await self._check(TY, options, place, "check_types", wanted.limit)
            return await self._halves.call(request, TypecheckResult)

    async def _ruff_check(self, wanted: RuffCheck) -> RuffCheckResult:
        async with self._open(wanted.path) as place:
            request = await self._check(RUFF, _RUFF, place, "check_ruff", wanted.limit)
            return await self._halves.call(request, RuffCheckResult)

    def _open(self, path: str) -> AbstractAsyncContextManager[_Place]:
        return self._halves.opened(encode_request("check_place", {"path": path}), _Place)

    async def _check(
        self, program: Program, options: list[str], place: _Place, operation: str, limit: int
    ) -> bytes:
        """Run the program; return the request that has its output read."""
        command = [self._find(program.name), *options, "--", f"./{place.name}"]
        folder = Folder(place.fd, place.path)
        settings = [*_USER_SETTINGS, *_above(self._halves.root)]
        output = await self._reader.run(program, command, folder, _environment(), settings)
        found = program is TY and output.data.strip()
        data = programs.check(program, output, _FINDINGS | {_UNREADABLE} if found else _FINDINGS)
        arguments = {"output": data, "code": output.code, "folder": place.path, "limit": limit}
        return encode_request(operation, arguments)


def _above(root: str) -> list[str]:
    """Return where settings of the folders above the project stand: a project may be one of
    several in a repository."""
    return standing_in(PurePosixPath(root).parents, _SETTINGS)


def _environment() -> dict[str, str]:
    """Without ``PATH``: there is no program for them to find."""
    return {name: value for name, value in children.environment().items() if name != "PATH"}
