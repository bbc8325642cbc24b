"""ACP as the worker speaks it: a small dispatcher over the official schema types.

The one module that knows method names. Requests are answered exactly once; a notification that
cannot be used is logged, as JSON-RPC wants.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import pydantic
from acp import schema
from msgspec import UNSET

from punie_protocol import jsonrpc
from punie_protocol.client import PromptMeta
from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.jsonrpc import INVALID_PARAMS, METHOD_NOT_FOUND, Envelope, RpcId
from punie_protocol.permissions import Mode
from punie_workers.session import Prompt, Session
from punie_workers.updates import dump

_log = logging.getLogger(__name__)

_MODES: Final = (
    (Mode.ASK, "Ask", "Ask before each edit and command"),
    (Mode.ACCEPT_EDITS, "Accept edits", "Edit files without asking, ask before commands"),
    (Mode.READ_ONLY, "Read only", "Neither edit nor run anything"),
    (Mode.TRUSTED, "Trusted", "Do everything without asking, unless a rule forbids it"),
)

type Find = Callable[[str], Session]
"""Returns an open session. Raises `PunieError`."""

type Send = Callable[[bytes], None]
"""Sends one ACP message of the session to its clients, in order, without waiting."""

_PARSE_ERROR_ID: Final = None


class AcpAdapter:
    """Takes the ACP messages of clients, one session at a time."""

    def __init__(self, find: Find) -> None:
        self._find = find

    def take(self, session_id: str, body: bytes, send: Send) -> None:
        """Handle one message; answers go to `send`. Does not wait and does not raise."""
        try:
            envelope = jsonrpc.decode(body)
        except PunieError as error:
            send(jsonrpc.failure(_PARSE_ERROR_ID, error.error, code=jsonrpc.PARSE_ERROR))
            return
        match envelope:
            case Envelope(method=str(method), id=id) if id is not UNSET:
                self._request(session_id, id, method, envelope, send)
            case Envelope(method=str(method)):
                self._notification(session_id, method, envelope)
            case _:
                self._answer(session_id, envelope)

    def _answer(self, session_id: str, envelope: Envelope) -> None:
        try:
            known = self._find(session_id).questions.answered(envelope)
        except PunieError:
            known = False
        if not known:
            _log.info("session %s: an answer to no question", session_id)

    def _request(
        self, session_id: str, id: RpcId, method: str, envelope: Envelope, send: Send
    ) -> None:
        received = time.perf_counter()
        try:
            match method:
                case "session/new":
                    params = _params(schema.NewSessionRequest, envelope)
                    send(jsonrpc.response(id, dump(self._new(session_id, params))))
                case "session/prompt":
                    request = _params(schema.PromptRequest, envelope)
                    self._find(request.session_id).submit(_prompt(id, request, received))
                case _:
                    error = InvalidRequest(message=f"method {method[:100]!r} is not known")
                    send(jsonrpc.failure(id, error, code=METHOD_NOT_FOUND))
        except _InvalidParams as error:
            send(jsonrpc.failure(id, error.error, code=INVALID_PARAMS))
        except PunieError as error:
            send(jsonrpc.failure(id, error.error))

    def _notification(self, session_id: str, method: str, envelope: Envelope) -> None:
        try:
            match method:
                case "session/cancel":
                    cancel = _params(schema.CancelNotification, envelope)
                    self._find(cancel.session_id).cancel()
                case "$/cancel_request":
                    request = _params(schema.CancelRequestNotification, envelope)
                    self._find(session_id).cancel_request(request.request_id)
                case _:
                    _log.info("session %s: notification %r is not known", session_id, method)
        except PunieError as error:
            _log.warning("session %s: %s: %s", session_id, method, error)

    def _new(self, session_id: str, params: schema.NewSessionRequest) -> schema.NewSessionResponse:
        named = _punie_meta(params.field_meta).get("sessionId", session_id)
        session = self._find(str(named))
        return schema.NewSessionResponse(session_id=str(named), modes=_modes(session.mode))


def _modes(mode: Mode) -> schema.SessionModeState:
    return schema.SessionModeState(
        current_mode_id=mode,
        available_modes=[
            schema.SessionMode(id=one, name=name, description=text) for one, name, text in _MODES
        ],
    )


class _InvalidParams(PunieError):
    """Params that do not fit the method's schema."""


def _params[M: schema.BaseModel](model: type[M], envelope: Envelope) -> M:
    raw = envelope.params
    try:
        return model.model_validate_json(b"{}" if raw is UNSET else bytes(raw))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"params of {envelope.method}: {where}: {first['msg']}"
        raise _InvalidParams(InvalidRequest(message=message)) from None


def _punie_meta(meta: dict[str, object] | None) -> dict[str, object]:
    punie = (meta or {}).get("punie")
    return punie if isinstance(punie, dict) else {}


def _prompt(id: RpcId, request: schema.PromptRequest, received: float) -> Prompt:
    try:
        meta = msgspec.convert(_punie_meta(request.field_meta), PromptMeta)
    except msgspec.ValidationError as error:
        raise _InvalidParams(InvalidRequest(message=f"_meta.punie: {error}")) from None
    return Prompt(rpc_id=id, text=prompt_text(request.prompt), meta=meta, received=received)


def prompt_text(blocks: Sequence[object]) -> str:
    """Return a prompt as the model reads it: what the user says, then the context that came
    with it. Raises `PunieError` for images, sounds and binary resources."""
    said: list[str] = []
    context: list[str] = []
    for block in blocks:
        match block:
            case schema.TextContentBlock(text=text):
                said.append(text)
            case schema.ResourceContentBlock(uri=uri, name=name):
                context.append(f"{name}: {uri}")
            case schema.EmbeddedResourceContentBlock(
                resource=schema.TextResourceContents(uri=uri, text=text)
            ):
                context.append(f"{uri}:\n{text}")
            case _:
                kind = getattr(block, "type", type(block).__name__)
                message = f"a prompt with a block of type {kind!r} is not supported, only text is"
                raise _InvalidParams(InvalidRequest(message=message))
    if not any(text.strip() for text in said):
        raise _InvalidParams(InvalidRequest(message="the prompt has no text"))
    return "\n\n".join(["\n".join(said), *context])
