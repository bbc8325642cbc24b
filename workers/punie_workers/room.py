"""How much of a model's context window a conversation takes, and what must go. Pure.

Tokens are what the model reported for the last answer plus what was said since, by the characters
per token that were observed there; who refuses a conversation has the last word.
"""

from typing import Final, assert_never

import msgspec
from pydantic_ai.messages import ModelResponse

from punie_protocol.errors import ContextOverflow, PunieError, TooLarge
from punie_protocol.messages.common import ModelInfo, PromptStyle
from punie_workers.layout import Compaction, Layout

TRIGGER: Final = 0.85
"""Of the room: above it something is left out."""
ENOUGH: Final = 0.72
GOAL: Final = 0.60
"""As far down, and if that cannot be, `ENOUGH` will do: each compaction costs the prefix cache."""

_GUESS: Final = {PromptStyle.TOOLS: 3.6, PromptStyle.LEARNED: 8.0}
"""Characters per token before anything was observed. For LEARNED it is more than any text has:
such a model's host counts exactly, and refuses what is too long."""
_LEAST, _MOST = 1.0, 8.0
_FAR_ABOVE_WINDOW: Final = 1.5
_FAR_ABOVE_LIMIT: Final = 2.0
"""So many times is no error of the estimate. What the model's answer needs is not part of it: the
instructions may take most of a small window, so that little is left for a conversation."""


class Room(msgspec.Struct, frozen=True):
    """Characters that a view may have: above `trigger` it is shortened to `goal`, or at least to
    `enough`; above `limit` it does not fit, and above `hopeless` that is no error of the estimate.
    `per_token` is how many a token has; at `limit` there are `tokens`, the overhead with them."""

    trigger: float
    enough: float
    goal: float
    limit: float
    hopeless: float
    per_token: float
    tokens: int

    def estimate(self, characters: int) -> int:
        """Return about how many tokens a view of so many characters has, with its overhead."""
        return round(self.tokens + (characters - self.limit) / self.per_token)


def room(layout: Layout, now: Compaction, info: ModelInfo, overhead: int) -> Room:
    """Return the room for a view besides `overhead` characters of instructions."""
    per_token, used = _used(layout, now, info, overhead)
    window = info.context_window
    tokens = window - min(info.max_output_tokens, window // 4)
    far = _FAR_ABOVE_WINDOW * window / tokens
    return _room(layout.size(now), used, tokens, per_token, info.prompt_style, far)


def room_after(
    error: PunieError, layout: Layout, now: Compaction, info: ModelInfo, overhead: int
) -> Room:
    """Return the room when the view was refused with `error`, which says how long it was. Raises
    `error` when it is about something else."""
    match error.error:
        case ContextOverflow(tokens=actual, limit=limit) | TooLarge(actual=actual, limit=limit):
            pass
        case _:
            raise error
    if not 0 < limit < actual:
        actual, limit = info.context_window * 5 // 4, info.context_window
    characters = layout.size(now)
    per_token = (characters + overhead) / actual
    return _room(characters, actual, limit, per_token, info.prompt_style, _FAR_ABOVE_LIMIT)


def _room(
    characters: int, used: float, tokens: int, per_token: float, style: PromptStyle, far: float
) -> Room:
    def at(share: float) -> float:
        return characters + (share * tokens - used) * per_token

    match style:
        case PromptStyle.TOOLS:
            goal, enough = GOAL, ENOUGH
        case PromptStyle.LEARNED:  # a small window: what fits is worth more than the cache
            goal = enough = TRIGGER
        case _:
            assert_never(style)
    return Room(at(TRIGGER), at(enough), at(goal), at(1.0), at(far), per_token, tokens)


def _used(layout: Layout, now: Compaction, info: ModelInfo, overhead: int) -> tuple[float, float]:
    """Return the characters per token, and the tokens of the view with its overhead."""
    characters = layout.size(now)
    observed = _last_report(layout, now, info)
    if observed is None:
        guess = _GUESS[info.prompt_style]
        return guess, (characters + overhead) / guess
    end, tokens = observed
    then = layout.size(now, end)
    per_token = min(_MOST, max(_LEAST, (then + overhead) / tokens))
    return per_token, tokens + (characters - then) / per_token


def _last_report(layout: Layout, now: Compaction, info: ModelInfo) -> tuple[int, int] | None:
    """Return the last answer of this model to the view `now`, and the tokens it was asked with."""
    answers = layout.answers
    for index in range(len(layout.messages) - 1, -1, -1):
        message = layout.messages[index]
        if isinstance(message, ModelResponse):
            answers -= 1
            if answers < now.answers:
                return None
            if message.usage.input_tokens and message.model_name == info.name:
                return index, message.usage.input_tokens
    return None


def plan(
    layout: Layout, now: Compaction, room: Room, style: PromptStyle, summary: int
) -> Compaction:
    """Return what to leave out, as much more than `now` as is needed. More turns than before mean
    that a summary of `summary` characters is still to be written."""
    match style:
        case PromptStyle.TOOLS:
            after = layout.with_stubs(now, int(room.goal))
            if layout.size(after) > room.enough:
                after = layout.with_later_turns(after, int(room.goal) - summary)
        case PromptStyle.LEARNED:
            after = layout.with_later_turns(now, int(room.goal))
            if layout.size(after) > room.enough:
                after = layout.with_stubs(after, int(room.goal))
        case _:
            assert_never(style)
    to_come = summary if style is PromptStyle.TOOLS and after.turns > now.turns else 0
    if layout.size(after) + to_come > room.limit:
        after = layout.squeezed(after, int(room.trigger) - to_come)
    return after
