"""What a prompt came to."""

from typing import Any

import msgspec

from punie_protocol import jsonrpc
from punie_protocol.client import ResultMeta
from punie_protocol.errors import InvalidRequest, PunieError, RemoteError, WireError
from punie_protocol.jsonrpc import Envelope

type Json = dict[str, Any]
"""An object of ACP, whose types are not ours."""

_object = msgspec.json.Decoder(Json.__value__)


class _Meta(msgspec.Struct):
    punie: ResultMeta


class _Result(msgspec.Struct, rename="camel"):
    stop_reason: str
    meta: _Meta = msgspec.field(name="_meta")


def decode_object(raw: msgspec.Raw | bytes) -> Json:
    """Return a JSON object."""
    return _object.decode(raw)


class Turn(msgspec.Struct):
    """The response to a prompt, and the updates that came before it."""

    response: Envelope
    updates: list[Json]

    @property
    def result(self) -> Json:
        """The result. Raises `RemoteError` when the prompt failed."""
        return decode_object(self._result())

    @property
    def stop_reason(self) -> str:
        """ACP's word for how it ended; raises as `result`."""
        return msgspec.json.decode(self._result(), type=_Result).stop_reason

    @property
    def meta(self) -> ResultMeta:
        """Timings, usage, tools; raises as `result`."""
        return msgspec.json.decode(self._result(), type=_Result).meta.punie

    @property
    def error(self) -> jsonrpc.RpcError:
        """The error; there must be one."""
        assert isinstance(self.response.error, msgspec.Raw), f"it did not fail: {self.response}"
        return jsonrpc.decode_error(self.response.error)

    @property
    def wire_error(self) -> WireError:
        """The error's `WireError`; there must be one."""
        data = self.error.data
        assert isinstance(data, jsonrpc.RpcErrorData), f"not one of ours: {self.error}"
        assert not isinstance(data.punie, msgspec.UnsetType), f"not one of ours: {self.error}"
        return data.punie

    def text(self, kind: str = "agent_message_chunk") -> str:
        """All text of a kind of update."""
        return "".join(one["content"]["text"] for one in self.of(kind))

    def of(self, kind: str) -> list[Json]:
        """The updates of a kind."""
        return [one for one in self.updates if one["sessionUpdate"] == kind]

    def tools(self) -> list[tuple[str, str | None, Json]]:
        """Every tool call that ended: name, parent and last update, in order of the end."""
        ended: list[tuple[str, str | None, Json]] = []
        for one in self.of("tool_call_update"):
            if one.get("status") not in ("completed", "failed"):
                continue
            meta = one["_meta"]["punie"]
            ended.append((meta["tool"], meta.get("parent"), one))
        return ended

    def _result(self) -> msgspec.Raw:
        if isinstance(self.response.result, msgspec.Raw):
            return self.response.result
        error = self.error
        if isinstance(error.data, jsonrpc.RpcErrorData) and error.data.punie:
            raise RemoteError(error.data.punie)
        message = f"{error.message} (JSON-RPC {error.code})"
        raise PunieError(InvalidRequest(message=message))
