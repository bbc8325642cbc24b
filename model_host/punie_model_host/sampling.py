"""The next token of every row of a batch, from its logits.

What a row gets depends on its own logits, seed and position alone, so that an answer is the same
alone and beside any neighbours. mlx-lm's samplers take one parameter for all rows, draw from a
generator that all share, and compile a graph for each value they meet; these take one for each
row. They mean the same by every parameter, and apply it in the same order: bias, penalties,
``top_p``, ``min_p``, XTC, ``top_k``, temperature.

All of it is lazy and belongs to the engine's thread: nothing waits for a token, not even for the
one before.
"""

import hashlib
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import mlx.core as mx

from punie_model_host.profile import SamplingProfile
from punie_model_host.sampling_plan import SamplingPlan
from punie_model_host.world import world

PENALTY_CONTEXT: Final = 20
"""Tokens, prompt included, that penalties look back on; mlx-lm's number."""


class RowError(Exception):
    """The sampling of the row at `index` failed, because of `cause`; no row has changed."""

    def __init__(self, index: int, cause: Exception) -> None:
        super().__init__(f"row {index}: {type(cause).__name__}: {cause}")
        self.index = index
        self.cause = cause


UNSOUND: Final = -1
"""What `Sampled.read` says of a row whose logits are no numbers: its request cannot go on."""


class Sampled(NamedTuple):
    """Of each row the token, uint32 and always one of the vocabulary, so that it can be computed
    with before it is looked at, and whether it is sound: came from logits that are numbers."""

    tokens: mx.array
    sound: mx.array

    def read(self) -> list[int]:
        """Wait for the tokens and return them; `UNSOUND` for one that is not."""
        mx.eval(self.tokens, self.sound)
        pairs = zip(memoryview(self.tokens), memoryview(self.sound), strict=True)
        return [int(token) if sound else UNSOUND for token, sound in pairs]


class RowSampler:
    """One request's sampling: its plan and how far it is. `prompt` is what it follows on. May be
    made in any thread; arrays are made by the first `sample`."""

    def __init__(self, plan: SamplingPlan, vocabulary: int, prompt: Sequence[int]) -> None:
        self.plan = plan
        self.position = 0
        self._vocabulary = vocabulary
        self._before = tuple(prompt[-PENALTY_CONTEXT:]) if plan.penalizes else ()

    @cached_property
    def bias(self) -> mx.array:
        """What is added to the logits, ``(vocabulary,)``."""
        bias = mx.zeros((self._vocabulary,))
        if self.plan.bias:
            bias[mx.array(list(self.plan.bias))] = mx.array(list(self.plan.bias.values()))
        return bias

    @cached_property
    def recent(self) -> mx.array:
        """The last tokens, ``(PENALTY_CONTEXT,)`` uint32; `vocabulary` where there is none."""
        missing = PENALTY_CONTEXT - len(self._before)
        return mx.array([*[self._vocabulary] * missing, *self._before], dtype=mx.uint32)

    def bias_at(self, position: int) -> mx.array:
        """Return what is added to the logits of that position, ``(vocabulary,)``."""
        return self.bias

    def draw(self, position: int) -> Draw:
        """Return the chance of a position."""
        digest = hashlib.blake2b(
            struct.pack("<QQ", self.plan.seed, position), digest_size=16
        ).digest()
        high, low, coin = struct.unpack("<IIQ", digest)
        return Draw((high, low), coin / 2**64 < self.plan.profile.xtc_probability)

    def advance(self, tokens: mx.array, at: int) -> None:
        """Take the token `at` that place as this row's next."""
        self.position += 1
        if self.plan.penalizes:
            self.recent = mx.concatenate([self.recent[1:], tokens[at : at + 1]])

    def take(self, tokens: Sequence[int]) -> None:
        """Take several tokens as this row's next."""
        self.recent, self.position = self.recent_after(tokens), self.position + len(tokens)

    def recent_after(self, tokens: Sequence[int]) -> mx.array:
        """Return what `recent` is once `tokens` are taken."""
        if not tokens or not self.plan.penalizes:
            return self.recent
        last = mx.array(list(tokens[-PENALTY_CONTEXT:]), dtype=mx.uint32)
        return mx.concatenate([self.recent, last])[-PENALTY_CONTEXT:]


