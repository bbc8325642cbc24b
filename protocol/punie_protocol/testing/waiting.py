"""Waiting in tests: never for ever, and saying for what."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from punie_protocol.errors import PunieError, TimedOut

PATIENCE: Final = 15.0
"""Seconds any wait may take that says nothing else."""


async def within[R](awaited: Awaitable[R], what: str, seconds: float = PATIENCE) -> R:
    """Return what `awaited` comes to. Raises `PunieError` with `TimedOut` naming `what`."""
    try:
        async with asyncio.timeout(seconds):
            return await awaited
    except TimeoutError:
        raise _late(what, seconds) from None


async def until(
    condition: Callable[[], object], what: str = "that", seconds: float = PATIENCE
) -> None:
    """Wait until `condition()` is true, looking every few milliseconds. Raises as `within`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise _late(what, seconds)
        await asyncio.sleep(0.005)


def _late(what: str, seconds: float) -> PunieError:
    return PunieError(TimedOut(message=f"no {what} within {seconds:g} s", limit_s=seconds))
