"""One session: its conversation, its queue of prompts, the turn under way."""

import asyncio
import logging
import time
from collections import deque
from functools import partial
from typing import Final

import msgspec
from acp import schema

from punie_protocol import jsonrpc
from punie_protocol.client import PromptMeta, ResultMeta
from punie_protocol.errors import Cancelled, Internal, Overloaded, PunieError, WireError
from punie_protocol.jsonrpc import Envelope, RpcId
from punie_protocol.messages.common import ModelInfo, Timings, Usage
from punie_protocol.messages.to_worker import OpenSession
from punie_protocol.permissions import Mode, PromptPermissions
from punie_workers import lifetime
from punie_workers.compaction import Compactor
from punie_workers.conversation import Conversation
from punie_workers.gate import Gate
from punie_workers.manners import TurnLimits
from punie_workers.models import TurnModel
from punie_workers.outlet import Outlet
from punie_workers.project import Project
from punie_workers.prompts import ProjectParts, instructions
from punie_workers.questions import Questions
from punie_workers.services import Services
from punie_workers.tool_clock import ToolClock
from punie_workers.totals import ModelTotals
from punie_workers.turn import Outcome, Turn
from punie_workers.turn_tools import TurnTools
from punie_workers.updates import Updates, dump

MAX_QUEUED: Final = 16
"""Prompts that wait behind the one under way."""
KEEP_TIMEOUT: Final = 2.0
"""Seconds for a cancelled turn to store its partial answer."""

_log = logging.getLogger(__name__)


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One ``session/prompt``. `received` is a `time.perf_counter` reading."""

    rpc_id: RpcId
    text: str
    meta: PromptMeta
    received: float

    @property
    def prompt_id(self) -> str:
        """The id for everything that comes of it."""
        return self.meta.prompt_id or f"p{self.rpc_id}"


class Session:
    """Runs prompts one after the other. Every prompt is answered exactly once. Making one raises
    `PunieError` when what was stored of it cannot be read."""

    def __init__(
        self, opened: OpenSession, project: Project, services: Services, outlet: Outlet
    ) -> None:
        self.session_id = opened.session_id
        self.project = project
        ledger = services.ledger.of(opened.session_id)
        self.questions = Questions(opened.session_id, outlet)
        self.gate = Gate(
            opened.session_id,
            self.questions,
            services.permissions,
            project.settings,
            ledger.grant,
            project.trust,
        )
        self.gate.mode = opened.mode
        self.gate.restore(opened.grants)
        self._services = services
        self._outlet = outlet
        self._conversation = Conversation(ledger)
        self._conversation.restore(opened.deltas, opened.effects)
        self._queue: deque[Prompt] = deque()
        self._current: Prompt | None = None
        self._turn: asyncio.Task[Outcome] | None = None
        self._runner: asyncio.Task[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a turn is under way."""
        return self._current is not None

    def restore(self, deltas: list[bytes]) -> None:
        """Take more of the conversation so far, before the first prompt. Raises `PunieError`."""
        self._conversation.restore(deltas)

    @property
    def mode(self) -> Mode:
        """The permission mode of prompts that bring none of their own."""
        return self.gate.mode or self._services.permissions.mode

    def set_mode(self, mode: Mode) -> None:
        """Change the permission mode, also of the turn under way."""
        self.gate.mode = mode

    def submit(self, prompt: Prompt) -> None:
        """Queue a prompt. Raises `PunieError` with `Overloaded` when too many wait."""
        if len(self._queue) + self.is_busy > MAX_QUEUED:
            message = f"{MAX_QUEUED} prompts of session {self.session_id} wait already"
            raise PunieError(Overloaded(message=message))
        self._queue.append(prompt)
        if self._runner is None:
            self._runner = asyncio.create_task(self._run_queue(), name=f"session {self.session_id}")

    def cancel(self) -> None:
        """Stop the turn under way and answer every waiting prompt with ``cancelled``."""
        waiting, self._queue = self._queue, deque()
        if self._turn is not None:
            self._turn.cancel()
        for prompt in waiting:
            self._answer_unstarted(prompt)

    def cancel_request(self, rpc_id: RpcId) -> bool:
        """Cancel the one prompt of that request id; false when there is none."""
        if self._current is not None and self._current.rpc_id == rpc_id:
            if self._turn is not None:
                self._turn.cancel()
            return True
        for prompt in self._queue:
            if prompt.rpc_id == rpc_id:
                self._queue.remove(prompt)
                self._answer_unstarted(prompt)
                return True
        return False

    async def close(self, reason: str) -> None:
        """Cancel, and wait until the turn is over."""
        self.cancel()
        if self._runner is not None:
            _log.info("session %s closes: %s", self.session_id, reason)
            await asyncio.wait([self._runner])

    async def _run_queue(self) -> None:
        while self._queue:
            self._current = self._queue.popleft()
            try:
                response = await self._run(self._current)
            except Exception as error:  # noqa: BLE001 - every prompt is answered
                response = jsonrpc.failure(self._current.rpc_id, _wire_error(error))
            self._current = self._turn = None
            self._outlet.send_nowait(response)
        self._runner = None
        lifetime.trim()  # a turn needs a megabyte that nobody needs after it

    async def _run(self, prompt: Prompt) -> bytes:
        """Return the response to `prompt`."""
        run = _Run(self, prompt)
        self._turn = asyncio.create_task(run.turn(), name=f"turn {prompt.prompt_id}")
        await asyncio.wait([self._turn])
        if self._turn.cancelled():
            await run.keep_partial()
        run.updates.close()
        return run.response(self._turn)

    def _answer_unstarted(self, prompt: Prompt) -> None:
        run = _Run(self, prompt)
        self._outlet.send_nowait(run.unstarted())


