"""Short work that blocks, done in a thread."""

import asyncio
from collections.abc import Callable


async def to_end[T](work: Callable[[], T]) -> T:
    """Return what `work` does in a thread, some milliseconds; cancelled, once it is done."""
    doing = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        while not doing.done():
            try:
                await asyncio.wait([doing])
            except asyncio.CancelledError:
                continue
        if not doing.cancelled():
            doing.exception()  # nobody is left to be told
        raise
