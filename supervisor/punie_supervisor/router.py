"""Who gets which message. Pure: messages and the clock in, instructions out; no I/O.

The router knows which connections are attached to which session and which questions of agents
are open. What a request needs beyond that (journal, workers, model) is an instruction to the
shell, `switchboard`.
"""

from collections.abc import Callable, Iterator
from typing import Final

import msgspec
from msgspec import UNSET, Raw

from punie_protocol import client, jsonrpc
from punie_protocol.errors import InvalidRequest, ProtocolError, PunieError, TimedOut
from punie_protocol.jsonrpc import Envelope, RpcId
from punie_supervisor import acp

QUESTION_TIMEOUT: Final = 600.0
"""Seconds a question of an agent waits while nobody is attached to its session."""


class Send(msgspec.Struct, frozen=True):
    """Send `body` to a client."""

    connection: int
    body: bytes


class ToAgent(msgspec.Struct, frozen=True):
    """Send `body` to that worker, if it still lives."""

    worker: int
    session_id: str
    body: bytes


class Begin[P](msgspec.Struct, frozen=True):
    """Work on a client's request; whoever does answers it. `raw` is all of its params."""

    connection: int
    id: RpcId
    params: P
    raw: Raw


class NewSession(Begin[acp.NewSession], frozen=True):
    """``session/new``"""


class Prompt(Begin[acp.Prompt], frozen=True):
    """``session/prompt``"""


class ListSessions(Begin[acp.ListSessions], frozen=True):
    """``session/list``"""


class SetMode(Begin[acp.SetMode], frozen=True):
    """``session/set_mode``"""


class Trust(Begin[client.Trust], frozen=True):
    """``_punie/trust``"""


class Perf(Begin[client.PerfQuery], frozen=True):
    """``_punie/perf``"""


class DescribePrompt(Begin[client.PromptQuery], frozen=True):
    """``_punie/prompt``"""


class Commands(Begin[client.CommandsQuery], frozen=True):
    """``_punie/commands``"""


class Isolate(Begin[client.Isolate], frozen=True):
    """``_punie/isolate``"""


class Unconfined(Begin[client.Unconfined], frozen=True):
    """``_punie/unconfined``"""


class Serve(Begin[client.Serve], frozen=True):
    """``_punie/serve``"""


class Use(Begin[client.Use], frozen=True):
    """``_punie/use``"""


class Report(msgspec.Struct, frozen=True):
    """``_punie/status``"""

    id: RpcId


class ShutDown(msgspec.Struct, frozen=True):
    """``_punie/shutdown``"""

    id: RpcId


class CancelSession(msgspec.Struct, frozen=True):
    """``session/cancel``: end every prompt of the session."""

    session_id: str


class CancelRequest(msgspec.Struct, frozen=True):
    """``$/cancel_request`` from a client."""

    connection: int
    id: RpcId


class StoreUpdate(msgspec.Struct, frozen=True):
    """Journal a ``session/update``, then send what `Router.update` says."""

    session_id: str
    body: bytes
    params: Raw


class AgentReply(msgspec.Struct, frozen=True):
    """A worker's response to request `id`, which the shell sent it."""

    id: int
    envelope: Envelope


class Ignored(msgspec.Struct, frozen=True):
    """Nothing to do, for a reason worth a line in the log."""

    reason: str


type Delivery = Send | ToAgent
type Instruction = (
    Delivery
    | Ignored
    | NewSession
    | Prompt
    | ListSessions
    | SetMode
    | Trust
    | Perf
    | DescribePrompt
    | Commands
    | Isolate
    | Unconfined
    | Serve
    | Use
    | Report
    | ShutDown
    | CancelSession
    | CancelRequest
    | StoreUpdate
    | AgentReply
)


class Question(msgspec.Struct):
    """An agent's request to the clients. Its clock runs while nobody is `asked`."""

    id: int
    worker: int
    session_id: str
    agent_id: RpcId
    body: bytes
    asked: set[int]
    deadline: float | None


