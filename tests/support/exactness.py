"""What exact means, in one place: a model's greedy answer alone, and the comparison of another
way to compute it, position by position with the reference forced."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache

from punie_model_host.profile import KVQuantization
from punie_model_host.sampling import RowError, Sampled

NEAR_TIE: Final = 1e-4
"""Two best logits this close may change places with the order of additions."""
PACKED_TIE: Final = 0.02
"""With packed keys and values: rounding decides now and then between two of so few steps."""
_CHUNK: Final = 512


@dataclass(frozen=True, slots=True, repr=False)
class Alone:
    """One prompt's greedy answer with mlx-lm's own caches and nobody beside it: `tokens`, the
    `logits` (one row a token, float32) that each was chosen from, and the `caches` after it all,
    which hold every token but the last."""

    prompt: list[int]
    tokens: list[int]
    logits: np.ndarray
    caches: list[Any]

    def inputs(self, position: int, count: int) -> list[int]:
        """Return the `count` inputs that give the tokens from `position` on."""
        start = len(self.prompt) - 1 + position
        return [*self.prompt, *self.tokens][start : start + count]


def caches_alone(model: Any, packing: KVQuantization | None) -> list[Any]:
    """Return mlx-lm's own caches."""
    caches = make_prompt_cache(model)
    if packing is None:
        return caches
    return [QuantizedKVCache(packing.group_size, packing.bits) for _ in caches]


def answer_alone(
    model: Any, prompt: Sequence[int], tokens: int, packing: KVQuantization | None = None
) -> Alone:
    """Return `model`'s greedy answer of so many `tokens`, computed alone."""
    cache = caches_alone(model, packing)
    for start in range(0, len(prompt) - 1, _CHUNK):
        model(mx.array([prompt[start : min(start + _CHUNK, len(prompt) - 1)]]), cache=cache)
        mx.eval([layer.state for layer in cache])
    answer, logits, last = [], [], prompt[-1]
    for _ in range(tokens):
        row = model(mx.array([[last]]), cache=cache)[0, -1].astype(mx.float32)
        logits.append(np.array(row))
        last = int(logits[-1].argmax())
        answer.append(last)
    return Alone(list(prompt), answer, np.array(logits), cache)


@dataclass(slots=True)
class Tally:
    """Positions compared, and those where a near-tie, of logits less than `near` apart, went the
    other way."""

    near: float = NEAR_TIE
    positions: int = 0
    ties: list[str] = field(default_factory=list)
    furthest: float = 0.0

    def token(self, alone: Alone, position: int, token: int, what: str = "") -> None:
        """Compare the `token` that was chosen at `position`, `alone`'s tokens before it."""
        self.positions += 1
        if token == alone.tokens[position]:
            return
        margin = float(alone.logits[position].max() - alone.logits[position][token])
        line = (
            f"{what}: prompt of {len(alone.prompt)}, token {position}: {token} in place of "
            f"{alone.tokens[position]}, {margin:.6f} below it"
        )
        assert margin <= self.near, line
        self.ties.append(line)

    def logits(self, alone: Alone, position: int, row: np.ndarray, what: str = "") -> None:
        """Compare one `row` of logits, (vocabulary,), in the same way."""
        away = float(np.abs(row - alone.logits[position]).max())
        self.furthest = max(self.furthest, away)
        self.token(alone, position, int(row.argmax()), f"{what} (logits {away:.2e} away)")

    def close(self, share: float = 0.01) -> None:
        """Fail when near-ties are more than so large a share of the positions, or nothing was
        compared."""
        for line in self.ties:
            print("near-tie", line)
        assert self.positions, "nothing was compared"
        assert len(self.ties) <= max(1, share * self.positions), self.ties


@dataclass(slots=True, repr=False)
class Forced:
    """Stands for a row's sampler: chooses what `answer` says, and compares what the row would have
    chosen. With `failure` it raises that."""

    answer: Alone
    tally: Tally
    position: int = 0
    what: str = ""
    failure: Exception | None = None

    @property
    def is_done(self) -> bool:
        """Whether the reference has no more tokens."""
        return self.position == len(self.answer.tokens)

    def take(self, tokens: Sequence[int]) -> None:
        """Take several tokens, which are the reference's, as a sampler does."""
        assert list(tokens) == self.answer.tokens[self.position : self.position + len(tokens)]
        self.position += len(tokens)

    @property
    def fed(self) -> list[int]:
        """The tokens so far, the next input among them."""
        return self.answer.prompt + self.answer.tokens[: self.position]


def choose_forced(logits: mx.array, rows: Sequence[Forced]) -> Sampled:
    """Return each row's forced token; in the place of `sampling.sample`."""
    for index, row in enumerate(rows):
        if row.failure is not None:
            raise RowError(index, row.failure)
    chosen = []
    for logit, row in zip(np.array(logits.astype(mx.float32)), rows, strict=True):
        what = f"{row.what} of {len(rows)}"
        row.tally.logits(row.answer, row.position, logit, what)
        chosen.append(row.answer.tokens[row.position])
        row.position += 1
    return Sampled(mx.array(chosen, dtype=mx.uint32), mx.isfinite(logits.max(axis=-1)))


class ForcedPlace(NamedTuple):
    """Stands for a position of a row, its next if `drafts` are its next tokens."""

    row: Forced
    drafts: tuple[int, ...] = ()


def look_ahead_forced(logits: mx.array, places: Sequence[ForcedPlace]) -> Sampled:
    """Return the forced token of each place that only right tokens come before, and compare what
    would be chosen there; in the place of `sampling.look_ahead`. What is said behind a wrong draft
    does not matter: it is what a row would choose."""
    for index, place in enumerate(places):
        if place.row.failure is not None:
            raise RowError(index, place.row.failure)
    chosen = []
    for logit, (row, drafts) in zip(np.array(logits.astype(mx.float32)), places, strict=True):
        position = row.position + len(drafts)
        if row.answer.tokens[row.position : position] == [*drafts]:
            row.tally.logits(row.answer, position, logit, f"{row.what} after {len(drafts)} drafts")
            chosen.append(row.answer.tokens[position])
        else:
            chosen.append(int(logit.argmax()))
    return Sampled(mx.array(chosen, dtype=mx.uint32), mx.isfinite(logits.max(axis=-1)))
