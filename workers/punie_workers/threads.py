"""Short work that blocks, done in a thread."""

import asyncio
import contextvars
from collections.abc import Callable


async def to_end[T](work: Callable[[], T]) -> T:
    """Return what `work` does in a thread, some milliseconds; cancelled, once it is done. That
    holds at the end of the loop too, which cancels every task: there is none round `work`."""
    loop = asyncio.get_running_loop()
    doing = loop.run_in_executor(None, contextvars.copy_context().run, work)
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
