"""What crosses into a project half: `marshal` bytes of builtins, made from the same Structs.

A request is ``[operation, arguments]``. A reply is ``["ok", value, END]`` or
``["error", {"kind": ..., "message": ...}, END]``: without its end marker it is not a reply
(`MemoryError` inside an interpreter can come back as success). The project half has the mirror
image of this module in the standard library alone: `punie_workers.interp.wire`.
"""

import marshal
from typing import Any, Final

import msgspec

from punie_protocol.errors import Internal, PunieError, ToolFailed

END: Final = "end"
OK: Final = "ok"
ERROR: Final = "error"


def encode_request(operation: str, arguments: msgspec.Struct | dict[str, Any]) -> bytes:
    """Return a call as bytes."""
    return marshal.dumps([operation, msgspec.to_builtins(arguments, builtin_types=(bytes,))])


def decode_reply[R](reply: bytes, result: type[R]) -> R:
    """Return the typed value. Raises `PunieError`: `ToolFailed` when the project half says so,
    `Internal` for anything that is not a whole reply."""
    try:
        status, value, end = marshal.loads(reply)
    except (ValueError, TypeError, EOFError) as error:
        raise PunieError(Internal(message=f"torn reply of a project half: {error}")) from None
    if end != END:
        raise PunieError(Internal(message="reply of a project half without its end marker"))
    if status == ERROR:
        raise PunieError(ToolFailed(kind=value["kind"], message=value["message"]))
    return msgspec.convert(value, result)
