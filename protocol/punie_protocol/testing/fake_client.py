"""A supervisor and a client in one, for a real worker process: the wire, nothing else, is faked.

It opens projects and sessions, prompts, cancels, answers permission questions, and stores what
the worker wants to be durable (`journal`). It can kill the worker and start another one with what
was stored, which makes a test of a crash a few lines::

    async with ScriptedHost(script=script) as host, FakeClient(host.path) as client:
        await client.open_project(folder)
        await client.new_session()
        client.kill_at(3)
        await client.start_prompt("go")
        await client.lost()
        await client.restart()
        turn = await client.resume()

Every wait has a deadline and raises `PunieError` with `TimedOut`, naming what did not come.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import msgspec

from punie_protocol import jsonrpc
from punie_protocol.backends import Backend
from punie_protocol.client import PromptMeta, Resume
from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.jsonrpc import Envelope
from punie_protocol.messages.to_supervisor import AgentMessage
from punie_protocol.messages.to_worker import ClientMessage
from punie_protocol.permissions import Mode, PermissionSettings, PromptPermissions
from punie_protocol.testing import questions
from punie_protocol.testing.fake_supervisor import FakeSupervisor
from punie_protocol.testing.questions import Policy, Question
from punie_protocol.testing.turns import Json, Turn, decode_object
from punie_protocol.testing.waiting import PATIENCE, until, within
from punie_protocol.testing.worker_process import Command, punie_worker


class _Prompt(msgspec.Struct):
    """A prompt that has no response yet."""

    blocks: list[Json]
    meta: PromptMeta


class FakeClient(FakeSupervisor):
    """`updates` and `questions` are what came, by session and in order. `policy` answers questions
    as they come; what it leaves open waits for `question` and `answer`."""

    def __init__(
        self,
        model_socket: Path | str,
        *,
        policy: Policy = questions.nobody,
        command: Command = punie_worker,
        permissions: PermissionSettings | None = None,
    ) -> None:
        super().__init__(model_socket, command=command, permissions=permissions)
        self.policy = policy
        self.updates: defaultdict[str, list[Json]] = defaultdict(list)
        self.questions: list[Question] = []
        self.notifications: list[Envelope] = []
        self._stray: list[Envelope] = []
        self._prompts: dict[str, _Prompt] = {}

    # sessions and requests

    async def new_session(
        self, session_id: str = "s1", project_id: str = "p1", *, mode: Mode | None = None
    ) -> Envelope:
        """Open a session and answer with the response to ``session/new``."""
        await self.open_session(session_id, project_id, mode=mode)
        params: Json = {"cwd": "/", "mcpServers": [], "_meta": {"punie": {"sessionId": session_id}}}
        return await self.request(session_id, "session/new", params)

    async def send_raw(self, session_id: str, body: bytes) -> None:
        """Send a client's bytes."""
        await self.send(ClientMessage(session_id=session_id, body=body))

    async def notify(self, session_id: str, method: str, params: object) -> None:
        """Send a notification."""
        await self.send_raw(session_id, jsonrpc.notification(method, params))

    async def request(self, session_id: str, method: str, params: object) -> Envelope:
        """Send a request and return the response."""
        answer = await self.start_request(session_id, method, params)
        return await within(answer, f"response to {method}")

    async def start_request(
        self, session_id: str, method: str, params: object
    ) -> asyncio.Future[Envelope]:
        """Send a request; the future is its response, or fails when the worker is lost."""
        id = next(self._ids)
        answer: asyncio.Future[Envelope] = self._replies.expect("rpc", id)
        await self.send_raw(session_id, jsonrpc.request(id, method, params))
        return answer

    async def stray(self) -> Envelope:
        """Return the next response that belongs to no request of ours."""
        await until(lambda: self._stray, "response without a request")
        return self._stray.pop(0)

    async def until(self, condition: Callable[[], object], within: float = PATIENCE) -> None:
        """Wait until `condition()` is true."""
        await until(condition, "change that was waited for", within)

    # prompts

    async def start_prompt(
        self,
        prompt: str | list[Json],
        session_id: str = "s1",
        prompt_id: str = "q1",
        *,
        permissions: PromptPermissions | None = None,
        model: str | None = None,
        backend: Backend | None = None,
        queue_ms: float = 1.5,
    ) -> asyncio.Future[Envelope]:
        """Send a prompt, text or ACP's content blocks; the future is its response. `queue_ms` is
        what the router is said to have taken."""
        text = [{"type": "text", "text": prompt}]
        meta = PromptMeta(
            prompt_id=prompt_id,
            model=model,
            permissions=permissions,
            queue_ms=queue_ms,
            backend=backend,
        )
        blocks: list[Json] = text if isinstance(prompt, str) else prompt
        return await self._send_prompt(session_id, _Prompt(blocks, meta))

    async def prompt(
        self,
        prompt: str | list[Json],
        session_id: str = "s1",
        prompt_id: str = "q1",
        *,
        permissions: PromptPermissions | None = None,
        model: str | None = None,
        backend: Backend | None = None,
    ) -> Turn:
        """Send a prompt as `start_prompt` does and return the whole turn."""
        before = len(self.updates[session_id])
        answer = await self.start_prompt(
            prompt,
            session_id,
            prompt_id,
            permissions=permissions,
            model=model,
            backend=backend,
        )
        return await self.turn(answer, session_id, before)

    async def turn(
        self, answer: asyncio.Future[Envelope], session_id: str = "s1", since: int = 0
    ) -> Turn:
        """Return the turn that ends with `answer`; its updates from number `since` on."""
        response = await within(answer, f"end of the turn of {session_id}")
        return Turn(response, self.updates[session_id][since:])

    async def cancel(self, session_id: str = "s1") -> None:
        """Cancel the turn of a session."""
        await self.notify(session_id, "session/cancel", {"sessionId": session_id})

    async def resume(self, session_id: str = "s1") -> Turn:
        """Go on with the prompt that the lost worker left, in the one of now; return the rest of
        the turn. Raises `PunieError` when there is none."""
        if (left := self._prompts.get(session_id)) is None:
            message = f"session {session_id} has no prompt without a response"
            raise PunieError(InvalidRequest(message=message))
        attempt = left.meta.resume.attempt + 1 if left.meta.resume else 1
        stored = self.journal.session(session_id).stored(left.meta.prompt_id or "")
        resume = Resume(attempt=attempt, stored=stored)
        again = _Prompt(left.blocks, msgspec.structs.replace(left.meta, resume=resume))
        before = len(self.updates[session_id])
        return await self.turn(await self._send_prompt(session_id, again), session_id, before)

    async def _send_prompt(self, session_id: str, prompt: _Prompt) -> asyncio.Future[Envelope]:
        self._prompts[session_id] = prompt
        params: Json = {
            "sessionId": session_id,
            "prompt": prompt.blocks,
            "_meta": {"punie": prompt.meta},
        }
        answer = await self.start_request(session_id, "session/prompt", params)

        def ended(answer: asyncio.Future[Envelope]) -> None:
            lost = answer.cancelled() or answer.exception() is not None
            if not lost and self._prompts.get(session_id) is prompt:
                del self._prompts[session_id]

        answer.add_done_callback(ended)
        return answer

    # questions

    async def question(self) -> Question:
        """Return the oldest question that waits for an answer; wait for one."""
        await until(lambda: any(one.is_open for one in self.questions), "permission question")
        return next(one for one in self.questions if one.is_open)

    async def answer(self, question: Question, option: str | None) -> None:
        """Answer a question with the id of an option; ``None`` closes the dialog without one."""
        question.answered = "" if option is None else str(option)
        body = jsonrpc.response(question.id, questions.outcome(option))
        await self._reply(ClientMessage(session_id=question.session_id, body=body))

    async def _agent_message(self, message: AgentMessage) -> None:
        envelope = jsonrpc.decode(message.body)
        match envelope.method:
            case "session/update":
                self._update(message.session_id, envelope)
            case questions.METHOD:
                await self._ask(questions.asked(message.session_id, envelope))
            case questions.CANCEL:
                self._take_back(questions.taken_back(envelope))
            case str() if isinstance(envelope.id, msgspec.UnsetType):
                self.notifications.append(envelope)
            case str(method):
                raise PunieError(InvalidRequest(message=f"the agent asked for {method}"))
            case _:
                self._response(envelope)

    def _update(self, session_id: str, envelope: Envelope) -> None:
        assert isinstance(envelope.params, msgspec.Raw)
        params = decode_object(envelope.params)
        if params["sessionId"] != session_id:
            message = f"an update of {params['sessionId']} came for {session_id}"
            raise PunieError(InvalidRequest(message=message))
        self.updates[session_id].append(params["update"])

    async def _ask(self, question: Question) -> None:
        self.questions.append(question)
        if (option := self.policy(question)) is not None:
            await self.answer(question, option)

    def _take_back(self, id: int | str | None) -> None:
        for question in self.questions:
            if question.id == id and question.is_open:
                question.cancelled = True

    def _response(self, envelope: Envelope) -> None:
        id = envelope.id
        if not isinstance(id, int | str) or not self._replies.deliver("rpc", id, envelope):
            self._stray.append(envelope)
