"""The tool calls of one turn: checked, run, shown, timed, and told to the model."""

import itertools
import logging
import time
from typing import Any, Final

import msgspec

from punie_protocol.errors import Internal, ModelFault, PunieError
from punie_protocol.limits import MAX_TOOL_OUTPUT
from punie_protocol.tool_views import decode_arguments
from punie_protocol.tools import TOOLS, Arguments, ExecuteCode, ExecuteCodeResult, Result, Tool
from punie_workers.code_errors import error_text
from punie_workers.code_mode import CodeMode
from punie_workers.tools import ReadTools
from punie_workers.updates import Updates

MAX_WRONG_CALLS: Final = 3
"""Calls with wrong arguments or unknown names that a turn bears; the next one ends it."""

_log = logging.getLogger(__name__)

_SMALLEST_LIMIT = 2048
_CHARACTERS_PER_TOKEN = 2
"""A result may take about half of the context window."""


class TurnTools:
    """Runs what the model calls. `seconds` is the wall time with at least one call running."""

    def __init__(
        self, read: ReadTools, code: CodeMode, updates: Updates, prompt_id: str, window: int
    ) -> None:
        self.seconds = 0.0
        self._read = read
        self._code = code
        self._updates = updates
        self._prompt_id = prompt_id
        self._limit = min(MAX_TOOL_OUTPUT, max(_SMALLEST_LIMIT, window * _CHARACTERS_PER_TOKEN))
        self._ids = itertools.count(1)
        self._wrong = 0
        self._running = 0
        self._since = 0.0

    async def call(self, name: str, arguments: dict[str, Any]) -> str:
        """Run a call of the model and return what it reads. Raises `PunieError` with
        `ModelFault` when it makes too many wrong calls."""
        tool = TOOLS[name]
        call_id = self._next_id()
        try:
            checked = decode_arguments(tool, arguments)
        except PunieError as error:
            await self._show_wrong(call_id, tool, arguments, error_text(error.error))
            self._count_wrong(error_text(error.error))
            return f"error: {error_text(error.error)}"
        try:
            return self._cut(_told(await self._run(tool, checked, call_id, None)))
        except PunieError as error:
            return self._cut(f"error: {error_text(error.error)}")

    def unknown(self, name: str) -> None:
        """Count a call of a tool that does not exist."""
        self._count_wrong(f"there is no tool '{name[:100]}'")

    async def _run(
        self, tool: Tool, arguments: Arguments, call_id: str, parent: str | None
    ) -> Result:
        """Run and show one call. Raises `PunieError`, whatever went wrong: a defect in a tool is
        told to the model and does not end the turn."""
        started = time.perf_counter()
        self._enter(started)
        try:
            await self._updates.tool_started(call_id, tool, arguments, parent)
            output: Result | PunieError = await self._outcome(tool, arguments, call_id)
        except BaseException:  # the turn is cancelled: there is no time to wait
            self._updates.tool_cancelled(call_id, tool.name, parent, time.perf_counter() - started)
            raise
        finally:
            self._leave(time.perf_counter())
        failed = isinstance(output, PunieError)
        shown = f"error: {error_text(output.error)}" if failed else output
        seconds = time.perf_counter() - started
        await self._updates.tool_finished(call_id, tool.name, shown, parent, seconds)
        if failed:
            raise output
        return output

    async def _outcome(self, tool: Tool, arguments: Arguments, call_id: str) -> Result | PunieError:
        try:
            return await self._dispatch(arguments, call_id)
        except PunieError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever it is, the model is told
            _log.exception("%s failed", tool.name)
            message = f"{tool.name}: {type(error).__name__}: {error}"
            return PunieError(Internal(message=message))

    async def _dispatch(self, arguments: Arguments, call_id: str) -> Result:
        match arguments:
            case ExecuteCode(code=code):

                async def nested(tool: Tool, inner: Arguments) -> Result:
                    return await self._run(tool, inner, self._next_id(), call_id)

                return await self._code.run(code, nested)
            case _:
                return await self._read.run(arguments)

    async def _show_wrong(
        self, call_id: str, tool: Tool, arguments: dict[str, Any], text: str
    ) -> None:
        await self._updates.tool_started(call_id, tool, arguments, None)
        await self._updates.tool_finished(call_id, tool.name, f"error: {text}", None, 0.0)

    def _count_wrong(self, text: str) -> None:
        self._wrong += 1
        if self._wrong > MAX_WRONG_CALLS:
            message = f"the model made {self._wrong} wrong tool calls in a turn; the last: {text}"
            raise PunieError(ModelFault(message=message))

    def _cut(self, text: str) -> str:
        if len(text) <= self._limit:
            return text
        return f"{text[: self._limit]}\n… cut, {len(text) - self._limit} more characters"

    def _next_id(self) -> str:
        return f"{self._prompt_id}:{next(self._ids)}"

    def _enter(self, now: float) -> None:
        if self._running == 0:
            self._since = now
        self._running += 1

    def _leave(self, now: float) -> None:
        self._running -= 1
        if self._running == 0:
            self.seconds += now - self._since


def _told(result: Result) -> str:
    """Return a result as the model reads it."""
    if isinstance(result, ExecuteCodeResult):
        return result.output
    return msgspec.json.encode(result).decode()
