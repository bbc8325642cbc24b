"""One turn: from a prompt to the end of the answer, through pydantic-ai's agent graph.

Every model response and every set of tool results is durable before the next step. When the
model host goes away in the middle of a step, the step is repeated from what is durable; when this
process does, another one takes the turn up there (`Resume`).
"""

from collections.abc import Sequence
from typing import Any, Final
from uuid import uuid4

import msgspec
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.exceptions import ToolRetryError, UnexpectedModelBehavior
from pydantic_ai.messages import (
    FunctionToolCallEvent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    UserPromptPart,
)
from pydantic_ai.usage import UsageLimits
from pydantic_graph import End

from punie_protocol.errors import LinkClosed, ModelFault, ProcessLost, PunieError
from punie_protocol.messages.to_model_client import StopReason
from punie_protocol.tools import TOOLS
from punie_workers.coalescer import BlockKind
from punie_workers.conversation import Conversation
from punie_workers.manners import Repetition, answer_problem
from punie_workers.models import TurnModel
from punie_workers.stops import TurnStopped
from punie_workers.toolset import PunieToolset
from punie_workers.turn_tools import TurnTools
from punie_workers.updates import Updates

MAX_REPEATS: Final = 3
"""Repetitions of steps of one turn that lost the model host."""

_NO_LIMIT: Final = UsageLimits(request_limit=None)
"""Ours are `TurnLimits`: they say why, and count what a resumed turn used before."""

_NOTHING: Final = ModelFault(message="the model answered with nothing, twice")

_agent: Agent[TurnTools, str] = Agent(
    output_type=str,
    deps_type=TurnTools,
    name="punie",
    toolsets=[PunieToolset()],
    retries={"tools": 4, "output": 1},
)


@_agent.output_validator
async def _acceptable(ctx: RunContext[TurnTools], text: str) -> str:
    """Send a useless answer back once, with the reason; the second is what it is."""
    problem = answer_problem(text, check_fences=ctx.deps.check_fences)
    if problem is not None and ctx.retry == 0:
        raise ModelRetry(problem)
    if not text.strip():
        raise PunieError(_NOTHING)
    return text


class Outcome(msgspec.Struct, frozen=True):
    """How a turn ended, in ACP's word; `detail` says more of one that ended early."""

    stop_reason: str
    detail: str = ""


