"""The little of ACP that the supervisor reads: ids, ``cwd`` and ``_meta.punie``; and what it
writes: spliced ``_meta.punie`` members and its own answers. Everything else passes as it came.
"""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw

from punie_protocol import jsonrpc
from punie_protocol.client import About, PromptMeta, SessionMeta
from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.handshake import version
from punie_protocol.jsonrpc import RpcId
from punie_protocol.limits import PROTOCOL
from punie_protocol.permissions import Mode

ACP_VERSION: Final = 1
MAX_TITLE: Final = 80
"""Characters of a session's title."""

_MAX_TITLE_BLOCK: Final = 64 * 1024

INITIALIZE: Final = "initialize"
AUTHENTICATE: Final = "authenticate"
SESSION_NEW: Final = "session/new"
SESSION_LIST: Final = "session/list"
SESSION_SET_MODE: Final = "session/set_mode"
SESSION_PROMPT: Final = "session/prompt"
SESSION_CANCEL: Final = "session/cancel"
SESSION_UPDATE: Final = "session/update"
CANCEL_REQUEST: Final = "$/cancel_request"

type Id = Annotated[str, Meta(min_length=1, max_length=200)]


class _Params(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of partial params: unknown members are not looked at."""


class _PunieSession(msgspec.Struct, frozen=True):
    punie: SessionMeta = SessionMeta()


class _PuniePrompt(msgspec.Struct, frozen=True):
    punie: PromptMeta = PromptMeta()


class NewSession(_Params, frozen=True):
    """Params of ``session/new``."""

    cwd: str
    meta: _PunieSession | None = msgspec.field(name="_meta", default=None)

    @property
    def punie(self) -> SessionMeta:
        """Our part of ``_meta``."""
        return self.meta.punie if self.meta else SessionMeta()


class ListSessions(_Params, frozen=True):
    """Params of ``session/list``."""

    cwd: str | None = None
    cursor: str | None = None


class Prompt(_Params, frozen=True):
    """Params of ``session/prompt``."""

    session_id: Id
    meta: _PuniePrompt | None = msgspec.field(name="_meta", default=None)

    @property
    def punie(self) -> PromptMeta:
        """Our part of ``_meta``."""
        return self.meta.punie if self.meta else PromptMeta()


class OfSession(_Params, frozen=True):
    """Params that name a session."""

    session_id: Id


class SetMode(_Params, frozen=True):
    """Params of ``session/set_mode``."""

    session_id: Id
    mode_id: str

    @property
    def mode(self) -> Mode:
        """The mode. Raises `PunieError` (`InvalidRequest`) that names the choices."""
        try:
            return Mode(self.mode_id)
        except ValueError:
            choices = ", ".join(Mode)
            text = f"there is no mode {self.mode_id[:80]!r}: {choices}"
            raise PunieError(InvalidRequest(message=text)) from None


class OfRequest(_Params, frozen=True):
    """Params of ``$/cancel_request``."""

    request_id: RpcId


class _Block(msgspec.Struct, frozen=True):
    type: str
    text: str = ""


class _Blocks(msgspec.Struct, frozen=True):
    prompt: list[Raw] = []


class _PromptResult(_Params, frozen=True):
    stop_reason: str | None = None


def params[P](raw: Raw | msgspec.UnsetType, kind: type[P]) -> P:
    """Return the members of `raw` that `kind` has. Raises `PunieError` that names the fault."""
    try:
        return msgspec.json.decode(b"{}" if raw is msgspec.UNSET else raw, type=kind)
    except msgspec.MsgspecError as error:
        raise PunieError(InvalidRequest(message=f"params: {error}")) from None


def title(raw: Raw) -> str:
    """Return the first line of a prompt's text, at most `MAX_TITLE` characters. Blocks of more
    than 64 KB are not looked at: the loop has no time for them."""
    try:
        raws = msgspec.json.decode(raw, type=_Blocks).prompt
        blocks = (
            msgspec.json.decode(block, type=_Block)
            for block in raws
            if len(memoryview(block)) <= _MAX_TITLE_BLOCK
        )
        text = next((block.text for block in blocks if block.type == "text"), "")
    except msgspec.MsgspecError:
        return ""
    return text.strip().partition("\n")[0][:MAX_TITLE]


def stop_reason(result: Raw) -> str | None:
    """Return the stop reason of a prompt's result, ``None`` when it has none."""
    try:
        return msgspec.json.decode(result, type=_PromptResult).stop_reason
    except msgspec.MsgspecError:
        return None


def with_punie(raw: Raw | msgspec.UnsetType, members: msgspec.Struct | dict[str, Any]) -> Raw:
    """Return params with `members` set in ``_meta.punie``; every other value keeps its bytes.

    Raises `PunieError` when params, ``_meta`` or its ``punie`` is not an object.
    """
    outer = _members(b"{}" if raw is msgspec.UNSET else raw)
    meta = _members(outer.get("_meta"))
    punie = _members(meta.get("punie"))
    for name, value in msgspec.to_builtins(members).items():
        punie[name] = jsonrpc.raw(value)
    meta["punie"] = jsonrpc.raw(punie)
    outer["_meta"] = jsonrpc.raw(meta)
    return jsonrpc.raw(outer)


def from_a_client(raw: Raw, meta: PromptMeta) -> Raw:
    """Return a prompt's params without the members of ``_meta.punie`` that only the supervisor
    may set: among them a key that must not reach the journal. `meta` is what `raw` has there."""
    if meta.backend is None and meta.resume is None and meta.queue_ms is None:
        return raw
    outer = _members(raw)
    members = _members(outer["_meta"])
    punie = _members(members["punie"])
    for name in ("backend", "resume", "queueMs"):
        punie.pop(name, None)
    members["punie"] = jsonrpc.raw(punie)
    outer["_meta"] = jsonrpc.raw(members)
    return jsonrpc.raw(outer)


def _members(raw: Raw | bytes | None) -> dict[str, Raw]:
    if raw is None or bytes(raw) == b"null":
        return {}
    try:
        return msgspec.json.decode(raw, type=dict[str, Raw])
    except msgspec.MsgspecError as error:
        raise PunieError(InvalidRequest(message=f"params: {error}")) from None


def initialized() -> dict[str, Any]:
    """Return the result of ``initialize``."""
    return {
        "protocolVersion": ACP_VERSION,
        "agentInfo": {"name": "punie", "title": "Punie", "version": version()},
        "agentCapabilities": {
            "loadSession": False,
            "promptCapabilities": {"embeddedContext": True},
            "sessionCapabilities": {"list": {}},
        },
        "authMethods": [],
        "_meta": {"punie": About(protocol=PROTOCOL)},
    }
