"""Conversations on their way to tokens, in threads apart from the engine's: no answer under way
waits for a template or a tokenizer, and no short conversation for a long one."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from punie_model_host.facts import ModelFacts
from punie_protocol.errors import Internal, Overloaded, PunieError
from punie_protocol.messages.to_model_host import (
    AnyChatMessage,
    AssistantMessage,
    CountTokens,
    Generate,
    ToolSchema,
)

if TYPE_CHECKING:
    from punie_model_host.prepare import Prepared, Reader

MAX_COUNTS: Final = 32
"""`CountTokens` requests that may wait; requests to answer are bounded by whoever takes them."""
LONG: Final = 256 * 1024
"""Characters from which a conversation goes to the slow lane."""

_log = logging.getLogger(__name__)


class _Lane:
    """One thread with a tokenizer of its own, read when it is first needed and kept while the
    model is the same."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._reader: Reader | None = None

    async def run[R](self, facts: ModelFacts, work: Callable[[Reader], R]) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._with_reader, facts, work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _with_reader[R](self, facts: ModelFacts, work: Callable[[Reader], R]) -> R:
        if self._reader is None or self._reader.facts != facts:
            from punie_model_host.prepare import Reader  # a second: MLX

            self._reader = Reader(facts)
        return work(self._reader)


class Intake:
    """For the event loop's thread. Every piece of work that is taken gets one reply there."""

    def __init__(self) -> None:
        self._short, self._long = _Lane("read"), _Lane("read-long")
        self._tasks: set[asyncio.Task[None]] = set()
        self._counts = 0

    def prepare(
        self, request: Generate, facts: ModelFacts, reply: Callable[[Prepared | PunieError], None]
    ) -> None:
        """Prepare a request for that model."""
        lane = self._lane(request.messages, request.tools)
        self._start(lane.run(facts, lambda reader: reader.prepare(request)), reply)

    def count(
        self, request: CountTokens, facts: ModelFacts, reply: Callable[[int | PunieError], None]
    ) -> None:
        """Count tokens for that model."""
        if self._counts >= MAX_COUNTS:
            message = f"{MAX_COUNTS} texts wait to be counted, the limit"
            reply(PunieError(Overloaded(message=message, hint="try again in a moment")))
            return
        self._counts += 1

        def done(result: int | PunieError) -> None:
            self._counts -= 1
            reply(result)

        lane = self._lane(request.messages, request.tools)
        work = lane.run(facts, lambda reader: reader.count(request.messages, request.tools))
        self._start(work, done)

    def close(self) -> None:
        """End the threads when they are done with what they have; nothing more is taken."""
        self._short.close()
        self._long.close()

    def _lane(self, messages: list[AnyChatMessage], tools: list[ToolSchema]) -> _Lane:
        return self._long if _size(messages, tools) >= LONG else self._short

    def _start[R](self, work: Awaitable[R], reply: Callable[[R | PunieError], None]) -> None:
        task = asyncio.create_task(_answer(work, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _size(messages: list[AnyChatMessage], tools: list[ToolSchema]) -> int:
    """Characters to read, all kinds of text that can be long."""
    size = sum(len(tool.description) + len(tool.parameters) for tool in tools)
    for message in messages:
        size += len(message.text)
        if isinstance(message, AssistantMessage):
            size += len(message.thinking)
            size += sum(len(call.arguments) for call in message.tool_calls)
    return size


async def _answer[R](work: Awaitable[R], reply: Callable[[R | PunieError], None]) -> None:
    try:
        result: R | PunieError = await work
    except Exception as error:  # noqa: BLE001  the wall round a request
        result = _blame(error)
    reply(result)


def _blame(error: Exception) -> PunieError:
    if isinstance(error, PunieError):
        return error
    _log.error("request-unreadable", exc_info=error)
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    message = f"the conversation cannot be read: {text[:300]}"
    return PunieError(Internal(message=message, hint="see punie logs"))
