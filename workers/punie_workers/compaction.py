"""Keeps a conversation within the model's context window: old tool results go first, then whole
turns, for which a summary by the model itself stands. It is said each time, and durable before it
is used, so that what was left out stays out."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
from pydantic_ai.messages import ModelMessage

from punie_protocol.errors import ContextOverflow, LinkClosed, PunieError
from punie_protocol.messages.common import ModelInfo, PromptStyle
from punie_workers.layout import NOTHING, Compaction, Layout
from punie_workers.room import Room, plan, room, room_after
from punie_workers.summaries import summary_request, summary_tokens

LEFT_OUT: Final = "earlier conversation left out to fit the model's context window"
SUMMARY_TIMEOUT: Final = 300.0
"""Seconds for a summary; a large context on a small machine takes minutes to read."""

_LOST: Final = "(What was said here could not be summed up and is gone.)"
_HINT: Final = (
    "ask for less at once, start a new session, or use a model with a larger context window"
)

_log = logging.getLogger(__name__)

type Summarize = Callable[[list[ModelMessage]], Awaitable[str]]
"""Has the model answer a short conversation without tools, with `summary_tokens` at most. Raises
`PunieError`: with `LinkClosed` the step is to be repeated, else there is no summary."""


class Compactor:
    """Decides what is sent of one conversation, for one model at a time, one call at a time.

    `store` makes a compaction durable. The model that uses it sets `summarize` (without one there
    are no summaries), `overhead`, the characters that it sends besides the conversation, and
    `is_checked`: whether who gets a conversation refuses one that is too long. Some servers do
    not, and cut it or fail.
    """

    def __init__(
        self,
        compaction: Compaction | None,
        notice: Callable[[str], None],
        store: Callable[[Compaction], Awaitable[None]],
    ) -> None:
        self.summarize: Summarize | None = None
        self.overhead = 0
        self.is_checked = True
        self._now = compaction or NOTHING
        self._notice = notice
        self._store = store

    async def fit(
        self,
        messages: Sequence[ModelMessage],
        info: ModelInfo,
        *,
        overflow: PunieError | None = None,
    ) -> list[ModelMessage]:
        """Return what to send of `messages`. With `overflow`, the refusal of what was returned
        before, it is shorter than that. Raises `overflow` when it is not about length, and its
        like with a hint when nothing more can be left out: without `is_checked` also before
        anything was sent, when it is far too long; what `store` raises; `LinkClosed`.
        Cancelled, nothing is left out but what was stored."""
        layout = Layout(messages)
        if overflow is None:
            space = room(layout, self._now, info, self.overhead)
            if layout.size(self._now) <= space.trigger:
                return layout.view(self._now)
        else:
            space = room_after(overflow, layout, self._now, info, self.overhead)
        summary = int(summary_tokens(info) * space.per_token) if self.summarize else 0
        after = plan(layout, self._now, space, info.prompt_style, summary)
        if layout.size(after) > space.hopeless:
            if overflow is None and not self.is_checked:
                raise _too_long(space.estimate(layout.size(after)), info)
            after = self._now  # all that can go would go for nothing, and stay gone
        if layout.size(after) < layout.size(self._now):
            await self._move(layout, info, space, after)
        elif overflow is not None:
            raise _hopeless(overflow)
        return layout.view(self._now)

    async def _move(self, layout: Layout, info: ModelInfo, space: Room, after: Compaction) -> None:
        now = self._now
        after = msgspec.structs.replace(after, answers=layout.answers)
        is_summed_up = False
        if after.turns > now.turns and info.prompt_style is PromptStyle.TOOLS:
            text = await self._summary(layout, info, space, after)
            is_summed_up = bool(text)
            summary = text or f"{now.summary.removesuffix(_LOST)}\n{_LOST}".strip()
            after = msgspec.structs.replace(after, summary=summary)
        await self._store(after)
        self._now = after
        for notice in _notices(layout, now, after, space, is_summed_up=is_summed_up):
            self._notice(notice)

    async def _summary(
        self, layout: Layout, info: ModelInfo, space: Room, after: Compaction
    ) -> str:
        """Return the model's summary of what `after` leaves out; empty when there is none."""
        if self.summarize is None:
            return ""
        begin, end = layout.begin(self._now), layout.begin(after)
        gone = layout.view(msgspec.structs.replace(after, turns=0, summary=""))[begin:end]
        most = summary_tokens(info)
        characters = int((info.context_window - most) * space.per_token * 0.8)
        try:
            async with asyncio.timeout(SUMMARY_TIMEOUT):
                text = await self.summarize(summary_request(gone, self._now.summary, characters))
        except LinkClosed:
            raise
        except (PunieError, TimeoutError) as error:
            _log.warning("no summary of the earlier conversation: %s", error)
            return ""
        return text.strip()[: int(most * max(space.per_token, 4.0))]


def _notices(
    layout: Layout, now: Compaction, after: Compaction, space: Room, *, is_summed_up: bool
) -> list[str]:
    notices = list[str]()
    count, characters = layout.stubbed(now, after)
    if count:
        results = "1 result" if count == 1 else f"{count} results"
        tokens = _about(characters / max(space.per_token, 1.0))
        notices.append(
            "older tool results left out to fit the model's context window "
            f"({results}, about {tokens:,} tokens)"
        )
    if (turns := after.turns - now.turns) > 0:
        number = "1 turn" if turns == 1 else f"{turns} turns"
        notices.append(f"earlier conversation summarised: {number}" if is_summed_up else LEFT_OUT)
    if after.cut and after.cut != now.cut:
        notices.append("the last tool result cut to fit the model's context window")
    return notices


def _about(number: float) -> int:
    """Return two digits of it: it is an estimate."""
    whole = max(1, round(number))
    return round(whole, 2 - len(str(whole)))


def _too_long(tokens: int, info: ModelInfo) -> PunieError:
    limit = info.context_window
    message = (
        f"the last prompt and what belongs to it have about {tokens:,} tokens, the model's window "
        f"{limit:,}, and nothing more can be left out; nothing was sent"
    )
    return PunieError(ContextOverflow(message=message, tokens=tokens, limit=limit, hint=_HINT))


def _hopeless(overflow: PunieError) -> PunieError:
    error = overflow.error
    message = f"{error.message}; the last prompt alone does not fit, nothing more can be left out"
    if isinstance(error, ContextOverflow) and error.limit:
        message = (
            f"the last prompt and what belongs to it have {error.tokens:,} tokens, the model's "
            f"window {error.limit:,}, and nothing more can be left out"
        )
    return PunieError(msgspec.structs.replace(error, message=message, hint=_HINT))
