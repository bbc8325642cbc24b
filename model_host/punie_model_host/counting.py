"""`CountTokens` requests: one at a time, in a thread apart from the engine's, so that no answer
under way waits for a tokenizer."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from punie_protocol.errors import Internal, ModelUnavailable, Overloaded, PunieError, WireError
from punie_protocol.messages.common import ModelInfo
from punie_protocol.messages.to_model_client import Failed, TokenCount
from punie_protocol.messages.to_model_host import CountTokens

if TYPE_CHECKING:
    from punie_model_host.token_counter import TokenCounter

MAX_WAITING: Final = 32

_log = logging.getLogger(__name__)

type Reply = Callable[[TokenCount | Failed], None]


class Counting:
    """Every request that is taken gets one reply, on the event loop. The thread ends with the
    process."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="count")
        self._counter: TokenCounter | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, request: CountTokens, model: ModelInfo | None, reply: Reply) -> None:
        """Count for `model`, which is the one that answers now."""
        if model is None:
            refusal: WireError = ModelUnavailable(message="no model is loaded")
        elif len(self._tasks) >= MAX_WAITING:
            message = f"{MAX_WAITING} texts wait to be counted, the limit"
            refusal = Overloaded(message=message, hint="try again in a moment")
        else:
            task = asyncio.create_task(self._answer(request, model, reply))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        reply(Failed(request_id=request.request_id, error=refusal))

    async def _answer(self, request: CountTokens, model: ModelInfo, reply: Reply) -> None:
        loop = asyncio.get_running_loop()
        try:
            tokens = await loop.run_in_executor(self._thread, self._count, request, model)
        except Exception as error:  # noqa: BLE001  the wall round a request
            reply(Failed(request_id=request.request_id, error=_blame(error)))
        else:
            reply(TokenCount(request_id=request.request_id, tokens=tokens))

    def _count(self, request: CountTokens, model: ModelInfo) -> int:
        if self._counter is None:
            from punie_model_host.token_counter import TokenCounter  # a second: MLX

            self._counter = TokenCounter()
        return self._counter.count(model, request.messages, request.tools)


def _blame(error: Exception) -> WireError:
    if isinstance(error, PunieError):
        return error.error
    _log.error("count-failed", exc_info=error)
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return Internal(message=f"the conversation cannot be counted: {text[:300]}")
