"""What crosses into the project half: the mirror of `punie_protocol.interp_codec`.

A request is ``[operation, arguments]``; a reply is ``["ok", value, END]`` or
``["error", {"kind", "message"}, END]``, both as `marshal` bytes.
"""

import marshal
from typing import Any, Final

END: Final = "end"
OK: Final = "ok"
ERROR: Final = "error"


def decode_request(request: bytes) -> tuple[str, dict[str, Any]]:
    """Return the operation and its arguments."""
    operation, arguments = marshal.loads(request)
    return operation, arguments


def encode_request(operation: str, arguments: dict[str, Any]) -> bytes:
    """Return a request, for the host half to send back."""
    return marshal.dumps([operation, arguments])


def encode_ok(value: Any) -> bytes:
    """Return a successful reply; `value` is made of builtins."""
    return marshal.dumps([OK, value, END])


def encode_error(kind: str, message: str) -> bytes:
    """Return a failure."""
    return marshal.dumps([ERROR, {"kind": str(kind), "message": message}, END])
