"""Background tasks that nobody awaits: kept alive, and their defects logged."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from punie_supervisor import logs


class Tasks:
    """Owns tasks until they end. An exception out of one is a defect: logged with its trace."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run `work` in a task of its own."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def cancel(self) -> None:
        """Cancel what runs and wait for its end."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logs.get(task=task.get_name()).error("task.failed", exc_info=error)
