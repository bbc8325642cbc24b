"""One session: its conversation, its queue of prompts, the turn under way."""

import asyncio
import logging
import time
from collections import deque
from typing import Final

import msgspec
from acp import schema

from punie_protocol import jsonrpc
from punie_protocol.client import PromptMeta, ResultMeta
from punie_protocol.errors import Cancelled, Internal, Overloaded, PunieError, WireError
from punie_protocol.jsonrpc import Envelope, RpcId
from punie_protocol.messages.common import Timings, Usage
from punie_workers.conversation import Conversation, Store
from punie_workers.model import PunieModel
from punie_workers.outlet import Outlet
from punie_workers.project import Project
from punie_workers.services import Services
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
    """Runs prompts one after the other. Every prompt is answered exactly once."""

    def __init__(
        self,
        session_id: str,
        project: Project,
        services: Services,
        outlet: Outlet,
        store: Store,
    ) -> None:
        self.session_id = session_id
        self.project = project
        self._services = services
        self._outlet = outlet
        self._conversation = Conversation(store)
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
        response = schema.PromptResponse(stop_reason="cancelled")
        self._outlet.send_nowait(jsonrpc.response(prompt.rpc_id, dump(response)))


class _Run:
    """One prompt under way, and what is measured of it."""

    def __init__(self, session: Session, prompt: Prompt) -> None:
        self._session = session
        self._prompt = prompt
        self._started = time.perf_counter()
        self.updates = Updates(session.session_id, prompt.prompt_id, session._outlet)
        self._model: PunieModel | None = None
        self._tools: TurnTools | None = None
        self._turn: Turn | None = None

    async def turn(self) -> Outcome:
        session, prompt, project = self._session, self._prompt, self._session.project
        services = session._services
        info = await services.model.model()
        self._model = PunieModel(
            services.model,
            info,
            client_id=project.client_id,
            conversation_id=session.session_id,
            project=project.name,
            notice=self.updates.notice,
        )
        self._tools = TurnTools(
            project.tools, services.code, self.updates, prompt.prompt_id, info.context_window
        )
        self._turn = Turn(
            session._conversation,
            prompt.prompt_id,
            prompt.text,
            self._model,
            self._tools,
            self.updates,
        )
        return await self._turn.run()

    async def keep_partial(self) -> None:
        """Keep what was said so far. A failure is logged: the prompt is answered all the same."""
        if self._turn is None:
            return
        try:
            async with asyncio.timeout(KEEP_TIMEOUT):
                await self._turn.keep_partial()
        except (PunieError, TimeoutError) as error:
            _log.warning("a cancelled answer was not stored: %s", error)

    def response(self, turn: asyncio.Task[Outcome]) -> bytes:
        """Return the JSON-RPC response that `turn`, which is over, deserves."""
        if turn.cancelled():
            return self._succeeded("cancelled")
        if (error := turn.exception()) is not None:
            return self._failed(_wire_error(error))
        return self._succeeded(turn.result().stop_reason)

    def _succeeded(self, stop_reason: str) -> bytes:
        meta = msgspec.to_builtins(self._meta())
        response = schema.PromptResponse.model_validate(
            {"stopReason": stop_reason, "_meta": {"punie": meta}}
        )
        return jsonrpc.response(self._prompt.rpc_id, dump(response))

    def _failed(self, error: WireError) -> bytes:
        data = jsonrpc.RpcErrorData(punie=error, meta=jsonrpc.raw(self._meta()))
        body = jsonrpc.RpcError(code=jsonrpc.PUNIE_ERROR, message=error.message, data=data)
        return jsonrpc.encode(Envelope(id=self._prompt.rpc_id, error=jsonrpc.raw(body)))

    def _meta(self) -> ResultMeta:
        return ResultMeta(
            prompt_id=self._prompt.prompt_id,
            model=self._model.model_name if self._model else "",
            isolation=self._session.project.isolation,
            usage=self._model.totals.usage if self._model else Usage(),
            timings_ms=self._timings(),
        )

    def _timings(self) -> Timings:
        now = time.perf_counter()
        routed = self._prompt.meta.queue_ms or 0.0
        waited = routed + (self._started - self._prompt.received) * 1000
        total = routed + (now - self._prompt.received) * 1000
        tools = self._tools.seconds * 1000 if self._tools else 0.0
        if self._model is None:
            return Timings(total=total, queue=waited, framework=total - waited)
        totals = self._model.totals
        queue = waited + totals.queue
        first = totals.first_token
        return Timings(
            total=total,
            queue=queue,
            ttft=(first - self._started) * 1000 if first is not None else 0.0,
            prefill=totals.prefill,
            decode=totals.decode,
            tools=tools,
            framework=max(0.0, total - queue - totals.prefill - totals.decode - tools),
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
