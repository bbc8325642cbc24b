"""One session's history: pydantic-ai messages in memory, deltas in the supervisor's journal.

A delta is the JSON of a list of messages, or of one `Compaction` (an object).
"""

import asyncio
import itertools
import shlex
from collections.abc import Coroutine, Sequence
from typing import Any, Final

import msgspec
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from punie_protocol.errors import Internal, MessageTooLarge, PunieError, RemoteError
from punie_protocol.messages.to_worker import Effect
from punie_workers.layout import Compaction
from punie_workers.ledger import SessionLedger, ended

INTERRUPTED = "error: interrupted: the call was stopped"
MAX_NAMED: Final = 50
"""Effects of one kind that the model is told by name; a program may have a thousand."""


class Conversation:
    """Messages so far, what of them is left out when they are sent, and the effects of the step
    under way. Used by one task at a time, but for effects."""

    def __init__(self, ledger: SessionLedger) -> None:
        self.messages: list[ModelMessage] = []
        self.compaction: Compaction | None = None
        self._effects: dict[str, Effect] = {}
        self._ledger = ledger
        self._sizes: list[int] = []
        self._broken: PunieError | None = None
        self._appending: asyncio.Task[None] | None = None

    def restore(self, deltas: Sequence[bytes], effects: Sequence[Effect] = ()) -> None:
        """Take what was stored before, in order. Raises `PunieError` when it cannot be read."""
        for delta in deltas:
            self._take(delta)
        self._effects |= {effect.effect_id: effect for effect in effects}

    def _take(self, delta: bytes) -> None:
        try:
            if delta.startswith(b"{"):
                self.compaction = msgspec.json.decode(delta, type=Compaction)
                self._sizes.append(0)
                return
            messages = ModelMessagesTypeAdapter.validate_json(delta)
        except ValueError as error:  # msgspec's and pydantic's too
            text = f"a stored part of the conversation cannot be read: {error}"
            raise PunieError(Internal(message=text)) from None
        self.messages.extend(messages)
        self._sizes.append(len(messages))

    def has_prompt(self, stored: int) -> bool:
        """Whether the prompt whose deltas are the last `stored` ones is in the history."""
        count = sum(self._sizes[-stored:]) if stored else 0
        return any(_has_prompt(message) for message in self.messages[len(self.messages) - count :])

    @property
    def is_answered(self) -> bool:
        """Whether the last prompt has its whole answer."""
        last = self.messages[-1] if self.messages else None
        return isinstance(last, ModelResponse) and not last.tool_calls and bool(last.text)

    async def begin_turn(self) -> None:
        """Wait until what a cancelled `append` had begun is over. What the journal refused in the
        turn before is tried again; what it did not answer stays unknown."""
        await self._settle()
        if isinstance(self._broken, RemoteError):
            self._broken = None

    async def append(self, prompt_id: str, messages: Sequence[ModelMessage]) -> None:
        """Make `messages` durable, then part of the history. Raises `PunieError` when they could
        not be stored; every later call of this turn raises it too, and for good when whether they
        were is unknown. Once begun it is not undone by cancelling: see `begin_turn`."""
        data = ModelMessagesTypeAdapter.dump_json(list(messages))
        await self._shielded(self._append(prompt_id, data, messages))

    async def compact(self, prompt_id: str, compaction: Compaction) -> None:
        """Make a compaction durable; it holds from then on. Raises like `append`."""
        await self._shielded(self._compact(prompt_id, compaction))

    async def _settle(self) -> None:
        if self._appending is not None:
            await asyncio.wait([self._appending])

    async def _shielded(self, work: Coroutine[Any, Any, None]) -> None:
        await self._settle()
        self._appending = asyncio.create_task(work)
        await asyncio.shield(self._appending)

    async def _append(self, prompt_id: str, data: bytes, messages: Sequence[ModelMessage]) -> None:
        await self._store(prompt_id, data, len(messages))
        self.messages.extend(messages)
        if not _open_calls(self.messages):
            self._effects.clear()

    async def _compact(self, prompt_id: str, compaction: Compaction) -> None:
        await self._store(prompt_id, msgspec.json.encode(compaction), 0)
        self.compaction = compaction

    async def _store(self, prompt_id: str, data: bytes, size: int) -> None:
        if self._broken is not None:
            raise self._broken
        try:
            await self._ledger.delta(prompt_id, len(self._sizes), data)
        except MessageTooLarge:
            raise  # nothing of it was sent: the history is what it was
        except PunieError as error:
            self._broken = error
            raise
        self._sizes.append(size)

    # effects

    async def begin_effect(self, prompt_id: str, effect: Effect) -> None:
        """Make it durable that `effect` is about to begin. Raises `PunieError`: then it may not.
        Cancelled, it may not either, and whether it was stored does not matter."""
        if self._broken is not None:
            raise self._broken
        self._effects[effect.effect_id] = effect
        try:
            await self._ledger.effect_started(prompt_id, len(self._sizes), effect)
        except asyncio.CancelledError:
            self.drop_effect(effect, happened=False)
            raise
        except PunieError:
            del self._effects[effect.effect_id]
            raise

    async def end_effect(self, effect: Effect, *, ok: bool, summary: str) -> None:
        """Make it durable how an effect ended. When that fails it has happened all the same: what
        would come after it, the next effect or `append`, raises why."""
        self._effects[effect.effect_id] = done = ended(effect, ok=ok, summary=summary)
        try:
            await self._ledger.effect_finished(done)
        except PunieError as error:
            self._broken = error

    def drop_effect(self, effect: Effect, *, happened: bool) -> None:
        """Note how an effect ended whose turn was cancelled; does not wait."""
        summary = "done, then the turn was cancelled" if happened else "cancelled, not done"
        self._effects[effect.effect_id] = done = ended(effect, ok=happened, summary=summary)
        self._ledger.effect_finished_nowait(done)

    def repairs(self) -> list[ModelMessage]:
        """Return what must be appended before the next prompt: an answer to each tool call that
        a stopped turn or a lost worker left open."""
        return dangling_answers(self.messages, list(self._effects.values()))