class Router:
    """The routing state. Connections and workers are known by the shell's numbers."""

    def __init__(self, *, question_timeout: float = QUESTION_TIMEOUT) -> None:
        self._timeout = question_timeout
        self._attached: dict[str, set[int]] = {}
        self._questions: dict[int, Question] = {}
        self._last_question = 0

    def from_client(self, connection: int, body: str | bytes) -> list[Instruction]:
        """Decide on a client's message. A faulty one is answered, never raised."""
        try:
            envelope = jsonrpc.decode(body)
        except PunieError as error:
            malformed = not isinstance(error.__context__, msgspec.ValidationError)
            code = jsonrpc.PARSE_ERROR if malformed else jsonrpc.INVALID_REQUEST
            if body.lstrip()[:1] in ("[", b"["):
                code = jsonrpc.INVALID_REQUEST
            return [Send(connection, jsonrpc.failure(None, error.error, code=code))]
        id, method = envelope.id, envelope.method
        if method is UNSET:
            return list(self._answer(connection, envelope))
        if id is UNSET:
            return [self._notification(connection, method, envelope)]
        try:
            return [_request(connection, id, method, envelope)]
        except PunieError as error:
            failure = jsonrpc.failure(id, error.error, code=jsonrpc.INVALID_PARAMS)
            return [Send(connection, failure)]

    def from_agent(
        self, worker: int, session_id: str, body: bytes, now: float
    ) -> list[Instruction]:
        """Decide on a worker's ACP message. Raises `PunieError` for what is not one: the worker
        is broken."""
        envelope = jsonrpc.decode(body)
        id, method = envelope.id, envelope.method
        if method is UNSET:
            if isinstance(id, int):
                return [AgentReply(id, envelope)]
            raise ProtocolError(InvalidRequest(message=f"response to an unknown id {id!r}"))
        if id is not UNSET:
            return list(self._ask(worker, session_id, id, envelope, now))
        match method:
            case acp.SESSION_UPDATE if envelope.params is not UNSET:
                return [StoreUpdate(session_id, body, envelope.params)]
            case acp.CANCEL_REQUEST:
                agent_id = acp.params(envelope.params, acp.OfRequest).request_id
                return list(self._withdraw(lambda q: (q.worker, q.agent_id) == (worker, agent_id)))
            case _:
                return [*self.to_session(session_id, body)]

    def update(self, session_id: str, params: Raw, seq: int) -> list[Delivery]:
        """Return who gets a journaled update, now that it has its number."""
        if session_id not in self._attached:
            return []
        body = jsonrpc.notification(acp.SESSION_UPDATE, acp.with_punie(params, {"seq": seq}))
        return [*self.to_session(session_id, body)]

    def to_session(self, session_id: str, body: bytes) -> list[Send]:
        """Return `body` for everyone attached."""
        return [Send(connection, body) for connection in sorted(self._attached.get(session_id, ()))]

    def attach(self, connection: int, session_id: str) -> list[Delivery]:
        """From now on the connection gets that session's updates, and its open questions."""
        self._attached.setdefault(session_id, set()).add(connection)
        sends: list[Delivery] = []
        for question in self._questions.values():
            if question.session_id == session_id and connection not in question.asked:
                question.asked.add(connection)
                question.deadline = None
                sends.append(Send(connection, question.body))
        return sends

    def gone(self, connection: int, now: float) -> None:
        """The connection is closed; turns go on without it."""
        for session_id in [s for s, who in self._attached.items() if connection in who]:
            self._attached[session_id].discard(connection)
            if not self._attached[session_id]:
                del self._attached[session_id]
        for question in self._questions.values():
            if connection in question.asked:
                question.asked.discard(connection)
                if not question.asked:
                    question.deadline = now + self._timeout

    def tick(self, now: float) -> list[Delivery]:
        """Reject questions that nobody came to answer."""
        late = [q for q in self._questions.values() if q.deadline is not None and q.deadline <= now]
        for question in late:
            del self._questions[question.id]
        limit = self._timeout
        error = TimedOut(message=f"nobody answered within {limit:g} s", limit_s=limit)
        return [ToAgent(q.worker, q.session_id, jsonrpc.failure(q.agent_id, error)) for q in late]

    def turn_ended(self, session_id: str) -> list[Delivery]:
        """Withdraw the session's questions."""
        return list(self._withdraw(lambda question: question.session_id == session_id))

    def worker_gone(self, worker: int) -> list[Delivery]:
        """Withdraw the worker's questions."""
        return list(self._withdraw(lambda question: question.worker == worker))

    def _answer(self, connection: int, envelope: Envelope) -> Iterator[Instruction]:
        if envelope.id is UNSET or envelope.result is envelope.error is UNSET:
            error = InvalidRequest(message="neither a request, a notification nor a response")
            yield Send(connection, jsonrpc.failure(None, error, code=jsonrpc.INVALID_REQUEST))
            return
        question = self._questions.get(envelope.id) if isinstance(envelope.id, int) else None
        if question is None or connection not in question.asked:
            yield Ignored(f"late or unasked answer to {str(envelope.id)[:80]!r}")
            return
        question.asked.discard(connection)
        if envelope.error is not UNSET and question.asked:
            return  # it cannot ask anybody; those who can still do
        envelope.id = question.agent_id
        yield ToAgent(question.worker, question.session_id, jsonrpc.encode(envelope))
        yield from self._withdraw(lambda other: other is question)

    def _ask(
        self, worker: int, session_id: str, agent_id: RpcId, envelope: Envelope, now: float
    ) -> Iterator[Instruction]:
        self._last_question += 1
        envelope.id = id = self._last_question
        body = jsonrpc.encode(envelope)
        asked = set(self._attached.get(session_id, ()))
        deadline = None if asked else now + self._timeout
        self._questions[id] = Question(id, worker, session_id, agent_id, body, asked, deadline)
        yield from self.to_session(session_id, body)

    def _withdraw(self, which: Callable[[Question], bool]) -> Iterator[Send]:
        for question in [q for q in self._questions.values() if which(q)]:
            del self._questions[question.id]
            body = jsonrpc.notification(acp.CANCEL_REQUEST, {"requestId": question.id})
            for connection in sorted(question.asked):
                yield Send(connection, body)

    def _notification(self, connection: int, method: str, envelope: Envelope) -> Instruction:
        try:
            match method:
                case acp.SESSION_CANCEL:
                    return CancelSession(acp.params(envelope.params, acp.OfSession).session_id)
                case acp.CANCEL_REQUEST:
                    id = acp.params(envelope.params, acp.OfRequest).request_id
                    return CancelRequest(connection, id)
                case _:
                    return Ignored(f"notification {method[:80]!r}")
        except PunieError as error:
            return Ignored(f"{method}: {str(error)[:200]}")


