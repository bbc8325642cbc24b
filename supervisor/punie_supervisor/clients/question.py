"""One question in a session of its own, asked without anybody there: it only reads."""

import asyncio
import uuid
from typing import Any

import msgspec
from msgspec import Raw

from punie_protocol import client as punie
from punie_protocol.client import ResultMeta
from punie_protocol.errors import PunieError, RemoteError, TimedOut, WireError
from punie_protocol.permissions import Mode, PromptPermissions
from punie_supervisor.clients.connection import CANCEL_REQUEST, Client
from punie_supervisor.clients.turn import PromptResult, TurnCollector, TurnReport


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended: what a person would see, and what was measured, if it was. One that failed has
    `report.error`."""

    report: TurnReport
    meta: ResultMeta | None


class _SessionId(msgspec.Struct, rename="camel"):
    session_id: str


class Asker:
    """Asks on a connection whose handler is `handle`, one question after the other."""

    def __init__(self) -> None:
        self._collector: TurnCollector | None = None

    async def handle(self, method: str, params: Raw) -> Any:
        """Take what the daemon sends; a question of the agent is dismissed."""
        match method:
            case "session/update" if self._collector is not None:
                self._collector.update(params)
            case "session/request_permission":
                return {"outcome": {"outcome": "cancelled"}}
            case _:
                pass
        return None

    async def ask(
        self, client: Client, directory: str, text: str, *, model: str | None, timeout_s: float
    ) -> Answered:
        """Ask about a project and return how the turn ended. Raises `PunieError` when the daemon
        is gone or opens no session. Late or cancelled, the turn is cancelled."""
        params = {"cwd": directory, "mcpServers": []}
        session = (await client.call("session/new", params, _SessionId)).session_id
        prompt_id = uuid.uuid4().hex
        collector = self._collector = TurnCollector(session, directory, prompt_id)
        request = client.next_id()
        meta = punie.PromptMeta(
            prompt_id=prompt_id, model=model, permissions=PromptPermissions(mode=Mode.READ_ONLY)
        )
        prompt = {
            "sessionId": session,
            "prompt": [{"type": "text", "text": text}],
            "_meta": {"punie": meta},
        }
        try:
            async with asyncio.timeout(timeout_s):
                result = await client.call("session/prompt", prompt, PromptResult, id=request)
        except RemoteError as error:
            return _failed(collector, error.error, error.meta)
        except TimeoutError:
            await _cancel(client, request)
            text = f"no complete answer within {timeout_s:g} s"
            return _failed(collector, TimedOut(message=text, limit_s=timeout_s), None)
        except asyncio.CancelledError:
            await _cancel(client, request)
            raise
        return Answered(report=collector.finish(result), meta=result.meta.punie)


async def _cancel(client: Client, request: int) -> None:
    try:
        await client.notify(CANCEL_REQUEST, {"requestId": request})
    except PunieError:
        return  # the daemon is gone, and the turn with it


def _failed(collector: TurnCollector, error: WireError, meta: bytes | None) -> Answered:
    report = collector.fail(error, meta)
    found = None if meta is None else msgspec.json.decode(meta, type=ResultMeta)
    return Answered(report=report, meta=found)
