"""A batch on its way: rows join, are parked and come back, and each of them is compared with its
reference, mlx-lm's own forward and caches, one prompt alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache

from punie_model_host.batch import Batch, RaggedBatch, Row, SoloBatch
from punie_model_host.engine_messages import Key
from punie_model_host.folder import EMBEDDED, check_folder, resolve
from punie_model_host.loading import LoadedModel, build, read_weights
from punie_model_host.profile import KVQuantization
from punie_model_host.ragged import BLOCK
from punie_model_host.sequences import span_of
from tests.support.exactness import NEAR_TIE, PACKED_TIE, Alone, Forced, Tally, answer_alone
from tests.support.small_models import ALONE, make_by_name

TOKENS = 24
"""Length of each reference's answer."""
PROMPTS = (1, 2, 3, 9, 17, 40, BLOCK - 12, BLOCK - 1, BLOCK, BLOCK + 1, 300)
"""Lengths of the references' prompts: answers cross the border of a block, or begin beside it."""
DEAR = (1, 2, 9, 40, BLOCK - 12)
"""Those of the embedded model, a hundred times as large as the others."""


class Subject:
    """A loaded model with references of it."""

    def __init__(
        self,
        model: Any,
        new_batch: Callable[[], Batch],
        prompts: list[list[int]],
        packing: KVQuantization | None = None,
    ) -> None:
        self.model, self.new_batch, self.prompts = model, new_batch, prompts
        self.packing = packing
        self.answers: dict[int, Alone] = {}

    def answer(self, number: int) -> Alone:
        """Return a reference, computed once."""
        place = number % len(self.prompts)
        if place not in self.answers:
            self.answers[place] = answer_alone(
                self.model, self.prompts[place], TOKENS, self.packing
            )
        return self.answers[place]


def load(folder: Path) -> LoadedModel:
    loaded = build(check_folder(folder))
    read_weights(loaded, lambda _done, _total: None)
    return loaded


def subject(name: str, loaded: LoadedModel, new_batch: Callable[[], Batch]) -> Subject:
    random, size = np.random.default_rng(7), loaded.facts.vocabulary
    lengths = DEAR if name == EMBEDDED else PROMPTS
    prompts = [random.integers(0, size, n).tolist() for n in lengths]
    return Subject(loaded.model, new_batch, prompts, loaded.profile.kv_quantization)


def make_subject(name: str, folder: Path) -> Subject:
    """Return a model with references, made in `folder` unless it is the embedded one."""
    loaded = load(resolve(EMBEDDED, Path()) if name == EMBEDDED else make_by_name(folder, name))
    if name in ALONE:
        return subject(name, loaded, lambda: SoloBatch(loaded.model))
    layers = len(make_prompt_cache(loaded.model))
    packing = loaded.profile.kv_quantization
    return subject(name, loaded, lambda: RaggedBatch(loaded.model, layers, packing))


