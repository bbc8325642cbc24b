"""Conversations on their way to tokens, in threads apart from the engine's: no answer under way
waits for a template or a tokenizer, no short conversation for a long one, and no client for more
than one of each of the others."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

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


@dataclass(slots=True, eq=False)
class _Work:
    """One piece of work of `client`; `reply` takes what came of it."""

    client: str
    facts: ModelFacts
    do: Callable[[Reader], object]
    reply: Callable[[Any], None]


class _Lane:
    """One thread with a tokenizer of its own, read when it is first needed and kept until a model
    is loaded, the same one too: its files may be others by then. It has one piece of work at a
    time; of the others each client has a line, and they take turns."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._reader: Reader | None = None
        self._lines: dict[str, deque[_Work]] = {}
        self._busy = False

    def add(self, work: _Work) -> None:
        self._lines.setdefault(work.client, deque()).append(work)
        self._next()

    def drop(self, work: _Work) -> None:
        """Forget it, unless it has begun: then its reply still comes."""
        line = self._lines.get(work.client)
        if line is not None and work in line:
            line.remove(work)
            if not line:
                del self._lines[work.client]

    def close(self) -> None:
        self._lines.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> None:
        if self._busy or not self._lines:
            return
        client = next(iter(self._lines))
        line = self._lines.pop(client)
        work = line.popleft()
        if line:
            self._lines[client] = line  # behind the others
        self._busy = True
        loop = asyncio.get_running_loop()
        task = loop.run_in_executor(self._thread, self._with_reader, work)
        task.add_done_callback(lambda done: self._done(work, done))

    def _done(self, work: _Work, done: asyncio.Future[object]) -> None:
        self._busy = False
        if done.cancelled():
            return  # the host stops
        self._next()
        error = done.exception()
        work.reply(done.result() if error is None else _blame(error))

    def _with_reader(self, work: _Work) -> object:
        if self._reader is None or self._reader.facts is not work.facts:
            from punie_model_host.prepare import Reader  # a second: MLX

            self._reader = Reader(work.facts)
        return work.do(self._reader)


class Intake:
    """For the event loop's thread. Every piece of work that is taken, and not dropped before it
    began, gets one reply there."""

    def __init__(self) -> None:
        self._short, self._long = _Lane("read"), _Lane("read-long")
        self._counts = 0

    def prepare(
        self, request: Generate, facts: ModelFacts, reply: Callable[[Prepared | PunieError], None]
    ) -> Callable[[], None]:
        """Prepare a request for that model. What is returned drops it."""
        work = _Work(request.client_id, facts, lambda reader: reader.prepare(request), reply)
        lane = self.lane_of(request)
        lane.add(work)
        return lambda: lane.drop(work)

    def count(
        self,
        client: str,
        request: CountTokens,
        facts: ModelFacts,
        reply: Callable[[int | PunieError], None],
    ) -> None:
        """Count tokens for that model."""
        if self._counts >= MAX_COUNTS:
            message = f"{MAX_COUNTS} texts wait to be counted, the limit"
            reply(PunieError(Overloaded(message=message, hint="try again in a moment")))
            return
        self._counts += 1

        def count(reader: Reader) -> int:
            return reader.count(request.messages, request.tools)

        def done(result: int | PunieError) -> None:
            self._counts -= 1
            reply(result)

        size = _size(request.messages, request.tools)
        self._lane(size).add(_Work(client, facts, count, done))

    def close(self) -> None:
        """End the threads when they are done with what they have; nothing more is taken."""
        self._short.close()
        self._long.close()

    def lane_of(self, request: Generate) -> _Lane:
        """Return where a request is read: the long ones apart from the others."""
        return self._lane(_size(request.messages, request.tools) + len(request.prompt or ""))

    def _lane(self, size: int) -> _Lane:
        return self._long if size >= LONG else self._short


def _size(messages: list[AnyChatMessage], tools: list[ToolSchema]) -> int:
    """Characters to read, all kinds of text that can be long."""
    size = sum(len(tool.description) + len(tool.parameters) for tool in tools)
    for message in messages:
        size += len(message.text)
        if isinstance(message, AssistantMessage):
            size += len(message.thinking)
            size += sum(len(call.arguments) for call in message.tool_calls)
    return size


def _blame(error: BaseException) -> PunieError:
    if isinstance(error, PunieError):
        return error
    _log.error("request-unreadable", exc_info=error)
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    message = f"the conversation cannot be read: {text[:300]}"
    return PunieError(Internal(message=message, hint="see punie logs"))
