"""The routes of the HTTP door: an ASGI application on Starlette."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Final, NamedTuple, Self
from uuid import uuid4

import msgspec
from msgspec.structs import replace
from starlette.exceptions import HTTPException
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from punie_model_host import prometheus
from punie_model_host.desk import FEW
from punie_model_host.door import (
    chat,
    completions,
    faults,
    fingerprint,
    guard,
    health,
    replies,
    wire,
)
from punie_model_host.door.answers import Answers
from punie_model_host.door.bodies import Bodies, Disconnected
from punie_model_host.door.chat_replies import ChatWriter
from punie_model_host.door.desks import Desk
from punie_model_host.door.faults import Refusal
from punie_model_host.door.guard import Guard
from punie_model_host.door.limits import PULSE
from punie_model_host.door.mailbox import Mailbox
from punie_model_host.door.pulse import Pulse
from punie_model_host.door.replies import Head, Writer
from punie_model_host.door.stream import JSON, Abort, EventStream, send_body, send_whole
from punie_model_host.door.text_replies import TextWriter
from punie_model_host.door.users import Users
from punie_model_host.door.wire import Asked
from punie_model_host.log import event
from punie_protocol.engine import EngineStatus
from punie_protocol.errors import Internal, ModelUnavailable
from punie_protocol.messages.common import ModelInfo
from punie_protocol.messages.to_model_host import Generate

type Answer = Callable[[Scope, Receive, Send], Awaitable[None]]


class _Api[A: Asked](NamedTuple):
    """One of OpenAI's two APIs for text: what begins its ids, how its requests are read, and who
    writes its answers."""

    prefix: str
    decode: Callable[[bytes], A]
    generates: Callable[[A, str], list[Generate]]
    writer: Callable[[Head], Writer]


_CHAT: Final = _Api("chatcmpl", chat.decode, chat.generates, ChatWriter)
_TEXT: Final = _Api("cmpl", completions.decode, completions.generates, TextWriter)
_METRICS: Final = (b"content-type", prometheus.CONTENT_TYPE.encode())
_CLOSE: Final = (b"connection", b"close")

_log = logging.getLogger(__name__)


class App:
    """An ASGI application. The scope's state has `abort`, which ends the connection at once, and
    `known`, which is called when it has shown the key."""

    def __init__(self, desk: Desk, guard: Guard) -> None:
        self._desk = desk
        self._guard = guard
        self._bodies = Bodies()
        self._users = Users()
        self._router = Router(
            [
                Route("/v1/chat/completions", _Endpoint(self._chat), methods=["POST"]),
                Route("/v1/completions", _Endpoint(self._complete), methods=["POST"]),
                Route("/v1/models", _Endpoint(self._models), methods=["GET"]),
                Route("/v1/models/{name:path}", _Endpoint(self._model), methods=["GET"]),
                Route("/health", _Endpoint(self._health), methods=["GET"]),
                Route("/metrics", _Endpoint(self._metrics), methods=["GET"]),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; every failure has OpenAI's shape."""
        try:
            self._guard.check(scope["headers"])
            scope["state"]["known"]()
            guard.check_length(scope["headers"])
            await self._route(scope, receive, send)
        except Refusal as refusal:
            await _send_refusal(scope, send, refusal)
        except Disconnected:
            event(_log, logging.DEBUG, "http-client-gone")
        except asyncio.CancelledError:
            # The door closes; this is all of its task, and uvicorn would call it a fault.
            _abort(scope)()
        except Exception:  # noqa: BLE001 - a defect is that request's end, not the door's
            _log.exception("http-defect")
            failure = faults.refusal(Internal(message="a defect of Punie; see: punie logs"))
            await _send_refusal(scope, send, failure)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # the router then raises what it does not find
        try:
            await self._router(scope, receive, send)
        except HTTPException as error:
            text = (
                f"{scope['method']} {scope['path'][:200]}: {HTTPStatus(error.status_code).phrase}"
            )
            headers = [(k.lower().encode(), v.encode()) for k, v in (error.headers or {}).items()]
            raise Refusal(
                error.status_code, "invalid_request_error", text, headers=headers
            ) from None

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._ask(_CHAT, scope, receive, send)

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._ask(_TEXT, scope, receive, send)

    async def _ask[A: Asked](
        self, api: _Api[A], scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers = scope["headers"]
        guard.check_json(headers)
        asked = api.decode(await self._bodies.read(receive, headers))
        model = self._loaded()
        wire.check_model(asked.model, model)
        id = f"{api.prefix}-{uuid4().hex}"
        wanted = api.generates(asked, id)
        head = Head(
            id=id,
            created=int(time.time()),
            model=model.name,
            system_fingerprint=fingerprint.of(model),
        )
        visit = _Visit(self._desk, receive)
        with self._users.share(asked.client_id) as client_id:
            shared = [replace(one, client_id=client_id) for one in wanted]
            await _answer(visit, shared, asked, api.writer(head), send, _abort(scope))

    async def _models(self, scope: Scope, _receive: Receive, send: Send) -> None:
        loaded = [] if self._desk.model is None else [self._desk.model]
        await send_body(send, _abort(scope), 200, msgspec.json.encode(replies.models(loaded)))

    async def _model(self, scope: Scope, _receive: Receive, send: Send) -> None:
        model = self._loaded()
        wire.check_model(scope["path_params"]["name"], model)
        await send_body(send, _abort(scope), 200, msgspec.json.encode(replies.model(model)))

    async def _health(self, scope: Scope, _receive: Receive, send: Send) -> None:
        found = health.look(self._desk)
        await send_body(send, _abort(scope), found.code, msgspec.json.encode(found))

    async def _metrics(self, scope: Scope, _receive: Receive, send: Send) -> None:
        model = self._desk.model
        status = self._desk.status or EngineStatus()
        body = prometheus.exposition(status, model.name if model is not None else "")
        await send_body(send, _abort(scope), 200, body, [_METRICS])

    def _loaded(self) -> ModelInfo:
        if self._desk.model is None:
            raise faults.refusal(ModelUnavailable(message="no model is loaded", hint="try again"))
        return self._desk.model


class _Visit:
    """One HTTP request as a client of the desk. However it ends, it leaves nothing there: the
    request is over, its reader is gone, or takes too little."""

    def __init__(self, desk: Desk, receive: Receive) -> None:
        self._desk = desk
        self._receive = receive
        self._client: int | None = None
        self.mailbox = Mailbox(self._leave)

    async def __aenter__(self) -> Self:
        self._client = self._desk.enter(self.mailbox, FEW)
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watching.cancel()
        self.mailbox.close("the HTTP request is over")
        self._leave()

    def submit(self, request: Generate) -> None:
        """Have it answered into the mailbox."""
        if self._client is not None:
            self._desk.submit(self._client, request)

    def _leave(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            self._desk.leave(client)

    async def _watch(self) -> None:
        """Leave when the reader goes: ASGI says so to whoever has read the whole request."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.mailbox.close("the HTTP client is gone")
        self._leave()


class _Endpoint:
    """An ASGI application of a route; a function would get Starlette's own request."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope, receive, send)


async def _answer(
    visit: _Visit,
    wanted: Sequence[Generate],
    asked: Asked,
    writer: Writer,
    send: Send,
    abort: Abort,
) -> None:
    answers = Answers(len(wanted), asked.answers)
    async with visit:
        for one in wanted:
            visit.submit(one)
        if not asked.stream:
            await send_whole(visit.mailbox, writer, answers, send, abort)
            return
        stream = EventStream(visit.mailbox, writer, answers, send, usage=asked.wants_usage)
        with Pulse(stream.give_sign, abort, PULSE) as pulse:
            await stream.run(pulse)


async def _send_refusal(scope: Scope, send: Send, refusal: Refusal) -> None:
    headers = [JSON, *refusal.headers, *([_CLOSE] if refusal.close else [])]
    await send_body(send, _abort(scope), refusal.status, refusal.encoded(), headers)


def _abort(scope: Scope) -> Abort:
    return scope["state"]["abort"]
