"""Runs a program of ours in a folder given by descriptor, and sees to its end.

The one place where it is decided what a program that is missing, hangs, crashes or prints too
much means. It gets an allow-listed environment, no input, on Linux bounded memory, and a process
group of its own, which is killed when the answer is there, at the deadline, or when the caller is
cancelled. `run` is for programs whose whole output is read; those of the project, which are watched
while they run, are `following`'s.
"""

import asyncio
import errno
import os
import re
import signal
import sys
import sysconfig
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from punie_protocol.errors import PunieError, TimedOut, ToolFailed
from punie_workers import children

MAX_ERRORS: Final = 64 * 1024
"""Bytes of the error stream that are kept; the rest is read and dropped."""

MAX_MEMORY: Final = 4 * 1024**3
"""Bytes that it may allocate: a link to ``/dev/zero`` is a file without an end."""

_CHUNK = 256 * 1024
_REASON_LINES = 6
_REASON_WIDTH = 300
_QUOTED = re.compile(r"^\s*(\d+\s*\|.*|\|\s*\^*)")
"""A line of a file, as a complaint about it quotes it: the file may be any on this machine."""


class Kinds(msgspec.Struct, frozen=True):
    """The stable words of `ToolFailed` for a program: it is not there or cannot be started; it
    ended badly; what it printed cannot be used."""

    missing: str
    failed: str
    output: str


class Program(msgspec.Struct, frozen=True):
    """What is run, and its limits: seconds, and bytes of output that are read. `hint` says what to
    do about a limit."""

    name: str
    kinds: Kinds
    timeout: float
    limit: int
    hint: str = "ask for a smaller folder or a single file"


class Output(msgspec.Struct, frozen=True):
    """What was printed. `code` is negative for a signal; `complete` is false when `data` was cut
    at the limit, which ended the program."""

    code: int
    data: bytes
    errors: str
    complete: bool


def bundled(name: str) -> str:
    """Return where `name` is that came with Punie: beside its Python, and nowhere else."""
    folders = [Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))]
    places = [folder / name for folder in folders]
    return str(next((place for place in places if place.is_file()), places[0]))


async def run(
    program: Program,
    command: Sequence[str],
    folder: int,
    environment: Mapping[str, str] | None = None,
    *,
    pass_fds: Sequence[int] = (),
) -> Output:
    """Return what `command` printed, run in the folder of the descriptor `folder`. Without an
    `environment` it gets the allow-listed one. Raises `PunieError`: `ToolFailed` when it cannot
    be started, `TimedOut`. Cancelled, it leaves no process of the group behind."""
    process = await start(program, command, folder, environment, pass_fds)
    try:
        _bound_memory(process.pid)
        async with asyncio.timeout(program.timeout):
            return await _read(process, program.limit)
    except TimeoutError:
        raise late(program) from None
    finally:
        await end(process)


def check(program: Program, output: Output, codes: frozenset[int] = frozenset({0})) -> bytes:
    """Return the output of a program that ended with one of `codes` and was not cut. Raises
    `PunieError` with `ToolFailed`: a checker that crashed has not found the code to be right."""
    if not output.complete:
        message = f"{program.name} printed more than {program.limit // 1024**2} MB"
        raise failed(program.kinds.output, message, program.hint)
    if output.code not in codes:
        raise failed(program.kinds.failed, f"{program.name} {ending(output)}")
    return output.data


def failed(kind: str, message: str, hint: str = "") -> PunieError:
    """Return what the model is told."""
    return PunieError(ToolFailed(kind=kind, message=message, hint=hint))


def ending(output: Output) -> str:
    """Return how it ended, with the first lines of what it complained about."""
    if output.code < 0:
        how = f"was ended by {signal_name(-output.code)}"
    else:
        how = f"failed with status {output.code}"
    said = [_QUOTED.sub("", line).rstrip() for line in output.errors.splitlines()]
    lines = [line[:_REASON_WIDTH] for line in said if line]
    return "\n".join([f"{how}:", *lines[:_REASON_LINES]]) if lines else how


