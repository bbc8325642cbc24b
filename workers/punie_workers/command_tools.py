"""`run_command`: a program of the project, run to its end or in the background."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from punie_protocol.client import BackgroundCommand
from punie_protocol.errors import InvalidRequest, PunieError, TimedOut, ToolFailed, WireError
from punie_protocol.tool_types import Result
from punie_protocol.tools_commands import ALL_JOBS, MAX_COMMAND, RunCommand, RunCommandResult
from punie_workers import programs
from punie_workers.actions import Action, Subject
from punie_workers.command_rules import SHELL, shell_text, shown
from punie_workers.following import Ended
from punie_workers.interp.plain import visible
from punie_workers.jobs import LIFETIME, Jobs
from punie_workers.launching import KINDS, MAX_OUTPUT, Launch, Launcher
from punie_workers.printed import Printed

type Show = Callable[[str], None]
"""Shows what a program has printed lately, in place of what was shown before."""

SHOW_S: Final = 0.25
"""Seconds between two shows at the least; `RARER` of the time so far when that is more."""
RARER: Final = 1 / 40

_SHELL_SIGNAL: Final = 128
"""A status above it is that of a program ended by a signal, as shells and sandboxes tell it."""
_NOT_FOUND: Final = (126, 127)
_KILLERS: Final = frozenset({4, 5, 6, 7, 8, 9, 11, 24, 25, 31})
"""SIGILL, TRAP, ABRT, BUS, FPE, KILL, SEGV, XCPU, XFSZ, SYS: no program ends so on purpose."""
_WHY: Final = {
    "SIGKILL": "it may have used more memory than there is: do less at once",
    "SIGXCPU": "it used up its CPU time: do less at once",
    "SIGXFSZ": "it wrote a file larger than a program may",
}


def unseen(text: str) -> None:
    """Show nobody anything."""
    del text


class CommandTools:
    """Commands of one project. Owns those in the background until `close`."""

    def __init__(self, launcher: Launcher, on_change: Callable[[int], None]) -> None:
        self._launcher = launcher
        self._jobs = Jobs(on_change)

    async def prepare(self, wanted: RunCommand, show: Show = unseen) -> Action:
        """Return what the call would do; nothing has happened yet. Raises `PunieError`."""
        _check(wanted)
        if wanted.job:
            return self._about_job(wanted)
        command = words(wanted)
        sandbox = await self._launcher.sandbox()
        launch = Launch(
            command=command,
            folder=await self._launcher.folder(wanted.cwd),
            timeout=LIFETIME if wanted.background else wanted.timeout,
            sandbox=sandbox,
            network=wanted.network,
            lasting=wanted.background,
            name="the command" if shell_text(command) else f"'{visible(command[0][:100])}'",
            advice="give it more time (timeout), or run it in the background",
        )
        subject = Subject(
            command=command,
            folder=launch.folder,
            network=wanted.network or sandbox is None,
            confined=sandbox is not None,
        )
        if wanted.background:
            return deed(subject, describe(launch, None), lambda: self._begin(launch))
        text = describe(launch, wanted.timeout)
        return deed(subject, text, lambda: self._finish(launch, show))

    async def running(self, *, stop: bool) -> list[BackgroundCommand]:
        """Return what runs in the background, ended first when `stop`. Raises `PunieError`."""
        found = self._jobs.running()
        if stop:
            await self._jobs.stop(ALL_JOBS)
        return found

    def close(self) -> None:
        """End what runs in the background; does not wait."""
        self._jobs.close()

    def _about_job(self, wanted: RunCommand) -> Action:
        async def run() -> Result:
            if wanted.stop:
                return await self._jobs.stop(wanted.job)
            return self._jobs.look(wanted.job)

        return deed(Subject(settled=True), "", run)

    async def _begin(self, launch: Launch) -> Result:
        name = visible(shown(launch.command))

        async def work(take: Callable[[bytes], None]) -> Ended:
            printed = Printed()

            def both(data: bytes) -> None:
                printed.add(data)
                take(data)

            ended = await self._launcher.run(launch, both)
            check_end(launch, ended, printed)
            return ended

        return await self._jobs.start(name, work)

    async def _finish(self, launch: Launch, show: Show) -> Result:
        begun = time.monotonic()
        printed = Printed()
        ended = await followed(self._launcher, launch, printed, show)
        check_end(launch, ended, printed)
        return RunCommandResult(
            ok=ended.code == 0,
            exit_code=status(ended),
            output=printed.text(),
            truncated=printed.truncated,
            duration=round(time.monotonic() - begun, 3),
            job="",
            running=False,
        )


def words(wanted: RunCommand) -> tuple[str, ...]:
    """Return the words that a call runs. Raises `PunieError` for what no program can be given."""
    given = wanted.command
    command = (*SHELL, given) if isinstance(given, str) else tuple(given)
    if not command[0] or not command[-1 if isinstance(given, str) else 0].strip():
        raise _invalid("a command begins with the name of a program")
    if sum(map(len, command)) > MAX_COMMAND:
        hint = "write a long text into a file first"
        raise _invalid(f"the command is longer than {MAX_COMMAND} characters", hint)
    try:
        torn = any(b"\0" in word.encode() for word in command)
    except UnicodeEncodeError:
        torn = True
    if torn:
        raise _invalid("the command holds a character that no program can be given")
    return command


async def followed(launcher: Launcher, launch: Launch, printed: Printed, show: Show) -> Ended:
    """Run a program and show what it prints. Raises `PunieError` as `Launcher.run` does, with the
    output so far when it took too long."""
    live = _Live(printed, show)
    try:
        return await launcher.run(launch, live.take)
    except PunieError as error:
        raise PunieError(_late(launch, error.error, printed)) from None
    finally:
        live.close()


def status(ended: Ended) -> int:
    """Return the exit status as a shell tells it."""
    return ended.code if ended.code >= 0 else _SHELL_SIGNAL - ended.code


def describe(launch: Launch, timeout: float | None) -> str:
    """Return all that a person must know of a program before it runs; without a `timeout` it runs
    in the background. Each line of a command is marked: none passes for what is said of it."""
    command = visible(shown(launch.command)).replace("\n", "\n> ")
    lines = [f"$ {command}"]
    if launch.folder != ".":
        lines.append(f"in the folder {visible(launch.folder)}")
    if timeout is None:
        lines.append("in the background, until it is stopped or the project is closed")
    else:
        lines.append(f"for at most {timeout:g} s")
    if launch.sandbox is None:
        lines.append("without a sandbox: it can read and change whatever you can")
    elif launch.network:
        lines.append("with access to the network")
    return "\n".join(lines)


class _Live:
    """Takes what is printed and shows its end, soon and then ever more rarely: each show is kept
    for whoever attaches later."""

    def __init__(self, printed: Printed, show: Show) -> None:
        self._printed = printed
        self._show = show
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def take(self, data: bytes) -> None:
        self._printed.add(data)
        if self._timer is None:
            delay = max(SHOW_S, (self._loop.time() - self._begun) * RARER)
            self._timer = self._loop.call_later(delay, self._tick)

    def close(self) -> None:
        """Show what was not shown yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._tick()

    def _tick(self) -> None:
        self._timer = None
        self._show(self._printed.recent())