def _request(connection: int, id: RpcId, method: str, envelope: Envelope) -> Instruction:
    raw = Raw(b"{}") if envelope.params is UNSET else envelope.params
    match method:
        case acp.INITIALIZE:
            return Send(connection, jsonrpc.response(id, acp.initialized()))
        case acp.SESSION_NEW:
            return NewSession(connection, id, acp.params(raw, acp.NewSession), raw)
        case acp.SESSION_PROMPT:
            return Prompt(connection, id, acp.params(raw, acp.Prompt), raw)
        case acp.SESSION_LIST:
            return ListSessions(connection, id, acp.params(raw, acp.ListSessions), raw)
        case acp.SESSION_SET_MODE:
            return SetMode(connection, id, acp.params(raw, acp.SetMode), raw)
        case (
            client.ISOLATE
            | client.UNCONFINED
            | client.COMMANDS
            | client.TRUST
            | client.PERF
            | client.PROMPT
            | client.SERVE
            | client.USE
        ):
            return _extension(connection, id, method, raw)
        case client.STATUS:
            return Report(id)
        case client.SHUTDOWN:
            return ShutDown(id)
        case acp.AUTHENTICATE:
            return _refuse(connection, id, "no authentication is needed", jsonrpc.INVALID_REQUEST)
        case _:
            text = f"there is no method {method[:80]!r}"
            return _refuse(connection, id, text, jsonrpc.METHOD_NOT_FOUND)


def _extension(connection: int, id: RpcId, method: str, raw: Raw) -> Instruction:
    match method:
        case client.ISOLATE:
            return Isolate(connection, id, acp.params(raw, client.Isolate), raw)
        case client.UNCONFINED:
            return Unconfined(connection, id, acp.params(raw, client.Unconfined), raw)
        case client.COMMANDS:
            return Commands(connection, id, acp.params(raw, client.CommandsQuery), raw)
        case client.TRUST:
            return Trust(connection, id, acp.params(raw, client.Trust), raw)
        case client.PERF:
            return Perf(connection, id, acp.params(raw, client.PerfQuery), raw)
        case client.SERVE:
            return Serve(connection, id, acp.params(raw, client.Serve), raw)
        case client.USE:
            return Use(connection, id, acp.params(raw, client.Use), raw)
        case _:
            return DescribePrompt(connection, id, acp.params(raw, client.PromptQuery), raw)


def _refuse(connection: int, id: RpcId, message: str, code: int) -> Send:
    return Send(connection, jsonrpc.failure(id, InvalidRequest(message=message), code=code))