def signal_name(number: int) -> str:
    """Return what a signal is called."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


async def start(
    program: Program,
    command: Sequence[str],
    folder: int,
    environment: Mapping[str, str] | None,
    pass_fds: Sequence[int],
    output: int | None = None,
) -> asyncio.subprocess.Process:
    """Start it, to print on two pipes, or all of it to the descriptor `output`. It is one of the
    `children` until `end`."""
    pipe = asyncio.subprocess.PIPE
    try:
        starting = asyncio.create_subprocess_exec(
            *command,
            cwd=_path(folder),
            env=children.environment() if environment is None else environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe if output is None else output,
            stderr=pipe if output is None else asyncio.subprocess.STDOUT,
            limit=_CHUNK,
            process_group=0,
            pass_fds=pass_fds,
        )
        process = await _started(starting)
    except OSError as error:
        absent = isinstance(error, FileNotFoundError | PermissionError)
        kinds = program.kinds
        kind = kinds.missing if absent or error.errno == errno.ENOEXEC else kinds.failed
        message = f"{program.name} cannot be started: {error.strerror or type(error).__name__}"
        raise failed(kind, message) from None
    children.add(process.pid)
    return process


async def _started(
    starting: Coroutine[Any, Any, asyncio.subprocess.Process],
) -> asyncio.subprocess.Process:
    """Return the process. Cancelled, it ends what has started by then, with its group: asyncio
    would kill the leader alone."""
    task = asyncio.ensure_future(starting)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if task.exception() is None:
            await _over(task.result())
        raise


def _bound_memory(pid: int) -> None:
    if sys.platform != "linux":
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(ProcessLookupError, ValueError):  # it has ended; less is allowed already
        resource.prlimit(pid, resource.RLIMIT_DATA, (MAX_MEMORY, most))


def _path(fd: int) -> str:
    if sys.platform == "linux":
        return f"/proc/self/fd/{fd}"
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0").decode()  # type: ignore[attr-defined]


async def _read(process: asyncio.subprocess.Process, limit: int) -> Output:
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.TaskGroup() as group:
        errors = group.create_task(_drain(process.stderr))
        data = await _read_up_to(process.stdout, limit)
        if not (complete := process.stdout.at_eof()):
            kill(process)
            await _drain(process.stdout)
    code = await process.wait()
    return Output(code, data, errors.result().decode("utf-8", "replace"), complete)


async def _read_up_to(stream: asyncio.StreamReader, limit: int) -> bytes:
    """Return about `limit` bytes; the stream is at its end when there were no more."""
    data = bytearray()
    while len(data) <= limit and (chunk := await stream.read(_CHUNK)):
        data += chunk
    return bytes(data)


async def _drain(stream: asyncio.StreamReader) -> bytes:
    """Read to the end, so that a full pipe stops nobody; return the beginning."""
    data = bytearray()
    while chunk := await stream.read(_CHUNK):
        data += chunk[: MAX_ERRORS - len(data)]
    return bytes(data)


def late(program: Program) -> PunieError:
    """Return what is told of a program that took too long."""
    message = f"{program.name} took longer than {program.timeout:g} s"
    return PunieError(TimedOut(message=message, hint=program.hint, limit_s=program.timeout))


async def end(process: asyncio.subprocess.Process) -> None:
    """Leave nothing of the group behind; a killed leader is reaped at once."""
    try:
        await _over(process)
    finally:
        children.remove(process.pid)


async def _over(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of the group, reap its leader and close our ends of its pipes. `wait` does
    not wait for those: what left the group may hold the others for ever."""
    kill(process)
    await process.wait()
    cast(Any, process)._transport.close()  # there is no public way
    await asyncio.sleep(0)  # a pipe is closed by a callback


def kill(process: asyncio.subprocess.Process) -> None:
    """End the group, also when its leader is gone already: the number is not given to another
    group while a member lives. macOS says EPERM for a group of zombies."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError, PermissionError:
        return