@dataclass(repr=False)
class Course:
    """A batch, the rows beside it, and what each of them did so far."""

    subject: Subject
    tally: Tally = field(init=False)
    parked: list[Row] = field(default_factory=list)
    read: dict[Key, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tally = Tally(PACKED_TIE if self.subject.packing else NEAR_TIE)
        self.batch = self.subject.new_batch()
        self.rows: dict[Key, Forced] = {}

    def join(self, number: int, chunk: int = 512) -> Key:
        """Compute all of a prompt but its last token, in chunks, or with a chunk of 0 take it from
        the reference as a prefix cache would, and let it join."""
        answer = self.subject.answer(number)
        caches, body = self.batch.new_caches(), answer.prompt[:-1]
        if chunk == 0 and isinstance(self.batch, RaggedBatch):
            layers = [span_of(cache, 0, len(body)) for cache in answer.caches]
            caches = self.batch.caches_of(layers)
        else:
            for start in range(0, len(body), chunk or 512):
                self.subject.model(mx.array([body[start : start + (chunk or 512)]]), cache=caches)
        key = Key(1, len(self.rows))
        forced = self.rows[key] = Forced(answer, self.tally, what=f"row {key.request_id}")
        token = mx.array(answer.prompt[-1:])
        row = Row(key=key, caches=caches, length=len(body), token=token, sampler=forced)  # ty: ignore[invalid-argument-type]  # stands for it
        self.batch.join(row)
        return key

    def dispatch(self, ahead: int = 1) -> None:
        """One step; rows at the end of their reference leave, and are looked at."""
        if not len(self.batch):
            return
        self.batch.dispatch()
        self.note(self.batch.read(ahead=ahead))
        self.let_go()

    def verify(self, drafts: Callable[[Forced], list[int]]) -> None:
        """One step in which rows are shown what `drafts` says of each; as many tokens of it are
        taken as are the reference's, and one more."""
        self.note(self.batch.read())
        places = {key: self.rows[key].position for key in self.batch.keys}
        shown = {key: drafts(self.rows[key]) for key in self.batch.keys}
        if not shown:
            return
        taken = self.batch.verify(shown)
        assert taken.keys() == shown.keys()
        for key, draft in shown.items():
            expected = self.rows[key].answer.tokens[places[key] :]
            right = agreed(draft, expected)
            assert taken[key] == expected[: right + 1]
            self.note([(key, token) for token in taken[key]])
        self.let_go()

    def look(self, number: int) -> None:
        """Take a row out, see that it is what its sequence is alone, and let it join again."""
        if len(self.batch):
            row = self.batch.leave(self.batch.keys[number % len(self.batch)])
            self.check(row)
            self.batch.join(row)

    def let_go(self) -> None:
        """Rows at the end of their reference leave, and are looked at."""
        for key in [key for key in self.batch.keys if self.rows[key].is_done]:
            self.check(self.batch.leave(key))

    def note(self, tokens: list[tuple[Key, int]]) -> None:
        for key, token in tokens:
            self.read.setdefault(key, []).append(token)

    def park(self, number: int) -> None:
        """Take a row out; every second time with copies of its own, not slices of the batch's."""
        if len(self.batch):
            row = self.batch.leave(self.batch.keys[number % len(self.batch)])
            if number % 2:
                row.detach()
            self.parked.append(row)

    def come_back(self, number: int) -> None:
        if self.parked:
            self.batch.join(self.parked.pop(number % len(self.parked)))

    def cancel(self, number: int) -> None:
        if len(self.batch):
            self.check(self.batch.leave(self.batch.keys[number % len(self.batch)]))

    def check(self, row: Row) -> None:
        """A row that was taken out is what its sequence is alone."""
        forced = self.rows[row.key]
        fed = forced.fed
        assert row.length == len(fed) - 1
        assert memoryview(row.token.astype(mx.uint32)).tolist() == fed[-1:]
        if not row.length:
            return
        for mine, its in zip(row.caches, forced.answer.caches, strict=True):
            if isinstance(its, KVCache | QuantizedKVCache):
                check_alike(mine, its, row.length)

    def finish(self) -> None:
        """Let every row come to its end."""
        while len(self.batch) or self.parked:
            while self.parked and len(self.batch) < 16:
                self.come_back(0)
            self.dispatch()
        self.note(self.batch.read())
        for key, forced in self.rows.items():
            assert self.read.get(key, []) == forced.answer.tokens[: forced.position]
        assert self.batch.nbytes == 0
        if self.rows:
            self.tally.close()


def agreed(draft: list[int], tokens: list[int]) -> int:
    """Return how many tokens both begin with."""
    count = 0
    while count < min(len(draft), len(tokens)) and draft[count] == tokens[count]:
        count += 1
    return count


def check_alike(mine: Any, its: KVCache | QuantizedKVCache, tokens: int) -> None:
    """Both caches hold the same; packed numbers are nearly all the same bits."""
    for one, other in zip(span_of(mine, 0, tokens), span_of(its, 0, tokens), strict=True):
        if one.dtype == mx.uint32:
            assert (one == other).mean() >= 0.99
        else:
            assert mx.allclose(one, other, rtol=1e-3, atol=1e-3)


def dosed(examples: int) -> settings:
    """Return settings for so many examples, always the same; for forty times as many, and others
    each time, in the profile ``thorough``."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    if thorough := settings.get_current_profile_name() == "thorough":
        examples *= 40
    return settings(
        phases=[Phase.explicit, Phase.reuse, Phase.generate, *[Phase.shrink][:thorough]],
        max_examples=examples,
        derandomize=not thorough,
        database=None,
        suppress_health_check=checks,
    )
