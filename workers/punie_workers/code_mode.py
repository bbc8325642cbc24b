"""Code Mode: runs the model's Python in Monty, a sandbox process, one fresh process a program.

`feed_start` and `resume` are driven here, so a cancelled program leaves no host call running and
its process is ended at once. A pool keeps one process warm: a program starts in about 25 ms.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pydantic_monty as monty

from punie_protocol.errors import Internal, PunieError, ToolFailed
from punie_protocol.limits import MAX_TOOL_OUTPUT
from punie_protocol.tool_views import bind_arguments, stubs
from punie_protocol.tools import TOOLS, Arguments, ExecuteCodeResult, Result, Tool
from punie_workers.code_errors import describe, time_limit, tool_error
from punie_workers.code_views import CODE_TOOLS, STAND_INS, view

TIME_LIMIT: Final = 30.0
MEMORY_LIMIT: Final = 256 * 1024 * 1024
MAX_CALLS: Final = 1000
MAX_PROCESSES: Final = 8

type CallTool = Callable[[Tool, Arguments], Awaitable[Result]]
"""Runs one nested tool call. Raises `PunieError`."""


class CodeMode:
    """The pool of one worker process. `start` may be called often; `run` starts it if need be."""

    def __init__(self) -> None:
        self._pool: monty.AsyncMonty | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> monty.AsyncMonty:
        """Start the pool and its first process; a few milliseconds."""
        async with self._starting:
            if self._pool is None:
                pool = monty.AsyncMonty(
                    min_processes=1,
                    max_processes=MAX_PROCESSES,
                    checkout_timeout=TIME_LIMIT,
                    max_checkouts_per_worker=1,
                )
                self._pool = await pool.__aenter__()
            return self._pool

    async def run(
        self, code: str, call_tool: CallTool, *, time_limit_s: float = TIME_LIMIT
    ) -> ExecuteCodeResult:
        """Return what `code` printed. Raises `PunieError` with `ToolFailed` for everything that
        goes wrong in it: checked before any effect, raised in it, or over a limit."""
        pool = await self.start()
        program = _Program(code, call_tool)
        try:
            async with asyncio.timeout(time_limit_s):
                await program.run(pool, time_limit_s)
        except TimeoutError:
            raise time_limit(time_limit_s) from None
        except monty.MontyError as error:
            raise describe(error, program.told, time_limit_s, MEMORY_LIMIT) from None
        return program.result()


class _Program:
    """One run. `told` are the tool errors that were raised in the sandbox."""

    def __init__(self, code: str, call_tool: CallTool) -> None:
        self.told: set[str] = set()
        self._code = code
        self._call_tool = call_tool
        self._printed: list[str] = []
        self._size = 0
        self._calls = 0

    async def run(self, pool: monty.AsyncMonty, time_limit_s: float) -> None:
        limits: monty.ResourceLimits = {
            "max_feed_duration_secs": time_limit_s,
            "max_memory": MEMORY_LIMIT,
            "max_suspensions": 4 * MAX_CALLS,
        }
        checkout = pool.checkout(
            limits=limits,
            type_check=True,
            type_check_stubs=stubs(),
            type_check_format="concise",
            os_policy={"sleep": "zero"},
        )
        async with checkout as session:
            step = await session.feed_start(self._code, print_callback=self._print)
            while not isinstance(step, monty.MontyComplete):
                step = await self._answer(step)

    def result(self) -> ExecuteCodeResult:
        text = "".join(self._printed).removesuffix("\n")
        truncated = len(text) > MAX_TOOL_OUTPUT
        if truncated:
            text = f"{text[:MAX_TOOL_OUTPUT]}\n… output cut at {MAX_TOOL_OUTPUT // 1024} KB"
        return ExecuteCodeResult(output=text or "(no output)", truncated=truncated)

    def _print(self, _stream: str, text: str) -> None:
        if self._size <= MAX_TOOL_OUTPUT:
            self._printed.append(text)
            self._size += len(text)

    async def _answer(self, step: Any) -> Any:
        match step:
            case monty.AsyncFunctionSnapshot(is_os_function=True):
                return await step.resume_not_handled()
            case monty.AsyncFunctionSnapshot():
                return await step.resume(await self._call(step))
            case monty.AsyncNameLookupSnapshot():
                stand_in = STAND_INS.get(step.variable_name)
                return await (step.resume(value=stand_in) if stand_in else step.resume())
            case _:
                raise PunieError(Internal(message=f"unexpected step of a program: {step!r}"))

    async def _call(self, step: monty.AsyncFunctionSnapshot) -> monty.ExternalResult:
        self._calls += 1
        if self._calls > MAX_CALLS:
            message = f"more than {MAX_CALLS} tool calls"
            raise PunieError(ToolFailed(kind="call_limit", message=message))
        name = str(step.function_name)
        if name not in CODE_TOOLS:
            return {"exc_type": "NameError", "message": f"name '{name}' is not defined"}
        try:
            arguments = bind_arguments(TOOLS[name], step.args, step.kwargs)
            return {"return_value": view(await self._call_tool(TOOLS[name], arguments))}
        except PunieError as error:
            text = tool_error(error)
            self.told.add(text)
            return {"exc_type": "RuntimeError", "message": text}
