"""The envelope of a client's message: all that the supervisor looks at.

ACP is JSON-RPC 2.0. `params`, `result` and `error` stay the bytes they came as.
"""

from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from punie_protocol.errors import InvalidRequest, PunieError, TooLarge, WireError
from punie_protocol.limits import MAX_CLIENT_MESSAGE

type RpcId = int | str | None

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
PUNIE_ERROR = -32050
"""A `WireError`, whole, is in the error's ``data.punie``."""


class Envelope(msgspec.Struct, kw_only=True):
    """One JSON-RPC message. Request: id and method. Notification: method. Response: id.

    A member that is ``UNSET`` is not on the wire; ``id: null`` is.
    """

    jsonrpc: str = "2.0"
    id: RpcId | UnsetType = UNSET
    method: str | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class RpcErrorData(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The ``data`` of an error object. `meta` is the `ResultMeta` of a prompt that failed."""

    punie: WireError | UnsetType = UNSET
    meta: Raw | UnsetType = UNSET


class RpcError(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The ``error`` of a response."""

    code: int
    message: str
    data: RpcErrorData | UnsetType = UNSET


_decoder = msgspec.json.Decoder(Envelope)
_error_decoder = msgspec.json.Decoder(RpcError)


def decode(body: bytes | str) -> Envelope:
    """Return the envelope of `body`. Raises `PunieError` naming the fault for anything else."""
    if len(body) > MAX_CLIENT_MESSAGE:
        raise PunieError(
            TooLarge(
                message=f"message of {len(body)} bytes is over the limit of {MAX_CLIENT_MESSAGE}",
                hint="send less context in one prompt",
                limit=MAX_CLIENT_MESSAGE,
                actual=len(body),
            )
        )
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PunieError(InvalidRequest(message=f"not a JSON-RPC message: {error}")) from None


def encode(envelope: Envelope) -> bytes:
    """Return `envelope` as JSON; raw parts are copied as they came."""
    return msgspec.json.encode(envelope)


def request(id: RpcId, method: str, params: Any) -> bytes:
    """Return a request; `params` is anything msgspec can encode."""
    return encode(Envelope(id=id, method=method, params=raw(params)))


def notification(method: str, params: Any) -> bytes:
    """Return a notification."""
    return encode(Envelope(method=method, params=raw(params)))


def response(id: RpcId, result: Any) -> bytes:
    """Return a successful response."""
    return encode(Envelope(id=id, result=raw(result)))


def failure(id: RpcId, error: WireError, *, code: int = PUNIE_ERROR) -> bytes:
    """Return an error response that carries `error` whole."""
    body = RpcError(code=code, message=error.message, data=RpcErrorData(punie=error))
    return encode(Envelope(id=id, error=raw(body)))


def decode_error(error: Raw) -> RpcError:
    """Return the error object of a response, `data` without our part when it is a stranger's."""
    try:
        return _error_decoder.decode(error)
    except msgspec.MsgspecError:
        loose = msgspec.json.decode(error, type=dict[str, Any])
        code = loose.get("code")
        return RpcError(
            code=code if isinstance(code, int) else INTERNAL_ERROR,
            message=str(loose.get("message", "unknown error")),
        )


def raw(value: Any) -> Raw:
    """Return `value` encoded; a `Raw` stays itself."""
    return value if isinstance(value, Raw) else Raw(msgspec.json.encode(value))
