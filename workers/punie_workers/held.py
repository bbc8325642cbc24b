"""What the project half opened, and the host half gives back."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager

_opening: set[asyncio.Task[object]] = set()


@asynccontextmanager
async def held[T](
    opening: Coroutine[object, object, T], release: Callable[[T], None]
) -> AsyncGenerator[T]:
    """Yield what `opening` returns and `release` it afterwards. A project half cannot be stopped:
    cancelled meanwhile, this raises at once and releases what comes later."""
    task = asyncio.create_task(opening)
    _opening.add(task)
    task.add_done_callback(_opening.discard)
    try:
        value = await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda late: _release(late, release))
        raise
    try:
        yield value
    finally:
        release(value)


def _release[T](task: asyncio.Task[T], release: Callable[[T], None]) -> None:
    if not task.cancelled() and task.exception() is None:
        release(task.result())
