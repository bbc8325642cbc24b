"""Permission questions of one session: ``session/request_permission``, its answer, its end.

Who is asked, and what becomes of a question while nobody is there, is the supervisor's.
"""

import asyncio
import itertools
from typing import Any, Final, Literal

import msgspec
import pydantic
from acp import schema
from msgspec import UNSET

from punie_protocol import jsonrpc
from punie_protocol.errors import TimedOut
from punie_protocol.jsonrpc import Envelope, RpcErrorData
from punie_workers.outlet import Outlet
from punie_workers.updates import dump

LIMIT: Final = 24 * 3600.0
"""Seconds a question is open at most, whoever is there."""

_METHOD: Final = "session/request_permission"
_ids = itertools.count(1)
"""One for the whole process: the supervisor knows a question by worker and id."""

type Content = (
    schema.ContentToolCallContent | schema.FileEditToolCallContent | schema.TerminalToolCallContent
)
type OptionKind = Literal["allow_once", "allow_always", "reject_once", "reject_always"]


class Option(msgspec.Struct, frozen=True):
    """One answer that can be given."""

    id: str
    kind: OptionKind
    name: str


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked. `call_id` is the tool call's that it is about; `raw_input` and `content` are
    shown, and bounded by who asks."""

    call_id: str
    title: str
    kind: schema.ToolKind
    options: tuple[Option, ...]
    raw_input: dict[str, Any] | None = None
    content: tuple[Content, ...] = ()


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The id of the `option` chosen; without one `reason` says why, unless the question was
    `withdrawn`."""

    option: str | None = None
    reason: str = ""
    withdrawn: bool = False


class Questions:
    """Questions to the clients of one session. Used from one event loop."""

    def __init__(self, session_id: str, outlet: Outlet) -> None:
        self._session_id = session_id
        self._outlet = outlet
        self._open: dict[str, asyncio.Future[Envelope | None]] = {}

    async def ask(self, question: Question) -> Reply:
        """Return the answer; no answer within `LIMIT` seconds is one too. However this ends
        without an answer, cancelled too, the dialogs are closed."""
        id = f"q{next(_ids)}"
        answer: asyncio.Future[Envelope | None] = asyncio.get_running_loop().create_future()
        self._open[id] = answer
        envelope: Envelope | None = None
        try:
            async with asyncio.timeout(LIMIT):
                await self._outlet.send(self._request(id, question))
                envelope = await answer
        except TimeoutError:
            return Reply(reason=f"nobody answered within {LIMIT / 3600:g} hours")
        finally:
            del self._open[id]
            if envelope is None:
                self._close(id)
        if envelope is None:
            return Reply(withdrawn=True)
        return _reply(envelope, question)

    def answered(self, envelope: Envelope) -> bool:
        """Take a response of a client; false when it answers no open question of this session."""
        answer = self._open.get(envelope.id) if isinstance(envelope.id, str) else None
        if answer is None or answer.done():
            return False
        answer.set_result(envelope)
        return True

    def withdraw(self) -> None:
        """Close what is open: its answer is not needed any more."""
        for answer in self._open.values():
            if not answer.done():
                answer.set_result(None)

    def _request(self, id: str, question: Question) -> bytes:
        params = schema.RequestPermissionRequest(
            session_id=self._session_id,
            tool_call=schema.ToolCallUpdate(
                tool_call_id=question.call_id,
                title=question.title,
                kind=question.kind,
                raw_input=question.raw_input,
                content=list(question.content) or None,
            ),
            options=[
                schema.PermissionOption(option_id=one.id, kind=one.kind, name=one.name)
                for one in question.options
            ],
        )
        return jsonrpc.request(id, _METHOD, dump(params))

    def _close(self, id: str) -> None:
        self._outlet.send_nowait(jsonrpc.notification("$/cancel_request", {"requestId": id}))


def _reply(envelope: Envelope, question: Question) -> Reply:
    if envelope.result is UNSET:
        return Reply(reason=_why(envelope))
    try:
        response = schema.RequestPermissionResponse.model_validate_json(bytes(envelope.result))
    except pydantic.ValidationError:
        return Reply(reason="the client's answer could not be read")
    match response.outcome:
        case schema.AllowedOutcome(option_id=id):
            if any(one.id == id for one in question.options):
                return Reply(option=id)
            return Reply(reason=f"the client's answer '{id[:80]}' was not among the options")
        case _:
            return Reply(reason="nobody allowed it: the question was dismissed")


def _why(envelope: Envelope) -> str:
    """Return what an error says instead of an answer."""
    try:
        error = jsonrpc.decode_error(envelope.error) if envelope.error is not UNSET else None
    except msgspec.MsgspecError:
        error = None
    match error:
        case None:
            return "the client's answer could not be read"
        case jsonrpc.RpcError(data=RpcErrorData(punie=TimedOut(message=message))):
            return message
        case _:
            return f"the client could not ask: {error.message[:200]}"
