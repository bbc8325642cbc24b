"""One program of Code Mode: fed to a sandbox, its calls answered, its output kept.

`feed_start` and `resume` are driven here, in the task that runs the program: cancelled, it is
either in a tool call, which is then cancelled, or waits for the sandbox, which is then ended. No
call starts after that.
"""

import asyncio
import shlex
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import pydantic_monty as monty

from punie_protocol.errors import Internal, PunieError, WireError
from punie_protocol.tool_types import Arguments, Permission, Result, Tool
from punie_protocol.tool_views import bind_arguments
from punie_protocol.tools import TOOLS
from punie_protocol.tools_code import ExecuteCodeResult
from punie_workers.code_advice import name_advice, os_advice
from punie_workers.code_checks import rejection
from punie_workers.code_errors import describe, exit_text, so_far, tool_error
from punie_workers.code_limits import Limits, cut, too_long, too_many_calls, too_talkative
from punie_workers.code_views import CODE_TOOLS, STAND_INS, view

_IMPORTS: Final = frozenset({"import", "import_stubs"})
_MAX_SUBJECT: Final = 80

type CallTool = Callable[[Tool, Arguments], Awaitable[Result]]
"""Runs one nested tool call. Raises `PunieError`."""


class Program:
    """One run. Not used twice."""

    def __init__(self, code: str, call_tool: CallTool, limits: Limits) -> None:
        self._code = code
        self._source = code.encode("utf-8", "replace")
        self._call_tool = call_tool
        self._limits = limits
        self._output = _Output(limits)
        self._told: dict[str, WireError] = {}
        self._done: list[str] = []
        self._running = ""
        self._calls = 0
        self._line = 0

    async def run(self, session: monty.AsyncMontySession) -> ExecuteCodeResult:
        """Return what the program printed. Raises `PunieError` for everything that goes wrong in
        it: checked before any effect, raised in it, or over a limit; with what it had done."""
        deadline = asyncio.timeout(self._limits.total_s)
        try:
            async with deadline:
                self._output.stop_at(deadline)
                await self._drive(session)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise self._failed(self._stopped()) from None
        except monty.MontyError as error:
            text = exit_text(error)
            if text is None:
                failure = describe(error, self._told, self._limits, self._line)
                raise self._failed(failure) from None
            self._output.add("stdout", text)
        except PunieError as error:
            raise self._failed(error.error) from None
        return self._result()

    def _result(self) -> ExecuteCodeResult:
        output = self._output
        truncated = output.size > self._limits.output
        return ExecuteCodeResult(output=output.text() or "(no output)", truncated=truncated)

    def _failed(self, error: WireError) -> PunieError:
        return PunieError(so_far(error, self._done, self._output.text()))

    def _stopped(self) -> WireError:
        if self._output.overflow:
            return too_talkative(self._limits)
        return too_long(self._limits, self._running, self._line)

    async def _drive(self, session: monty.AsyncMontySession) -> None:
        step = await self._start(session)
        while not isinstance(step, monty.MontyComplete):
            step = await self._answer(step)

    async def _start(self, session: monty.AsyncMontySession) -> Any:
        try:
            return await session.feed_start(self._code, print_callback=self._output.add)
        except monty.MontyTypingError as error:
            if rejection(error.display()) is not None:
                raise
        return await session.feed_start(
            self._code, print_callback=self._output.add, skip_type_check=True
        )

    async def _answer(self, step: Any) -> Any:
        match step:
            case monty.AsyncFunctionSnapshot(is_os_function=True, function_name=name):
                if name in _IMPORTS:
                    return await step.resume_not_handled()
                return await step.resume(_raise("NotImplementedError", os_advice(str(name))))
            case monty.AsyncFunctionSnapshot():
                return await step.resume(await self._call(step))
            case monty.AsyncNameLookupSnapshot(variable_name=name):
                stand_in = STAND_INS.get(name)
                return await (step.resume(value=stand_in) if stand_in else step.resume())
            case _:
                raise PunieError(Internal(message=f"unexpected step of a program: {step!r}"))

    async def _call(self, step: monty.AsyncFunctionSnapshot) -> monty.ExternalResult:
        name = str(step.function_name)
        if name not in CODE_TOOLS:
            return _unknown(name, step.args)
        self._calls += 1
        self._line = self._line_of(step)
        if self._calls > self._limits.calls:
            raise PunieError(too_many_calls(self._limits, self._line))
        self._running = name
        try:
            arguments = bind_arguments(TOOLS[name], step.args, step.kwargs)
            result = await self._call_tool(TOOLS[name], arguments)
        except PunieError as error:
            self._running = ""
            text = tool_error(error)
            self._told[text] = error.error
            return _raise("RuntimeError", text)
        self._note(TOOLS[name], arguments)
        self._running = ""
        return {"return_value": view(result)}

    def _note(self, tool: Tool, arguments: Arguments) -> None:
        if tool.permission is not Permission.READ:
            first = msgspec.structs.astuple(arguments)[0]
            subject = shlex.join(first) if isinstance(first, list) else str(first)
            self._done.append(f"{tool.name} {subject[:_MAX_SUBJECT]}")

    def _line_of(self, step: monty.AsyncFunctionSnapshot) -> int:
        return self._source.count(b"\n", 0, step.position.start) + 1


class _Output:
    """What was printed. `add` is called from a thread of the sandbox's client."""

    def __init__(self, limits: Limits) -> None:
        self.size = 0
        self._limits = limits
        self._kept: list[str] = []
        self._stop: Callable[[], None] = lambda: None

    @property
    def overflow(self) -> bool:
        """Whether more was printed than a program may."""
        return self.size > self._limits.printed

    def stop_at(self, deadline: asyncio.Timeout) -> None:
        """End `deadline` at once when too much is printed: a program that only prints makes no
        step at which it could be stopped."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if not deadline.expired():
                deadline.reschedule(loop.time())

        def stop_soon() -> None:
            loop.call_soon_threadsafe(stop)

        self._stop = stop_soon

    def add(self, _stream: str, text: str) -> None:
        """Keep `text` as far as there is room for it."""
        if self.overflow:
            return
        room = self._limits.output - self.size
        if room > 0:
            self._kept.append(text[:room])
        self.size += len(text)
        if self.overflow:
            self._stop()

    def text(self) -> str:
        """Return what is kept, and how much was cut."""
        return cut("".join(self._kept).removesuffix("\n"), self.size, self._limits)


def _unknown(name: str, args: tuple[Any, ...]) -> monty.ExternalResult:
    if name in {"exit", "quit"}:
        return _raise("SystemExit", str(args[0]) if args and args[0] else "")
    hint = name_advice(name)
    return _raise("NameError", f"name '{name}' is not defined" + (hint and f" ({hint})"))


def _raise(kind: monty.ExcType, message: str) -> monty.ExternalResult:
    return {"exc_type": kind, "message": message}