class _Run:
    """One prompt under way, and what is measured of it."""

    def __init__(self, session: Session, prompt: Prompt) -> None:
        self._session = session
        self._prompt = prompt
        self._started = time.perf_counter()
        project, resume = session.project, prompt.meta.resume
        self.updates = Updates(
            session.session_id,
            prompt.prompt_id,
            session._outlet,
            root=project.root,
            isolation=project.isolation,
            attempt=resume.attempt if resume else 0,
        )
        self._clock = ToolClock(project.isolation, self._started)
        self._connecting = ModelTotals()
        self._model: TurnModel | None = None
        self._turn: Turn | None = None

    async def turn(self) -> Outcome:
        session, prompt = self._session, self._prompt
        session._services.code.prepare()  # while the model reads the prompt
        permissions = prompt.meta.permissions or PromptPermissions()
        with self._connecting.queueing():
            info = await session._services.models.info(prompt.meta.backend)
        parts = await session.gate.begin(permissions, self.updates.notice, self._clock.asking)
        self._model = self._open_model(info, parts)
        tools = TurnTools(
            session.project.tools,
            session._services.code,
            session.gate,
            session._conversation,
            self.updates,
            self._clock,
            prompt_id=prompt.prompt_id,
            meta=prompt.meta,
            info=info,
            limits=TurnLimits(),
        )
        self._turn = Turn(
            session._conversation,
            prompt.prompt_id,
            prompt.text,
            self._model,
            tools,
            self.updates,
            stored=prompt.meta.resume.stored if prompt.meta.resume else 0,
        )
        return await self._turn.run()

    def _open_model(self, info: ModelInfo, parts: ProjectParts) -> TurnModel:
        session, prompt = self._session, self._prompt
        conversation = session._conversation
        compactor = Compactor(
            conversation.compaction,
            self.updates.notice,
            partial(conversation.compact, prompt.prompt_id),
        )
        model = session._services.models.open(
            info,
            prompt.meta.backend,
            client_id=session.project.client_id,
            conversation_id=session.session_id,
            instructions=instructions(info, parts),
            compactor=compactor,
        )
        model.totals.started = self._started
        return model

    async def keep_partial(self) -> None:
        """Keep what was said so far. A failure is logged: the prompt is answered all the same."""
        if self._turn is None:
            return
        try:
            async with asyncio.timeout(KEEP_TIMEOUT):
                await self._turn.keep_partial()
        except (PunieError, TimeoutError) as error:
            _log.warning("a cancelled answer was not stored: %s", error)

    def unstarted(self) -> bytes:
        """Return the response to a prompt that was cancelled before its turn."""
        return self._succeeded(Outcome("cancelled"))

    def response(self, turn: asyncio.Task[Outcome]) -> bytes:
        """Return the JSON-RPC response that `turn`, which is over, deserves."""
        if turn.cancelled():
            return self._succeeded(Outcome("cancelled"))
        if (error := turn.exception()) is not None:
            return self._failed(_wire_error(error))
        return self._succeeded(turn.result())

    def _succeeded(self, outcome: Outcome) -> bytes:
        meta = msgspec.to_builtins(self._meta(outcome.detail))
        response = schema.PromptResponse.model_validate(
            {"stopReason": outcome.stop_reason, "_meta": {"punie": meta}}
        )
        return jsonrpc.response(self._prompt.rpc_id, dump(response))

    def _failed(self, error: WireError) -> bytes:
        data = jsonrpc.RpcErrorData(punie=error, meta=jsonrpc.raw(self._meta()))
        body = jsonrpc.RpcError(code=jsonrpc.PUNIE_ERROR, message=error.message, data=data)
        return jsonrpc.encode(Envelope(id=self._prompt.rpc_id, error=jsonrpc.raw(body)))

    def _meta(self, detail: str = "") -> ResultMeta:
        return ResultMeta(
            prompt_id=self._prompt.prompt_id,
            model=self._model.model_name if self._model else "",
            isolation=self._session.project.isolation,
            usage=self._model.totals.usage if self._model else Usage(),
            timings_ms=self._timings(),
            stop_detail=detail,
            tool_count=self._clock.count,
            tools=self._clock.timings,
            steps=self._model.totals.steps if self._model else [],
        )

    def _timings(self) -> Timings:
        now = time.perf_counter()
        routed = self._prompt.meta.queue_ms or 0.0
        waited = routed + (self._started - self._prompt.received) * 1000
        total = routed + (now - self._prompt.received) * 1000
        totals = self._model.totals if self._model else ModelTotals()
        queue = waited + self._connecting.queue + totals.queue
        first = totals.first_token
        tools, asked = self._clock.tools * 1000, self._clock.waiting * 1000
        return Timings(
            total=total,
            queue=queue,
            ttft=(first - self._started) * 1000 if first is not None else 0.0,
            prefill=totals.prefill,
            decode=totals.decode,
            tools=tools,
            permission_wait=asked,
            framework=max(0.0, total - queue - totals.prefill - totals.decode - tools - asked),
        )


def _wire_error(error: BaseException) -> WireError:
    """Return what a client is told of an exception; what is not ours is a defect and logged."""
    match error:
        case PunieError():
            return error.error
        case BaseExceptionGroup(exceptions=[inner]):
            return _wire_error(inner)
        case asyncio.CancelledError():
            return Cancelled(message="the turn was cancelled")
        case _:
            _log.error("a turn failed", exc_info=error)
            return Internal(message=f"the turn failed: {type(error).__name__}: {error}")
