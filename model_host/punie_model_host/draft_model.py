"""The draft model: a small model with the tokenizer of the large one, asked what that will say.

A row's own sampler draws from the draft's logits, with the noise, penalties and biases that the
large model's tokens are drawn with: a draft that is as sure of a token as the large model proposes
the same one, whatever the temperature.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

import mlx.core as mx
import numpy as np

from punie_model_host.draft_rows import ROWS, DraftRows, Wish
from punie_model_host.engine_messages import Key
from punie_model_host.loading import LoadedModel
from punie_model_host.log import event
from punie_model_host.memory import KVBudget
from punie_model_host.pace import Pace
from punie_model_host.sampling import UNSOUND, Place, RowError, Sampled, look_ahead

_FIRST_CHUNK: Final = 128
"""Tokens of the first prompt's chunk; how long it takes says how many the next have."""

_log = logging.getLogger(__name__)


class DraftModel:
    """Proposes tokens of rows with `loaded`, for a model of `vocabulary` tokens that ends its
    answers with one of `stop_ids`. For the engine's thread; `propose` waits for what it computes.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        vocabulary: int,
        stop_ids: frozenset[int] = frozenset(),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = loaded.info.name
        self.model = loaded.model
        self.weight_bytes = loaded.nbytes
        self.error = ""
        """Why it proposes nothing any more; empty while it does."""
        self.catching_up = 0.0
        """Seconds of the last `propose` that went into tokens of before, not into drafts."""
        self._vocabulary = vocabulary
        self._stop_ids = stop_ids
        self._clock = clock
        self._rows = DraftRows(loaded)
        self._pace = Pace(_FIRST_CHUNK)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self._rows.nbytes

    def share(self, budget: KVBudget) -> KVBudget:
        """Take the part of `budget` that its own keys and values may need from now on, and return
        the rest."""
        return self._rows.share(budget)

    def propose(self, wishes: Sequence[Wish]) -> dict[Key, list[int]]:
        """Return at most `count` tokens for each wish. What is held is cut to what its tokens
        share with it, and what they have more is computed, so many of them in one call as a step
        may have of prompts; until that is done the row gets none. None either for wishes after
        the first `ROWS`, and for rows beyond this model's context or memory.

        When the model fails nothing is held any more, the log says so, and from then on nothing
        is proposed.
        """
        drafts: dict[Key, list[int]] = {wish.key: [] for wish in wishes}
        self.catching_up = 0.0
        if self.error:
            return drafts
        try:
            ready = self._catch_up([w for w in wishes[:ROWS] if w.count > 0 and w.tokens.size])
            drafts.update(self._draft(ready) if ready else {})
        except RowError:  # the engine meets it too, and ends that request
            self._rows.drop()
        except Exception as error:  # noqa: BLE001  a draft is never needed
            self._fail(error)
        return drafts

    def forget(self, key: Key) -> None:
        """A request is over, known or not; another that begins alike may go on from it."""
        try:
            self._rows.release(key)
        except Exception as error:  # noqa: BLE001  a draft is never needed
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.error = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        event(_log, logging.ERROR, "draft-model-failed", model=self.name, error=self.error)
        self._rows.drop()

    def _catch_up(self, wishes: Sequence[Wish]) -> list[Wish]:
        """Compute what their rows lack, a bounded part of it; return those that can have drafts."""
        started, most, computed = self._clock(), self._pace.tokens, 0
        wished = {wish.key for wish in wishes}
        for wish in wishes:
            if self._rows.hold(wish, wished):
                computed += self._rows.catch_up(wish, most - computed)
        if computed:
            self.catching_up = self._clock() - started
            self._pace.step(self.catching_up, rows=0, prefilled=computed)
        return [wish for wish in wishes if self._rows.is_ready(wish.key)]

    def _draft(self, wishes: Sequence[Wish]) -> dict[Key, list[int]]:
        steps = self._sample(wishes, max(wish.count for wish in wishes))
        read = [step.read() for step in steps]
        drafts: dict[Key, list[int]] = {}
        for n, wish in enumerate(wishes):
            line = [step[n] for step in read]
            if UNSOUND in line:
                self._rows.discard(wish.key)
                line = line[: line.index(UNSOUND)]
            else:
                held = np.array(line[:-1], dtype=np.uint32)
                self._rows.went_on(wish.key, np.concatenate([wish.tokens, held]))
            drafts[wish.key] = self._ended(line[: wish.count])
        return drafts

    def _sample(self, wishes: Sequence[Wish], count: int) -> list[Sampled]:
        """Begin to draw `count` tokens of each row, one after the other."""
        penalizes = any(wish.row.plan.penalizes for wish in wishes)
        places = [Place(wish.row) for wish in wishes]
        logits, steps = self._rows.first(wishes), list[Sampled]()
        while True:
            steps.append(look_ahead(_fitted(logits, self._vocabulary), places))
            mx.async_eval(*steps[-1])
            if len(steps) == count:
                return steps
            # Without penalties it matters only how many tokens came before: wait for none.
            chosen = steps[-1].read() if penalizes else [0] * len(places)
            places = [
                Place(place.row, (*place.drafts, max(0, token)))
                for place, token in zip(places, chosen, strict=True)
            ]
            logits = self._rows.next(wishes, steps[-1].tokens)

    def _ended(self, line: list[int]) -> list[int]:
        """Return tokens up to the first that ends an answer."""
        ends = [n for n, token in enumerate(line) if token in self._stop_ids]
        return line[: ends[0] + 1] if ends else line


def _fitted(logits: mx.array, vocabulary: int) -> mx.array:
    """Return logits for so many tokens: vocabularies of one family are padded to several sizes."""
    lacking = vocabulary - logits.shape[-1]
    if lacking > 0:
        return mx.pad(logits, [(0, 0), (0, lacking)], constant_values=-mx.inf)
    return logits[:, :vocabulary]
