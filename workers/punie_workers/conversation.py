"""One session's history: pydantic-ai messages in memory, deltas in the supervisor's journal."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    ToolReturnPart,
)

from punie_protocol.errors import Internal, MessageTooLarge, PunieError

INTERRUPTED = "error: interrupted: the call was stopped, its outcome is unknown"

type Store = Callable[[str, int, bytes], Awaitable[None]]
"""Makes a delta durable: prompt id, ordinal, JSON. Raises `PunieError`."""


class Conversation:
    """Messages so far, and the ordinal of the next delta. Used by one task at a time."""

    def __init__(self, store: Store) -> None:
        self.messages: list[ModelMessage] = []
        self._store = store
        self._ordinal = 0
        self._broken: PunieError | None = None
        self._appending: asyncio.Task[None] | None = None

    def restore(self, deltas: Sequence[bytes]) -> None:
        """Take what was stored before, in order. Raises `PunieError` when it cannot be read."""
        for delta in deltas:
            self.messages.extend(_decode(delta))
            self._ordinal += 1

    async def append(self, prompt_id: str, messages: Sequence[ModelMessage]) -> None:
        """Make `messages` durable, then part of the history. Raises `PunieError` when they could
        not be stored; whether they were is then unknown, so every later call raises it too.
        Once begun it is not undone by cancelling: see `settle`."""
        await self.settle()
        self._appending = asyncio.create_task(self._append(prompt_id, messages))
        await asyncio.shield(self._appending)

    async def settle(self) -> None:
        """Wait until what a cancelled `append` had begun is over."""
        if self._appending is not None:
            await asyncio.wait([self._appending])

    async def _append(self, prompt_id: str, messages: Sequence[ModelMessage]) -> None:
        if self._broken is not None:
            raise self._broken
        try:
            data = ModelMessagesTypeAdapter.dump_json(list(messages))
            await self._store(prompt_id, self._ordinal, data)
        except MessageTooLarge:
            raise  # nothing of it was sent: the history is what it was
        except PunieError as error:
            self._broken = error
            raise
        self._ordinal += 1
        self.messages.extend(messages)

    def repairs(self) -> list[ModelMessage]:
        """Return what must be appended before the next prompt: an answer to each tool call that
        a stopped turn or a lost worker left open."""
        return dangling_answers(self.messages)


def dangling_answers(messages: Sequence[ModelMessage]) -> list[ModelMessage]:
    """Return a request that answers the open tool calls of the last message, or nothing."""
    last = messages[-1] if messages else None
    if not isinstance(last, ModelResponse) or not last.tool_calls:
        return []
    parts = [
        ToolReturnPart(
            tool_name=call.tool_name,
            tool_call_id=call.tool_call_id,
            content=INTERRUPTED,
            outcome="interrupted",
        )
        for call in last.tool_calls
    ]
    return [ModelRequest(parts=parts)]


def _decode(delta: bytes) -> list[ModelMessage]:
    try:
        return ModelMessagesTypeAdapter.validate_json(delta)
    except ValueError as error:
        message = f"a stored part of the conversation cannot be read: {error}"
        raise PunieError(Internal(message=message)) from None