def _check(wanted: RunCommand) -> None:
    """Raise `PunieError` for arguments that do not go together."""
    if wanted.job:
        if wanted.command or wanted.background or wanted.network:
            raise _invalid("a call is about a job or runs a command, not both")
    elif wanted.stop:
        raise _invalid("stop ends a background command: name its job")
    elif not wanted.command:
        raise _invalid("there is no command", 'give it as ["program", "argument"] or as a text')


def _invalid(message: str, hint: str = "") -> PunieError:
    return PunieError(InvalidRequest(message=f"run_command: {message}", hint=hint))


def deed(subject: Subject, description: str, work: Callable[[], Awaitable[Result]]) -> Action:
    """Return the action of doing `work`; once begun, it has happened."""
    begun: list[bool] = []

    async def run() -> Result:
        begun.append(True)
        return await work()

    return Action(subject, (), run, lambda: bool(begun), description)


def _late(launch: Launch, error: WireError, printed: Printed) -> WireError:
    if not isinstance(error, TimedOut) or error.limit_s != launch.timeout:
        return error
    return ToolFailed(
        kind="command_timeout",
        message=f"{launch.name} took longer than {launch.timeout:g} s and was ended",
        hint=launch.advice,
        output=printed.text(),
    )


def check_end(launch: Launch, ended: Ended, printed: Printed) -> None:
    """Raise `PunieError` for an end that says nothing of what the program was to do."""
    if not ended.complete:
        message = f"{launch.name} printed more than {MAX_OUTPUT // 1024**2} MB and was ended"
        hint = "have it print less, or into a file"
        raise _failed(KINDS.output, message, hint, printed.recent().rstrip("\n"))
    if ended.code in _NOT_FOUND and f"exec: {launch.command[0]}: " in printed.text():
        where = "in the sandbox" if launch.sandbox else "on this machine"
        message = f"there is no program '{launch.command[0]}' {where} that can be run"
        hint = "name one that is installed, or its path relative to cwd, such as ./run.sh"
        raise _failed(KINDS.missing, message, hint, printed.text())
    number = status(ended) - _SHELL_SIGNAL
    if number in _KILLERS:
        name = programs.signal_name(number)
        message = f"{launch.name} was ended by {name}"
        raise _failed("command_killed", message, _WHY.get(name, ""), printed.text())


def _failed(kind: str, message: str, hint: str, output: str) -> PunieError:
    return PunieError(ToolFailed(kind=kind, message=message, hint=hint, output=output))