def dangling_answers(
    messages: Sequence[ModelMessage], effects: Sequence[Effect] = ()
) -> list[ModelMessage]:
    """Return a request that answers the open tool calls of the last message, or nothing. The
    first answer says what became of the `effects` of that step."""
    calls = _open_calls(messages)
    if not calls:
        return []
    told = itertools.chain([f"{INTERRUPTED}; {_fate(effects)}"], itertools.repeat(INTERRUPTED))
    parts = [
        ToolReturnPart(
            tool_name=call.tool_name,
            tool_call_id=call.tool_call_id,
            content=text,
            outcome="interrupted",
        )
        for call, text in zip(calls, told, strict=False)
    ]
    return [ModelRequest(parts=parts)]


def _open_calls(messages: Sequence[ModelMessage]) -> list[ToolCallPart]:
    last = messages[-1] if messages else None
    return last.tool_calls if isinstance(last, ModelResponse) else []


def _fate(effects: Sequence[Effect]) -> str:
    """Return in words what is known of the effects of an interrupted step."""
    if not effects:
        return "it had changed nothing"
    groups = (
        ("done", [effect for effect in effects if effect.ok]),
        ("not done", [effect for effect in effects if effect.ok is False]),
        ("outcome unknown, look before you repeat it", [e for e in effects if e.ok is None]),
    )
    return "; ".join(f"{what}: {_listed(some)}" for what, some in groups if some)


def _listed(effects: Sequence[Effect]) -> str:
    """Return the last ones by name: the first of many were done long before."""
    more = len(effects) - MAX_NAMED
    names = ", ".join(map(_named, effects[-MAX_NAMED:]))
    return f"{more} more and {names}" if more > 0 else names


def _named(effect: Effect) -> str:
    try:
        arguments = msgspec.json.decode(effect.arguments, type=dict[str, object])
    except msgspec.MsgspecError:
        arguments = {}
    subject = next((_words(value) for value in arguments.values() if _words(value)), "")
    return f"{effect.tool} {subject[:200]}".strip()


def _words(value: object) -> str:
    """Return an argument that says what a call was about: a text, or the words of a command."""
    if isinstance(value, list):
        return shlex.join(map(str, value))
    return value if isinstance(value, str) else ""


def _has_prompt(message: ModelMessage) -> bool:
    parts = message.parts if isinstance(message, ModelRequest) else ()
    return any(isinstance(part, UserPromptPart) for part in parts)
