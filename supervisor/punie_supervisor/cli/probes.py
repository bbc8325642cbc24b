"""Programs that ``punie doctor`` runs, to see whether they do. Each has a deadline."""

import asyncio
import sys
import sysconfig
from pathlib import Path
from typing import Final

import msgspec

from punie_supervisor.cli import checks
from punie_supervisor.cli.checks import Check

PATIENCE: Final = 10.0
"""Seconds that one program may take."""

_AGAIN: Final = "run: scripts/bootstrap --again"


class _Ended(msgspec.Struct, frozen=True):
    """How a program ended: its exit code, the beginning of what it printed and complained of."""

    code: int
    printed: bytes
    errors: str


async def _run(*command: str | Path) -> _Ended:
    """Return how a program ended. Raises `OSError`, or `TimeoutError` past `PATIENCE`."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd="/",
    )
    try:
        async with asyncio.timeout(PATIENCE):
            printed, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return _Ended(process.returncode or 0, printed, errors.decode(errors="replace").strip())


async def _ours[T](module: str, kind: type[T], *args: str) -> T | str:
    """Return what a module of Punie's prints as JSON when it is run; a text says why it did not.
    The folder we are in may be anybody's: no module comes from there."""
    try:
        ended = await _run(sys.executable, "-P", "-m", module, *args)
    except TimeoutError:
        return f"no answer within {PATIENCE:g} s"
    except OSError as error:
        return str(error)
    try:
        return msgspec.json.decode(ended.printed, type=kind)
    except msgspec.MsgspecError:
        return ended.errors.rpartition("\n")[2] or f"exit code {ended.code}"


async def sandbox() -> list[Check]:
    """Have a worker's sandbox tried, as a worker tries it."""
    match await _ours("punie_workers.sandbox.available", checks.SandboxAnswer, "--json"):
        case str(why):
            return [checks.fail("sandbox", f"it cannot be tried: {why}", _AGAIN)]
        case answer:
            return [checks.sandbox(answer)]


async def blas() -> list[Check]:
    """Have the library loaded that a model host would load; on Linux alone it needs one."""
    if sys.platform != "linux":
        return []
    match await _ours("punie_model_host.blas", checks.BlasAnswer):
        case str(why):
            return [checks.warn("openblas", f"it cannot be tried: {why}", _AGAIN)]
        case answer:
            return [checks.blas(answer)]


async def program(name: str) -> list[Check]:
    """Look at a program where workers look for it: beside our Python, and nowhere else."""
    folders = [Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))]
    places = [one / name for one in folders]
    place = next((one for one in places if one.is_file()), places[0])
    try:
        ended = await _run(place, "--version")
    except TimeoutError:
        return [checks.fail(name, f"{place} did not end within {PATIENCE:g} s", _AGAIN)]
    except OSError as error:
        return [checks.fail(name, f"{place}: {error.strerror}", _AGAIN)]
    return [checks.program(name, place, ended.code, ended.printed.decode(errors="replace"))]