class Place(NamedTuple):
    """A position of a row: its next one, if `drafts` are its next tokens."""

    row: RowSampler
    drafts: tuple[int, ...] = ()

    @property
    def plan(self) -> SamplingPlan:
        """The row's plan."""
        return self.row.plan

    @property
    def position(self) -> int:
        """Tokens of the answer before it."""
        return self.row.position + len(self.drafts)

    @property
    def bias(self) -> mx.array:
        """What is added to the logits."""
        return self.row.bias_at(self.position)

    @property
    def recent(self) -> mx.array:
        """The tokens before it that penalties look back on."""
        return self.row.recent_after(self.drafts)


@dataclass(frozen=True, slots=True)
class Draw:
    """Chance of one row at one position: the key of its noise, and whether XTC happens."""

    key: tuple[int, int]
    excludes: bool


def sample(logits: mx.array, rows: Sequence[RowSampler]) -> Sampled:
    """Return the next token of each row of `logits` ``(rows, vocabulary)``, lazily, and take each
    row one token further. Raises `RowError`; every row is as before then."""
    sampled = look_ahead(logits, [Place(row) for row in rows])
    for n, row in enumerate(rows):
        row.advance(sampled.tokens, n)
    return sampled


def look_ahead(logits: mx.array, places: Sequence[Place]) -> Sampled:
    """Return the token that comes at each of `places` by its row of `logits`
    ``(places, vocabulary)``, lazily: what `sample` would say there. Raises `RowError`."""
    chance = [n for n, place in enumerate(places) if place.plan.draws]
    draws = [_attributed(n, places[n]) for n in chance]
    adjusted = [n for n, place in enumerate(places) if _adjusts(place.plan)]
    logits = _change(logits, adjusted, places, _adjusted)

    def drawn(part: mx.array, some: Sequence[Place]) -> mx.array:
        return _drawn(part, [place.plan.profile for place in some], draws)

    return _best(_change(logits, chance, places, drawn))


def _attributed(index: int, place: Place) -> Draw:
    try:
        return place.row.draw(place.position)
    except Exception as error:
        raise RowError(index, error) from error


def _adjusts(plan: SamplingPlan) -> bool:
    return plan.penalizes or bool(plan.bias)


def _change(
    logits: mx.array,
    chosen: list[int],
    rows: Sequence[Place],
    change: Callable[[mx.array, Sequence[Place]], mx.array],
) -> mx.array:
    """Return `logits` with the `chosen` rows changed; the others are as they were."""
    if not chosen:
        return logits
    if len(chosen) == len(rows):
        return change(logits.astype(mx.float32), rows)
    at, changed = mx.array(chosen), logits.astype(mx.float32)  # another array in any case
    changed[at] = change(changed[at], [rows[n] for n in chosen])
    return changed


def _best(scores: mx.array) -> Sampled:
    tokens = mx.argmax(scores, axis=-1)
    best = mx.take_along_axis(scores, tokens[:, None], axis=-1)
    return Sampled(*world().agreed(tokens, mx.isfinite(best[:, 0])))


def _adjusted(logits: mx.array, rows: Sequence[Place]) -> mx.array:
    """Add biases and subtract penalties."""
    if any(row.plan.bias for row in rows):
        logits = logits + mx.stack([row.bias for row in rows])
    if not any(row.plan.penalizes for row in rows):
        return logits
    counts, profiles = _counts(logits, rows), [row.plan.profile for row in rows]
    repeated = _column(profile.repetition_penalty for profile in profiles)
    scaled = mx.where(logits < 0, logits * repeated, logits / repeated)
    logits = mx.where(counts > 0, scaled, logits)
    logits = logits - _column(p.presence_penalty for p in profiles) * (counts > 0)
    return logits - _column(p.frequency_penalty for p in profiles) * counts


