"""Runs Punie's own pinned ripgrep in a folder given by descriptor.

The model's patterns go here and never into `re`: ripgrep is linear in the input. A glob is no
``--glob``, which would override ignore rules; the project half filters instead, and a file type
made of the glob's last component only narrows the work.
"""

import asyncio
import re
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from punie_protocol.errors import Internal, PunieError, TimedOut, ToolFailed
from punie_workers import children

TIMEOUT: Final = 30.0
MAX_OUTPUT: Final = 32 * 1024 * 1024
"""Bytes read of one run; past it ripgrep is ended, and counts are of what was read."""

_MAX_ERRORS = 64 * 1024
_CHUNK = 256 * 1024
_MAX_COLUMNS = 2048
"""Bytes of a line that are printed: four for each character that is kept."""

_COMMON = ["--no-config", "--no-messages", "--no-require-git", "--no-ignore-global", "--null"]
_SAFE_TYPE = re.compile(r"[\w.*?+-]*(\{[\w.*?+,-]+\})?[\w.*?+-]*", re.ASCII)
"""Globs that ripgrep and the project half surely read alike."""


class Output(msgspec.Struct, frozen=True):
    """What was printed; `complete` is false when it was cut at `MAX_OUTPUT`."""

    data: bytes
    complete: bool


@cache
def executable() -> str:
    """Return the path of the `rg` that came with Punie. Raises `PunieError` without it."""
    for folder in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        if (found := folder / "rg").is_file():
            return str(found)
    raise PunieError(Internal(message="ripgrep is missing from Punie's environment"))


async def files(fd: int, *, at_root: bool) -> Output:
    """Return the files below the folder `fd`, each ended by NUL, in no order."""
    return await _run([*_COMMON, "--files", *_parents(at_root)], fd)


async def search(fd: int, pattern: str, glob: str, *, ignore_case: bool, at_root: bool) -> Output:
    """Return the lines that match `pattern`: path, NUL, number, colon, text, newline. Raises
    `PunieError` with ``invalid_pattern``."""
    _check(pattern)
    arguments = [*_COMMON, "--line-number", "--no-heading", "--with-filename", "--color=never"]
    arguments += [f"--max-columns={_MAX_COLUMNS}", "--max-columns-preview", *_parents(at_root)]
    arguments += ["--ignore-case"] if ignore_case else ["--case-sensitive"]
    last = glob.rsplit("/", 1)[-1]
    if _SAFE_TYPE.fullmatch(last) and last.strip("*") and "**" not in last:
        arguments += [f"--type-add=punie:{last}", "--type=punie"]
    return await _run([*arguments, "-e", pattern, "--", "."], fd)


def _check(pattern: str) -> None:
    """Refuse what cannot be an argument of a program."""
    if "\0" in pattern or any("\ud800" <= character <= "\udfff" for character in pattern):
        message = r"a NUL or half a surrogate pair in the pattern; write \x00 for a NUL"
        raise PunieError(ToolFailed(kind="invalid_pattern", message=message))


def _parents(at_root: bool) -> list[str]:
    """Below the root, ignore files of the folders above count; at the root nothing above does."""
    return ["--no-ignore-parent"] if at_root else []


def _folder(fd: int) -> str:
    if sys.platform == "linux":
        return f"/proc/self/fd/{fd}"
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0").decode()  # type: ignore[attr-defined]


async def _run(arguments: list[str], fd: int) -> Output:
    process = await asyncio.create_subprocess_exec(
        executable(),
        *arguments,
        cwd=_folder(fd),
        env=children.environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_CHUNK,
    )
    children.add(process.pid)
    try:
        async with asyncio.timeout(TIMEOUT):
            output, errors = await _read(process)
    except TimeoutError:
        message = f"the search took longer than {TIMEOUT:g} s"
        raise PunieError(TimedOut(message=message, limit_s=TIMEOUT)) from None
    finally:
        await _end(process)
    if process.returncode == 2 and errors:
        raise PunieError(ToolFailed(kind="invalid_pattern", message=_reason(errors)))
    return output


async def _read(process: asyncio.subprocess.Process) -> tuple[Output, str]:
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.TaskGroup() as group:
        errors = group.create_task(_read_up_to(process.stderr, _MAX_ERRORS))
        data = await _read_up_to(process.stdout, MAX_OUTPUT)
        if not (complete := process.stdout.at_eof()):
            _kill(process)
    await process.wait()
    return Output(data, complete), errors.result().decode("utf-8", "replace")


async def _read_up_to(stream: asyncio.StreamReader, limit: int) -> bytes:
    data = bytearray()
    while len(data) <= limit and (chunk := await stream.read(_CHUNK)):
        data += chunk
    return bytes(data)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Leave no process behind; a killed one is reaped at once."""
    _kill(process)
    try:
        await process.wait()
    finally:
        children.remove(process.pid)


def _kill(process: asyncio.subprocess.Process) -> None:
    try:
        process.kill()
    except ProcessLookupError:
        return


def _reason(errors: str) -> str:
    """Return ripgrep's reason in one line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    for line in lines:
        if line.startswith("error: "):
            return f"regex parse error: {line.removeprefix('error: ')}"
    return lines[0].removeprefix("rg: ")
