"""Programs of Punie's own that read a project by its paths: ripgrep, ty, ruff, git.

They find a name first and open it later. Whoever swaps it for a link in between (a command of the
project that still runs, another program of the user) would have them read any file of the machine,
and a configuration may name files anywhere. So they run in the OS sandbox with the project
read-only and without a network: what it does not show cannot be read, whatever leads there
(``docs/decisions/0008-readers-in-the-sandbox.md``).

Where there is no sandbox, they run as they are. Commands are refused there, unless the user
allowed them without one, and then they can read all that the user can.
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from punie_protocol.errors import Denied, PunieError, ToolFailed
from punie_protocol.interp_codec import encode_request
from punie_protocol.isolation import SandboxSettings
from punie_workers import children, programs, threads
from punie_workers.halves import Halves
from punie_workers.programs import Output, Program
from punie_workers.sandbox import available
from punie_workers.sandbox.available import Missing
from punie_workers.sandbox.confinement import Confined, Confinement, Sandbox

PATIENCE: Final = 5.0
"""Seconds after which it is asked whether something in the project makes a program wait."""

_PRIVATE: Final = ("HOME", "TMPDIR", "GIT_DISCOVERY_ACROSS_FILESYSTEM")
"""Variables that are the sandbox's own, whatever the program's environment says: where things are,
and that the folders of a project may be mounts."""

_SANDBOX_FAILED: Final = ("bwrap: ", "sandbox-exec: ")
"""How a complaint begins that is not the program's own."""

_NO_FOLDER: Final = "Can't chdir"

_HINT: Final = "try again; `punie doctor` tells whether the sandbox works"

_NO_SETTINGS: Final = SandboxSettings()

_log = logging.getLogger(__name__)


class Folder(msgspec.Struct, frozen=True):
    """A folder of the project that a program runs in: an open descriptor, and the path relative to
    the root."""

    fd: int
    path: str


def nowhere() -> Missing:
    """There is no sandbox, whatever the machine has."""
    return Missing("none is wanted", "")


class _Special(msgspec.Struct):
    found: list[str]


class Reader:
    """Runs programs in the project of `halves`. `hidden` are folders that none of them may see,
    `settings` the user's; `find` returns the sandbox of this machine."""

    def __init__(
        self,
        halves: Halves,
        settings: SandboxSettings = _NO_SETTINGS,
        hidden: Sequence[str] = (),
        find: Callable[[], Sandbox | Missing] = available.find,
    ) -> None:
        self._halves = halves
        self._settings = settings
        self._hidden = tuple(hidden)
        self._find = find
        self._sandbox: Sandbox | Missing | None = None

    async def run(
        self,
        program: Program,
        command: Sequence[str],
        folder: Folder,
        environment: Mapping[str, str] | None = None,
        read: Sequence[str] = (),
    ) -> Output:
        """Return what `command` printed, run in `folder`, as `programs.run` does. `read` are paths
        outside the project that it needs. Raises `PunieError`; with ``special_file`` for a project
        in which it would wait for a pipe."""
        given = children.environment() if environment is None else environment
        place = _real(command[0])
        wanted = Confinement(
            root=self._halves.root,
            writable=False,
            bare=True,
            settings=self._settings,
            hidden=self._hidden,
            read=(place, *read),
        )
        async with self._entered(wanted, [place, *command[1:]], folder) as confined:
            if confined is None:
                return await self._run(program, command, folder, given, ())
            own = {name: confined.environment.get(name, "") for name in _PRIVATE}
            inside = {**given, **own}
            output = await self._run(program, confined.argv, folder, inside, confined.pass_fds)
        _check_sandbox(program, output)
        return output

    @asynccontextmanager
    async def _entered(
        self, wanted: Confinement, command: Sequence[str], folder: Folder
    ) -> AsyncGenerator[Confined | None]:
        """Yield what to start, ``None`` where there is no sandbox for this project."""
        if self._sandbox is None:
            self._sandbox = await threads.to_end(self._look)
        sandbox = self._sandbox
        if sandbox is None or isinstance(sandbox, Missing):
            yield None
            return
        stack = ExitStack()
        cwd = str(PurePosixPath(self._halves.root, folder.path))
        try:
            entering = sandbox.enter(wanted, command, cwd=cwd)
            yield await threads.to_end(lambda: stack.enter_context(entering))
        finally:
            await threads.to_end(stack.close)

    def _look(self) -> Sandbox | Missing | None:
        """Return the sandbox of this machine, ``None`` where there is none yet. `Missing` is for
        good: it cannot show this project, the home folder, say, which holds what a sandbox must
        hide."""
        found = self._find()
        if isinstance(found, Missing):
            return None
        if _suits(found, self._halves.root):
            return found
        return Missing("the project cannot be shown in it", "")

    async def _run(
        self,
        program: Program,
        command: Sequence[str],
        folder: Folder,
        environment: Mapping[str, str],
        pass_fds: Sequence[int],
    ) -> Output:
        running = asyncio.ensure_future(
            programs.run(program, command, folder.fd, environment, pass_fds=pass_fds)
        )
        try:
            await asyncio.wait([running], timeout=PATIENCE)
            if not running.done():
                await self._check_special(program)
            return await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _check_special(self, program: Program) -> None:
        """Raise `PunieError` when there is something in the project that never comes to an end."""
        request = encode_request("special_files", {})
        found = (await self._halves.call(request, _Special)).found
        if found:
            message = f"{program.name} waits: '{found[0]}' is a pipe or a device, not a file"
            hint = "remove it, or ask for a folder without it"
            raise PunieError(ToolFailed(kind="special_file", message=message, hint=hint))


def standing_in(folders: Iterable[PurePosixPath], names: Sequence[str]) -> list[str]:
    """Return the files of those names in `folders`. Links are left out: who may write in one of
    the folders, a project around this one, could have anything shown."""
    places = [Path(folder, name) for folder in folders for name in names]
    return [str(place) for place in places if place.is_file() and not place.is_symlink()]


def _real(program: str) -> str:
    """Return where a program really is: a link may not be shown."""
    return os.path.realpath(program)


def _suits(sandbox: Sandbox, root: str) -> bool:
    wanted = Confinement(root=root, writable=False, bare=True)
    try:
        with sandbox.enter(wanted, ["/bin/true"], cwd=root):
            return True
    except PunieError as error:
        moved = os.path.realpath(root) != root
        if moved or not isinstance(error.error, Denied):
            raise
        _log.info("%s: no sandbox for what reads it: %s", root, error.error.message)
        return False


def _check_sandbox(program: Program, output: Output) -> None:
    """Raise `PunieError` when the sandbox itself failed: no program ran, so none found nothing."""
    lines = output.errors.splitlines() if output.code != 0 else []
    if said := next((line for line in lines if line.startswith(_SANDBOX_FAILED)), ""):
        if _NO_FOLDER in said:
            raise programs.failed("not_found", "the folder was deleted meanwhile")
        raise programs.failed("sandbox", f"{program.name} was not started: {said}", _HINT)
