"""Short work in a thread, under cancellation."""

import asyncio
import contextlib

import pytest

from punie_workers import threads


@pytest.mark.parametrize("turns", range(6))
def test_what_is_begun_is_done_although_the_loop_ends_in_that_moment(turns: int) -> None:
    """`asyncio.run` cancels all tasks: one round the work would have ended before it began."""
    done: list[str] = []

    async def job() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await threads.to_end(lambda: done.append("cleaned up"))

    async def main() -> None:
        task = asyncio.create_task(job())
        await asyncio.sleep(0)
        task.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert done == ["cleaned up"]


def test_the_caller_has_what_the_work_returns_and_raises() -> None:
    async def main() -> None:
        assert await threads.to_end(lambda: 3) == 3
        with pytest.raises(ZeroDivisionError):
            await threads.to_end(lambda: 1 // 0)

    asyncio.run(main())


def test_a_cancelled_caller_waits_until_the_work_is_done() -> None:
    done: list[str] = []

    async def main() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        may = asyncio.Event()

        def work() -> None:
            loop.call_soon_threadsafe(begun.set)
            asyncio.run_coroutine_threadsafe(may.wait(), loop).result(10)
            done.append("done")

        task = asyncio.create_task(threads.to_end(work))
        await begun.wait()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        may.set()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert done == ["done"]

    asyncio.run(main())
