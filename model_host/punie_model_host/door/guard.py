"""Who may come in: whoever has the key, and no page of a browser. Pure.

A web page can reach a port of the loopback interface: by a name that it points there (hence the
check of ``Host``), or by its address (a browser then sends ``Origin``).
"""

import hmac
from collections.abc import Iterable
from typing import Final

from punie_model_host.door.faults import Refusal

type Header = tuple[bytes, bytes]

_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")


class Guard:
    """Checks the headers of requests to one port, for one key (not an empty one)."""

    def __init__(self, port: int, key: str) -> None:
        assert key, "an empty key is what who sends none has"
        self._hosts = {f"{name}:{port}".encode() for name in _NAMES}
        if port == 80:
            self._hosts |= {name.encode() for name in _NAMES}
        self._key = key.encode()
        self._address = f"127.0.0.1:{port}"

    def check(self, headers: Iterable[Header]) -> None:
        """Raise `Refusal` for a request that must not come in; the key is looked at last."""
        found: dict[bytes, list[bytes]] = {b"host": [], b"origin": [], b"authorization": []}
        for name, value in headers:
            if name in found:
                found[name].append(value)
        self._check_host(found[b"host"])
        if found[b"origin"]:
            raise _forbidden("requests of web pages (with an Origin header) are refused")
        self._check_key(found[b"authorization"])

    def _check_host(self, hosts: list[bytes]) -> None:
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            raise _forbidden(f"the Host header has to be {self._address}")

    def _check_key(self, values: list[bytes]) -> None:
        scheme, _, key = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        # Both are evaluated: how long it takes says nothing of the key.
        right = hmac.compare_digest(key.strip(), self._key)
        if not right or scheme.lower() != b"bearer":
            raise Refusal(
                401,
                "invalid_request_error",
                "the key is missing or wrong: send it as 'Authorization: Bearer KEY'; "
                "where it is, says: punie model serve",
                code="invalid_api_key",
                headers=[(b"www-authenticate", b"Bearer")],
                close=True,
            )


def check_json(headers: Iterable[Header]) -> None:
    """Raise `Refusal` unless the body says that it is JSON: what a form of a page cannot say."""
    values = [value for name, value in headers if name == b"content-type"]
    if len(values) != 1 or values[0].partition(b";")[0].strip().lower() != b"application/json":
        raise Refusal(
            415, "invalid_request_error", "the Content-Type has to be application/json", close=True
        )


def is_chunked(headers: Iterable[Header]) -> bool:
    """Whether a request's body comes in chunks."""
    return any(name == b"transfer-encoding" for name, _ in headers)


def check_length(headers: Iterable[Header]) -> None:
    """Raise `Refusal` for a body in chunks, of which the connection reads none."""
    if is_chunked(headers):
        text = "a body in chunks is not read: send it with Content-Length"
        raise Refusal(411, "invalid_request_error", text, code="length_required", close=True)


def _forbidden(message: str) -> Refusal:
    return Refusal(403, "permission_error", message, code="forbidden", close=True)
