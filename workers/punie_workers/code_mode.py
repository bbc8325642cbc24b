"""Code Mode: runs the model's Python in Monty, a sandbox process, one fresh process a program.

A fresh process (3 MB) needs 30 ms for its first program, nearly all of it for the type checker to
read Python's own stubs, and for the operating system's sandbox round it. So `prepare` and every
program that ends have the next sandbox check one line: it takes 23 MB then, starts a program in
4 ms, and is given back when nobody wants it for a minute.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import cache
from typing import Final

import pydantic_monty as monty

from punie_protocol.errors import PunieError
from punie_protocol.tool_views import stubs
from punie_protocol.tools_code import ExecuteCodeResult
from punie_workers.code_errors import not_started
from punie_workers.code_limits import Limits, too_busy
from punie_workers.code_program import CallTool, Program
from punie_workers.code_sandbox import CHECK_S, launcher

SPARE_TIME: Final = 60.0
"""How long a prepared sandbox waits for a program, seconds."""

_LIMITS: Final = Limits()


class CodeMode:
    """The sandboxes of one worker process, on one event loop. Owns those that wait for a program
    until `close`."""

    def __init__(self, limits: Limits = _LIMITS) -> None:
        self._limits = limits
        self._pool: monty.AsyncMonty | None = None
        self._kept = ExitStack()
        self._starting = asyncio.Lock()
        self._spare: asyncio.Task[monty.AsyncMontySession] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    async def run(self, code: str, call_tool: CallTool) -> ExecuteCodeResult:
        """Return what `code` printed. Raises `PunieError` with `ToolFailed` for everything that
        goes wrong in it. Cancelled, it ends the sandbox and the tool call under way; nothing is
        called after that."""
        try:
            async with self._session() as session:
                return await Program(code, call_tool, self._limits).run(session)
        finally:
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                self.prepare()

    def prepare(self) -> None:
        """Make a sandbox ready in the background, so that the next program starts at once. One
        that is ready waits another `SPARE_TIME`. After `close` it does nothing."""
        if self._closed:
            return
        if self._spare is None:
            self._spare = self._begun(self._prepared())
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = asyncio.get_running_loop().call_later(SPARE_TIME, self._drop_spare)

    async def close(self) -> None:
        """End every process that waits for a program, for good. One that runs a program ends with
        the task of its `run`: cancel that."""
        self._closed = True
        self._drop_spare()
        while self._ending:
            await asyncio.gather(*self._ending)
        async with self._starting:
            pool, self._pool = self._pool, None
            if pool is not None:
                await pool.__aexit__(None, None, None)
            self._kept.close()

    @asynccontextmanager
    async def _session(self) -> AsyncGenerator[monty.AsyncMontySession]:
        session = await self._take()
        try:
            yield session
        finally:
            await session.__aexit__(None, None, None)

    async def _take(self) -> monty.AsyncMontySession:
        try:
            if (spare := self._pop_spare()) is not None:
                with suppress(monty.MontyError):
                    return await self._received(spare)
            return await self._received(self._begun(self._checkout()))
        except TimeoutError:
            raise PunieError(too_busy(self._limits)) from None
        except monty.MontyError as error:
            raise PunieError(not_started(error)) from None

    async def _received(
        self, spare: asyncio.Task[monty.AsyncMontySession]
    ) -> monty.AsyncMontySession:
        try:
            return await asyncio.shield(spare)
        except asyncio.CancelledError:
            self._end(spare)
            raise

    def _begun(
        self, start: Coroutine[None, None, monty.AsyncMontySession]
    ) -> asyncio.Task[monty.AsyncMontySession]:
        return asyncio.create_task(start, name="code-mode-start")

    async def _prepared(self) -> monty.AsyncMontySession:
        session = await self._checkout()
        try:
            await session.feed_start("1")
        except BaseException:
            await session.__aexit__(None, None, None)
            raise
        return session

    async def _checkout(self) -> monty.AsyncMontySession:
        pool = await self._started()
        limits: monty.ResourceLimits = {
            "max_feed_duration_secs": self._limits.time_s,
            "max_memory": self._limits.memory,
            "max_suspensions": 4 * self._limits.calls,
        }
        checkout = pool.checkout(
            limits=limits,
            type_check=True,
            type_check_stubs=checker_stubs(),
            type_check_format="concise",
            os_policy={"sleep": "zero"},
        )
        return await checkout.__aenter__()

    async def _started(self) -> monty.AsyncMonty:
        async with self._starting:
            if self._pool is None:
                launched = launcher(self._limits)
                program = await asyncio.to_thread(self._kept.enter_context, launched)
                pool = monty.AsyncMonty(
                    binary_path=str(program),
                    min_processes=0,
                    max_processes=self._limits.processes,
                    checkout_timeout=self._limits.checkout_s,
                    request_timeout=self._limits.time_s + CHECK_S,
                    max_checkouts_per_worker=1,
                )
                self._pool = await pool.__aenter__()
            return self._pool

    def _pop_spare(self) -> asyncio.Task[monty.AsyncMontySession] | None:
        spare, self._spare = self._spare, None
        if self._expiry is not None:
            self._expiry.cancel()
        if spare is None or not spare.done():
            return spare
        usable = not spare.cancelled() and spare.exception() is None
        return spare if usable else None

    def _drop_spare(self) -> None:
        spare = self._pop_spare()
        if spare is not None:
            self._end(spare)

    def _end(self, spare: asyncio.Task[monty.AsyncMontySession]) -> None:
        ending = asyncio.create_task(_ended(spare), name="code-mode-ending")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)


@cache
def checker_stubs() -> str:
    """Return the stubs that programs are checked with, made once in a process."""
    return stubs()


async def _ended(spare: asyncio.Task[monty.AsyncMontySession]) -> None:
    """End a prepared sandbox. One that is still being made is waited for: killed in its first
    moments, ``bwrap`` would leave a process behind that waits for ever."""
    await asyncio.wait([spare])
    if not spare.cancelled() and spare.exception() is None:
        await spare.result().__aexit__(None, None, None)
