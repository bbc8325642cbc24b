"""The tool calls of one turn: checked, allowed, run, shown, timed, and told to the model.

Every route into a tool leads through `TurnTools._run`: a direct call of the model, and one from
a program of `execute_code`. What has effects is worked out first (`Action`), then allowed by the
session's gate, then durable as started, and only then done.
"""

import asyncio
import itertools
import logging
from functools import partial
from typing import Any, Final, assert_never

import msgspec

from punie_protocol.client import PromptMeta
from punie_protocol.errors import Denied, Internal, PunieError
from punie_protocol.limits import MAX_TOOL_OUTPUT
from punie_protocol.messages.common import ModelInfo, Outcome
from punie_protocol.messages.to_worker import Effect
from punie_protocol.permissions import PromptPermissions
from punie_protocol.tool_types import Arguments, Permission, Result, Tool
from punie_protocol.tool_views import decode_arguments
from punie_protocol.tools import TOOLS
from punie_protocol.tools_code import ExecuteCode, ExecuteCodeResult
from punie_protocol.tools_commands import PytestRunResult, RunCommandResult
from punie_protocol.tools_files import EditResult
from punie_workers.actions import Action
from punie_workers.code_errors import error_text
from punie_workers.code_mode import CodeMode
from punie_workers.conversation import Conversation
from punie_workers.dialogs import Admission
from punie_workers.gate import Gate
from punie_workers.manners import CallHistory, TurnLimits
from punie_workers.project_tools import ProjectTools
from punie_workers.stops import TurnStopped
from punie_workers.tool_clock import ToolCallClock, ToolClock
from punie_workers.updates import Updates, title

_log = logging.getLogger(__name__)

_SMALLEST_LIMIT: Final = 2048
_CHARACTERS_PER_TOKEN: Final = 2
"""A result may take about half of the context window."""