class Turn:
    """Runs once. `run` may be cancelled at any time; then call `keep_partial`."""

    def __init__(
        self,
        conversation: Conversation,
        prompt_id: str,
        text: str,
        model: TurnModel,
        tools: TurnTools,
        updates: Updates,
        *,
        stored: int = 0,
    ) -> None:
        self._conversation = conversation
        self._prompt_id = prompt_id
        self._text = text
        self._model = model
        self._tools = tools
        self._updates = updates
        self._asked = conversation.has_prompt(stored)
        self._partial = ""
        self._repetition = Repetition()

    async def run(self) -> Outcome:
        """Run the turn. Raises `PunieError`; what was durable by then stays in the history."""
        await self._conversation.begin_turn()
        if self._asked and self._conversation.is_answered:
            return Outcome("end_turn")
        if repairs := self._conversation.repairs():
            await self._conversation.append(self._prompt_id, repairs)
        try:
            return await self._run()
        except TurnStopped as stop:
            await self.keep_partial()
            return self._stopped(stop)
        except UnexpectedModelBehavior as error:
            nothing = isinstance(error.__cause__, ToolRetryError)  # sent back by pydantic-ai
            fault = ModelFault(message=f"the model's answer: {error}")
            raise PunieError(_NOTHING if nothing else fault) from None

    async def keep_partial(self) -> None:
        """Keep what a stopped turn had answered so far; nothing when it had not begun to."""
        if self._partial:
            answer = ModelResponse(
                parts=[TextPart(self._partial)],
                model_name=self._model.model_name,
                state="interrupted",
            )
            await self._keep(_prompt(self._text), answer)

    async def _run(self) -> Outcome:
        for repeat in range(MAX_REPEATS + 1):
            try:
                return await self._attempt()
            except LinkClosed as lost:
                if repeat == MAX_REPEATS:
                    raise _lost(self._model, lost) from None
                self._partial = ""
                self._updates.supersede()
        raise AssertionError

    def _stopped(self, stop: TurnStopped) -> Outcome:
        self._updates.notice(f"stopped: {stop.detail}")
        return Outcome(stop.stop_reason, stop.detail)

    async def _attempt(self) -> Outcome:
        async with _agent.iter(
            None if self._asked else self._text,
            message_history=self._conversation.messages,
            model=self._model,
            deps=self._tools,
            usage_limits=_NO_LIMIT,
        ) as run:
            node: Any = run.next_node
            while not isinstance(node, End):
                node = await self._step(run, node)
        return Outcome("end_turn")

    async def _step(self, run: Any, node: Any) -> Any:
        """Run one node and make what came of it durable; return the next."""
        if Agent.is_model_request_node(node):
            return await self._ask(run, node)
        if Agent.is_call_tools_node(node):
            async with node.stream(run.ctx) as events:
                async for event in events:
                    self._check(event)
            following = await run.next(node)
            if Agent.is_model_request_node(following):
                await self._conversation.append(self._prompt_id, [following.request])
            return following
        return await run.next(node)

    async def _ask(self, run: Any, node: Any) -> Any:
        """Have the model answer; show it as it comes."""
        if stop := self._tools.limits.request():
            raise stop
        self._repetition = Repetition()
        async with node.stream(run.ctx) as stream:
            async for event in stream:
                await self._show(event)
        await self._updates.end_block()
        following = await run.next(node)
        if Agent.is_call_tools_node(following):
            _tell_apart(following.model_response.tool_calls)
            await self._keep(node.request, following.model_response)
            self._check_length(following.model_response)
        if stop := self._tools.limits.tokens(self._model.totals.usage.output_tokens):
            raise stop
        return following

    def _check_length(self, response: ModelResponse) -> None:
        """An answer that was cut is not judged, nor asked for again: it would be cut again."""
        if self._model.totals.stop_reason is StopReason.LENGTH and not response.tool_calls:
            raise TurnStopped("max_tokens", "the answer reached the model's limit of tokens")

    async def _keep(self, request: ModelRequest, response: ModelResponse) -> None:
        """Store a response, with the prompt before it when that is not yet in the history."""
        new: list[ModelMessage] = [response] if self._asked else [request, response]
        self._asked, self._partial = True, ""
        await self._conversation.append(self._prompt_id, new)

    async def _show(self, event: Any) -> None:
        match event:
            case PartStartEvent(part=TextPart(content=text)):
                await self._say(text)
            case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
                await self._say(text)
            case PartStartEvent(part=ThinkingPart(content=text)):
                await self._think(text)
            case PartDeltaEvent(delta=ThinkingPartDelta(content_delta=str(text))):
                await self._think(text)
            case _:
                pass

    async def _say(self, text: str) -> None:
        self._partial += text
        await self._updates.text(BlockKind.MESSAGE, text)
        self._check_repetition(text)

    async def _think(self, text: str) -> None:
        await self._updates.text(BlockKind.THOUGHT, text)
        self._check_repetition(text)

    def _check_repetition(self, text: str) -> None:
        if self._repetition.add(text):
            raise TurnStopped("max_tokens", "the model repeats itself without end")

    def _check(self, event: Any) -> None:
        match event:
            case FunctionToolCallEvent(part=part) if part.tool_name not in TOOLS:
                self._tools.unknown(part.tool_name)
            case _:
                pass


def _lost(model: TurnModel, lost: LinkClosed) -> PunieError:
    message = f"the {model.where} was lost {MAX_REPEATS + 1} times in this turn: {lost.reason}"
    return PunieError(ProcessLost(message=message, process=model.where.replace(" ", "-"), pid=0))


def _tell_apart(calls: Sequence[ToolCallPart]) -> None:
    """Give each call an id of its own: there are servers that give them all the same."""
    seen = set[str]()
    for call in calls:
        if call.tool_call_id in seen:
            call.tool_call_id = f"call_{uuid4().hex}"
        seen.add(call.tool_call_id)


def _prompt(text: str) -> ModelRequest:
    return ModelRequest(parts=[UserPromptPart(text)])
