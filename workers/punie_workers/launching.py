"""Starts programs of a project: in the sandbox, or without one where the user said so.

There is no third way: without a sandbox and without that word nothing is started.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, assert_never

import msgspec

from punie_protocol.errors import PunieError, ToolFailed
from punie_protocol.interp_codec import encode_request
from punie_protocol.isolation import SandboxSettings, WorkerLimits
from punie_workers import children, following, threads
from punie_workers.following import Ended
from punie_workers.halves import Halves, Opened
from punie_workers.programs import Kinds, Program
from punie_workers.sandbox import available, bubblewrap, environment
from punie_workers.sandbox.available import Missing
from punie_workers.sandbox.confinement import Confined, Confinement, ProgramLimits, Sandbox
from punie_workers.sandbox.guard import Guard, Over, Replaced, Shared

MAX_OUTPUT: Final = 64 * 1024**2
"""Bytes that a program may print before it is ended."""
KINDS: Final = Kinds(missing="command_missing", failed="command_failed", output="command_output")

SHARE: Final = 3 / 4
"""What programs may use of their worker's limits: they are ended before it would be."""
_UNCOUNTED: Final = 1_000_000
"""Processes where there is no sandbox: the limit of the system counts all of the user's."""


def limits_of(worker: WorkerLimits | None) -> ProgramLimits:
    """Return the limits of programs; `worker` are those of their worker with all that it started,
    if it has any. Pure."""
    if worker is None:
        return ProgramLimits()
    cpu_s = max(int(worker.cpu_s * SHARE), 1)
    return ProgramLimits(
        memory=int(worker.memory_mb * 1024**2 * SHARE),
        cpu_s=cpu_s,
        together_s=cpu_s,
        processes=int(worker.processes * SHARE),
        files=worker.files,
    )


def _false() -> bool:
    return False


def _ignore(count: int) -> None:
    del count


class Premises(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker gives a project for its programs: the user's `settings` of the sandbox, what no
    program sees, whether the user lets them run where there is no sandbox, and who is told how
    many run in the background, at each change. `limits` are the worker's own, if it has any: the
    programs share them."""

    settings: SandboxSettings = SandboxSettings()
    hidden: tuple[str, ...] = ()
    unconfined: Callable[[], bool] = _false
    on_change: Callable[[int], None] = _ignore
    limits: WorkerLimits | None = None


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """One program: its words, the folder that it runs in (relative to the root), seconds it may
    take, and what it may do: unless `writable`, it can write to no place but `write`, which are
    absolute paths besides the project; else to those of the settings too. Without a `sandbox`
    it can do what the user can. One that is `lasting` runs beside what the user does. `name` is
    what it is called, `advice` what to do when it takes too long."""

    command: tuple[str, ...]
    folder: str
    timeout: float
    sandbox: Sandbox | None
    network: bool = False
    writable: bool = True
    write: tuple[str, ...] = ()
    lasting: bool = False
    name: str
    advice: str


class Place(Opened):
    """A folder of the project: an open descriptor and its path, relative to the root."""

    path: str


class Launcher:
    """Starts programs of the project of `halves`; `find` returns the machine's sandbox."""

    def __init__(
        self,
        halves: Halves,
        premises: Premises,
        find: Callable[[], Sandbox | Missing] = available.find,
    ) -> None:
        self._halves = halves
        self._premises = premises
        self._find = find
        self._limits = limits_of(premises.limits)
        self._shared = None if premises.limits is None else Shared()

    async def sandbox(self) -> Sandbox | None:
        """Return the sandbox; ``None`` where there is none and the user lets programs run without
        one. Raises `PunieError` where nobody does."""
        found = await asyncio.to_thread(self._find)
        if not isinstance(found, Missing):
            return found
        if self._premises.unconfined():
            return None
        message = f"no command is run: there is no sandbox on this machine: {found.reason}"
        raise PunieError(ToolFailed(kind="sandbox", message=message, hint=found.hint))

    async def folder(self, path: str) -> str:
        """Return the path of a folder of the project, relative to the root and without links.
        Raises `PunieError`."""
        async with self._opened(path) as place:
            return place.path or "."

    async def run(self, launch: Launch, take: Callable[[bytes], None]) -> Ended:
        """Run a program to its end; what it prints goes to `take`. Raises `PunieError`: `TimedOut`,
        `ToolFailed`, `Denied`. Afterwards, and cancelled, nothing of it runs any more; without a
        sandbox, nothing that stayed in its group."""
        program = Program(name=launch.name, kinds=KINDS, timeout=launch.timeout, limit=MAX_OUTPUT)
        async with self._opened(launch.folder) as place, self._entered(launch, place) as confined:
            return await following.follow(
                program,
                confined.argv,
                place.fd,
                confined.environment,
                take,
                pass_fds=confined.pass_fds,
                beside=partial(self._guard, confined) if launch.sandbox else None,
            )

    def _opened(self, path: str) -> AbstractAsyncContextManager[Place]:
        return self._halves.opened(encode_request("open_directory", {"path": path}), Place)

    @asynccontextmanager
    async def _entered(self, launch: Launch, place: Place) -> AsyncGenerator[Confined]:
        """Yield what to start; afterwards the sandbox has ended."""
        if launch.sandbox is None:
            yield self._unconfined(launch.command)
            return
        settings = self._premises.settings
        write = (*settings.write, *launch.write) if launch.writable else launch.write
        wanted = Confinement(
            root=self._halves.root,
            writable=launch.writable,
            network=launch.network,
            settings=msgspec.structs.replace(settings, write=list(write)),
            hidden=self._premises.hidden,
            read=() if launch.writable else tuple(settings.write),
            limits=self._limits,
            lasting=launch.lasting,
        )
        cwd = str(PurePosixPath(self._halves.root, place.path))
        entering = launch.sandbox.enter(wanted, launch.command, cwd=cwd)
        stack = ExitStack()
        try:
            yield await threads.to_end(lambda: stack.enter_context(entering))
        finally:
            await threads.to_end(stack.close)

    async def _guard(self, confined: Confined, pid: int) -> None:
        """Watch a sandbox. Raises `PunieError` when its programs take too much together, or their
        protection is gone: they were ended then."""
        guard = Guard(self._limits, replaced=confined.replaced, shared=self._shared)
        if why := await guard.watch(pid):
            raise _ended(why)

    def _unconfined(self, command: Sequence[str]) -> Confined:
        """Return what to start where there is no sandbox: the same limits and environment, but for
        the home and the ``PATH``, which are the user's."""
        limits = msgspec.structs.replace(self._limits, processes=_UNCOUNTED)
        folders = os.environ.get("PATH", "").split(os.pathsep)
        home = str(Path("~").expanduser())
        variables = environment.environment(
            children.outside(), home, filter(None, folders), self._premises.settings
        )
        return Confined((*bubblewrap.limited(limits), *command), variables, ())


def _ended(why: Over | Replaced) -> PunieError:
    message = f"the command was ended: {why.message}"
    match why:
        case Over():
            kind, hint = "command_limit", "do less at once"
        case Replaced(path=path):
            kind, hint = (
                "command_unprotected",
                f"have the user look at '{path}', then start it again",
            )
        case _:
            assert_never(why)
    return PunieError(ToolFailed(kind=kind, message=message, hint=hint))