def _counts(logits: mx.array, rows: Sequence[Place]) -> mx.array:
    """How often each token is among the recent ones of each row."""
    count, vocabulary = logits.shape
    recent = mx.stack([row.recent for row in rows])
    counts = mx.zeros((count, vocabulary + 1))
    return counts.at[mx.arange(count)[:, None], recent].add(1.0)[:, :vocabulary]


def _drawn(
    logits: mx.array, profiles: Sequence[SamplingProfile], draws: Sequence[Draw]
) -> mx.array:
    """Return scores whose maximum is a draw from each row's distribution: Gumbel noise is added.
    A rounding error in the logits changes the draw only where two scores nearly tie; one from a
    cumulated distribution would shift with every error below it."""
    relative = logits - mx.max(logits, axis=-1, keepdims=True)
    kept = _filtered(relative, profiles, draws)
    return kept / _column(p.temperature for p in profiles) + _noise(logits.shape[-1], draws)


def _noise(vocabulary: int, draws: Sequence[Draw]) -> mx.array:
    keys = mx.array([draw.key for draw in draws], dtype=mx.uint32)
    return mx.vmap(lambda key: mx.random.gumbel((vocabulary,), key=key))(keys)


def _filtered(
    relative: mx.array, profiles: Sequence[SamplingProfile], draws: Sequence[Draw]
) -> mx.array:
    """Return the log-probabilities, which are `relative` to the likeliest token's, with minus
    infinity where no draw may fall. Every filter keeps what is in some range, so all of them
    together are a floor and a ceiling of each row."""
    floor = _column(_log(profile.min_p) for profile in profiles)
    ceiling = mx.full(floor.shape, mx.inf)
    narrows = any(profile.top_p < 1.0 or profile.top_k for profile in profiles)
    ordered = mx.sort(relative, axis=-1) if narrows else relative
    if any(profile.top_p < 1.0 for profile in profiles):
        floor = mx.maximum(floor, _nucleus(ordered, profiles))
    if any(draw.excludes for draw in draws):
        ceiling = _ceiling(mx.where(relative < floor, -mx.inf, relative), profiles, draws)
    if any(profile.top_k for profile in profiles):
        excluded = (relative > ceiling).sum(axis=-1, keepdims=True)
        floor = mx.maximum(floor, _rank(ordered, excluded, profiles))
    return mx.where((relative < floor) | (relative > ceiling), -mx.inf, relative)


def _nucleus(ordered: mx.array, profiles: Sequence[SamplingProfile]) -> mx.array:
    """Return the log-probability of the least likely token that ``top_p`` keeps."""
    share = _column(profile.top_p for profile in profiles)
    probabilities = mx.exp(ordered)
    above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
    total = above[:, :1] + probabilities[:, :1]
    dropped = (above >= share * total).sum(axis=-1, keepdims=True)
    return mx.where(share < 1.0, mx.take_along_axis(ordered, dropped, axis=-1), -mx.inf)


def _ceiling(
    kept: mx.array, profiles: Sequence[SamplingProfile], draws: Sequence[Draw]
) -> mx.array:
    """Return the log-probability of the least likely token over XTC's threshold."""
    over = mx.softmax(kept, axis=-1) > _column(profile.xtc_threshold for profile in profiles)
    least = mx.min(mx.where(over, kept, mx.inf), axis=-1, keepdims=True)
    return mx.where(mx.array([[draw.excludes] for draw in draws]), least, mx.inf)


def _rank(ordered: mx.array, excluded: mx.array, profiles: Sequence[SamplingProfile]) -> mx.array:
    """Return the log-probability of the token that is ``top_k``-th below the excluded ones, of the
    least likely one without a ``top_k``; its equals are kept with it."""
    size = ordered.shape[-1]
    count = mx.array([[profile.top_k or size] for profile in profiles])
    place = mx.maximum(size - excluded - count, 0)
    return mx.take_along_axis(ordered, place, axis=-1)


def _log(share: float) -> float:
    return math.log(share) if share else -math.inf


def _column(values: Iterable[float]) -> mx.array:
    """One number a row, ``(rows, 1)`` float32."""
    return mx.array([[value] for value in values], dtype=mx.float32)