class TurnTools:
    """Runs what the model calls."""

    def __init__(
        self,
        project: ProjectTools,
        code: CodeMode,
        gate: Gate,
        conversation: Conversation,
        updates: Updates,
        clock: ToolClock,
        *,
        prompt_id: str,
        meta: PromptMeta,
        info: ModelInfo,
        limits: TurnLimits,
    ) -> None:
        self.clock = clock
        self.limits = limits
        self.check_fences = info.check_fences
        self._project = project
        self._code = code
        self._gate = gate
        self._conversation = conversation
        self._updates = updates
        self._prompt_id = prompt_id
        self._permissions = meta.permissions or PromptPermissions()
        self._attempt = meta.resume.attempt if meta.resume else 0
        room = info.context_window * _CHARACTERS_PER_TOKEN
        self._limit = min(MAX_TOOL_OUTPUT, max(_SMALLEST_LIMIT, room))
        self._ids = itertools.count(1)
        self._history = CallHistory()
        self._effects = asyncio.Lock()

    async def call(self, name: str, arguments: Any) -> str:
        """Run a call of the model and return what it reads. `arguments` are what it wrote, parsed
        if they are JSON: objects or not. Raises `TurnStopped` when the turn
        may not go on: too many calls, wrong ones, or the same one again and again."""
        tool = TOOLS[name]
        try:
            checked = decode_arguments(tool, arguments)
        except PunieError as error:
            text = error_text(error.error)
            await self._show_wrong(tool, arguments, text)
            self._stop_if(self.limits.wrong_call(name, text))
            return f"error: {text}"
        try:
            told = self._cut(_told(await self._run(tool, checked, None)))
        except PunieError as error:
            told = self._cut(f"error: {error_text(error.error)}")
        return self._remember(tool, checked, told)

    def unknown(self, name: str) -> None:
        """Count a call of a tool that does not exist. Raises `TurnStopped`."""
        self._stop_if(self.limits.wrong_call(name, f"there is no tool '{name[:100]}'"))

    def _remember(self, tool: Tool, arguments: Arguments, told: str) -> str:
        """Return `told`, with a note when the model goes round in circles."""
        note = self._history.add(tool.name, msgspec.json.encode(arguments).decode(), told)
        if self._history.stuck:
            raise TurnStopped("max_turn_requests", note or "the same tool call again and again")
        return f"{told}\n\n{note}" if note else told

    async def _run(self, tool: Tool, arguments: Arguments, parent: ToolCallClock | None) -> Result:
        """Run and show one call. Raises `PunieError`, whatever went wrong: a defect in a tool is
        told to the model and does not end the turn."""
        if parent is None:  # a program's calls are limited by Code Mode
            self._stop_if(self.limits.tool_call())
        with self.clock.call(self._next_id(), tool.name, parent) as call:
            try:
                await self._updates.tool_started(call, tool, arguments)
                output = await self._outcome(tool, arguments, call)
            except BaseException:  # the turn is cancelled or stopped: there is no time to wait
                call.outcome = Outcome.CANCELLED
                self._updates.tool_cancelled(call)
                raise
            call.outcome = _outcome_of(output)
            failed = isinstance(output, PunieError)
            shown = f"error: {error_text(output.error)}" if failed else output
            await self._updates.tool_finished(call, shown)
        if failed:
            raise output
        return output

    async def _outcome(
        self, tool: Tool, arguments: Arguments, call: ToolCallClock
    ) -> Result | PunieError:
        try:
            match tool.permission:
                case Permission.READ:
                    return await self._read(arguments, call)
                case Permission.EDIT | Permission.EXECUTE | Permission.NETWORK:
                    return await self._act(tool, arguments, call)
                case _:
                    assert_never(tool.permission)
        except PunieError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever it is, the model is told
            _log.exception("%s failed", tool.name)
            message = f"{tool.name}: {type(error).__name__}: {error}"
            return PunieError(Internal(message=message))

    async def _read(self, arguments: Arguments, call: ToolCallClock) -> Result:
        match arguments:
            case ExecuteCode(code=code):

                async def nested(tool: Tool, inner: Arguments) -> Result:
                    return await self._run(tool, inner, call)

                return await self._code.run(code, nested)
            case _:
                return await self._project.read(arguments)

    async def _act(self, tool: Tool, arguments: Arguments, call: ToolCallClock) -> Result:
        """Do what has effects, one at a time: what is asked for is what will happen."""
        async with self._effects:
            action = await self._project.prepare(
                arguments,
                partial(self._updates.tool_printed, call),
                read_only=self._gate.is_read_only(self._permissions),
            )
            await self._updates.tool_prepared(call, action)
            admission = self._admission(tool, arguments, action, call)
            await self._gate.admit(admission, call.asking)
            result = await self._do(tool, arguments, action, call)
        self._history.reset()
        return result

    def _admission(
        self, tool: Tool, arguments: Arguments, action: Action, call: ToolCallClock
    ) -> Admission:
        return Admission(
            call_id=call.id,
            tool=tool,
            arguments=arguments,
            action=action,
            title=title(tool.name, msgspec.structs.asdict(arguments)),
            permissions=self._permissions,
        )

    async def _do(
        self, tool: Tool, arguments: Arguments, action: Action, call: ToolCallClock
    ) -> Result:
        """Run an allowed action between two notes in the journal."""
        effect = Effect(
            effect_id=call.id,
            tool=tool.name,
            arguments=msgspec.json.encode(_without_texts(arguments)),
            ok=None,
            summary="",
        )
        await self._conversation.begin_effect(self._prompt_id, effect)
        try:
            result = await action.run()
        except asyncio.CancelledError:
            self._conversation.drop_effect(effect, happened=action.happened())
            raise
        except Exception as error:
            text = error_text(error.error) if isinstance(error, PunieError) else repr(error)
            await self._conversation.end_effect(effect, ok=action.happened(), summary=text)
            raise
        await self._conversation.end_effect(effect, ok=True, summary=_summary(result))
        return result

    async def _show_wrong(self, tool: Tool, arguments: Any, text: str) -> None:
        given = arguments if isinstance(arguments, dict) else {"arguments": arguments}
        with self.clock.call(self._next_id(), tool.name, None) as call:
            call.outcome = Outcome.FAILED
            await self._updates.tool_started(call, tool, given)
            await self._updates.tool_finished(call, f"error: {text}")

    def _stop_if(self, stop: TurnStopped | None) -> None:
        if stop is not None:
            raise stop

    def _cut(self, text: str) -> str:
        if len(text) <= self._limit:
            return text
        return f"{text[: self._limit]}\n… cut, {len(text) - self._limit} more characters"

    def _next_id(self) -> str:
        """Return an id that no earlier attempt at this prompt has given."""
        again = f"{self._attempt}." if self._attempt else ""
        return f"{self._prompt_id}:{again}{next(self._ids)}"


def _outcome_of(output: Result | PunieError) -> Outcome:
    if isinstance(output, PunieError):
        return Outcome.DENIED if isinstance(output.error, Denied) else Outcome.FAILED
    return Outcome.OK


def _told(result: Result) -> str:
    """Return a result as the model reads it."""
    if isinstance(result, ExecuteCodeResult):
        return result.output
    return msgspec.json.encode(result).decode()


def _summary(result: Result) -> str:
    match result:
        case EditResult(path=path, added=added, removed=removed):
            return f"{path} +{added} -{removed}"
        case RunCommandResult(running=True, job=job):
            return f"{job} runs"
        case RunCommandResult(exit_code=code):
            return f"status {code}"
        case PytestRunResult(passed=passed, failed=failed, errors=errors):
            return f"{passed} passed, {failed} failed, {errors} errors"
        case _:
            return type(result).__name__


def _without_texts(arguments: Arguments) -> dict[str, Any]:
    """Return arguments for the journal: long texts are in the conversation already."""
    fields = msgspec.to_builtins(msgspec.structs.asdict(arguments))
    return {
        name: f"({len(value)} characters)" if isinstance(value, str) and len(value) > 500 else value
        for name, value in fields.items()
    }
