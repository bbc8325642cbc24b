"""A row of a batch computes what it computes alone: every architecture, whoever joins, leaves, is
parked or cancelled beside it. The reference is mlx-lm's own forward and caches, one prompt alone;
its tokens are forced upon the row and the choice at each position is compared."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache, make_prompt_cache

from punie_model_host import batch as batch_module
from punie_model_host.batch import Batch, RaggedBatch, Row, SoloBatch
from punie_model_host.engine_messages import Key
from punie_model_host.folder import EMBEDDED, check_folder, resolve
from punie_model_host.loading import LoadedModel, build, read_weights
from punie_model_host.ragged import BLOCK, sequence_cache
from punie_model_host.sampling import RowError
from tests.support.exactness import Alone, Forced, Tally, answer_alone, choose_forced
from tests.support.small_models import ALONE, RAGGED, Kind, make_small_model

TOKENS = 24
"""Length of each reference's answer."""
PROMPTS = (1, 2, 3, 9, 17, 40, BLOCK - 12, BLOCK - 1, BLOCK, BLOCK + 1, 300)
"""Lengths of the references' prompts: answers cross the border of a block, or begin beside it."""
DEAR = (1, 2, 9, 40, BLOCK - 12)
"""Those of the embedded model, a hundred times as large as the others."""
DOSE = 8
"""Random courses for each model in ``make test``; ``make test-all`` runs twenty times that."""


class Subject:
    """A loaded model with references of it."""

    def __init__(
        self, model: Any, new_batch: Callable[[], Batch], prompts: list[list[int]]
    ) -> None:
        self.model, self.new_batch, self.prompts = model, new_batch, prompts
        self.answers: dict[int, Alone] = {}

    def answer(self, number: int) -> Alone:
        """Return a reference, computed once."""
        place = number % len(self.prompts)
        if place not in self.answers:
            self.answers[place] = answer_alone(self.model, self.prompts[place], TOKENS)
        return self.answers[place]


def load(folder: Path) -> LoadedModel:
    loaded = build(check_folder(folder))
    read_weights(loaded, lambda _done, _total: None)
    return loaded


def subject(name: str, loaded: LoadedModel, new_batch: Callable[[], Batch]) -> Subject:
    random, size = np.random.default_rng(7), loaded.facts.vocabulary
    lengths = DEAR if name == EMBEDDED else PROMPTS
    return Subject(loaded.model, new_batch, [random.integers(0, size, n).tolist() for n in lengths])


@pytest.fixture(scope="module")
def subject_of(tmp_path_factory) -> Callable[[str], Subject]:
    """Return what makes a subject by its name, once."""

    @cache
    def make(name: str) -> Subject:
        folder = resolve(EMBEDDED, Path())
        if name != EMBEDDED:
            folder = make_small_model(tmp_path_factory.mktemp("m"), Kind(name))
        loaded = load(folder)
        if name in ALONE:
            return subject(name, loaded, lambda: SoloBatch(loaded.model))
        layers = len(make_prompt_cache(loaded.model))
        return subject(name, loaded, lambda: RaggedBatch(loaded.model, layers))

    return make


@pytest.fixture(params=[*RAGGED, EMBEDDED])
def one_ragged(request, subject_of) -> Subject:
    """Each model whose rows can share a forward."""
    return subject_of(request.param)


@pytest.fixture(params=[*RAGGED, *ALONE])
def anyone(request, subject_of) -> Subject:
    """Each small model, in the batch it can be computed in."""
    return subject_of(request.param)


@pytest.fixture
def qwen(subject_of) -> Subject:
    return subject_of(Kind.QWEN3)


@pytest.fixture(autouse=True)
def forcing() -> Iterator[None]:
    """Every row of a batch gets its reference's tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_module, "sample", choose_forced)
        yield


@dataclass(repr=False)
class Course:
    """A batch, the rows beside it, and what each of them did so far."""

    subject: Subject
    tally: Tally = field(default_factory=Tally)
    parked: list[Row] = field(default_factory=list)
    read: dict[Key, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batch = self.subject.new_batch()
        self.rows: dict[Key, Forced] = {}

    def join(self, number: int, chunk: int = 512) -> Key:
        """Compute all of a prompt but its last token, in chunks, or with a chunk of 0 take it from
        the reference as a prefix cache would, and let it join."""
        answer = self.subject.answer(number)
        caches, body = make_prompt_cache(self.subject.model), answer.prompt[:-1]
        if chunk == 0 and isinstance(self.batch, RaggedBatch):
            caches = [_first(cache, len(body)) for cache in answer.caches]
        else:
            for start in range(0, len(body), chunk or 512):
                self.subject.model(mx.array([body[start : start + (chunk or 512)]]), cache=caches)
        key = Key(1, len(self.rows))
        forced = self.rows[key] = Forced(answer, self.tally, what=f"row {key.request_id}")
        token = mx.array(answer.prompt[-1:])
        row = Row(key=key, caches=caches, length=len(body), token=token, sampler=forced)  # ty: ignore[invalid-argument-type]  # stands for it
        self.batch.join(row)
        return key

    def dispatch(self) -> None:
        """One step; rows at the end of their reference leave, and are looked at."""
        if not len(self.batch):
            return
        self.batch.dispatch()
        self.note(self.batch.read(ahead=1))
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
            if type(its) is KVCache:
                for one, other in zip(mine.keys_and_values(), its.keys_and_values(), strict=True):
                    assert mx.allclose(one, other[:, :, : row.length], rtol=1e-3, atol=1e-3)

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


def _first(cache: KVCache, tokens: int) -> KVCache:
    keys, values = cache.keys_and_values()
    return sequence_cache(keys[:, :, :tokens], values[:, :, :tokens])


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["join", "join", "step", "step", "park", "back", "cancel"]),
        st.integers(0, 1000),
    ),
    min_size=5,
    max_size=40,
)
CHUNKS = st.sampled_from([0, 512, 64, 7])


def run(course: Course, moves: list[tuple[str, int]], chunk: int) -> None:
    course.join(len(moves), chunk)
    course.dispatch()
    for move, number in moves:
        match move:
            case "join" if len(course.batch) < 16:
                course.join(number, chunk)
            case "step":
                for _ in range(1 + number % 5):
                    course.dispatch()
            case "park":
                course.park(number)
            case "back" if len(course.batch) < 16:
                course.come_back(number)
            case "cancel":
                course.cancel(number)
    course.finish()


def dosed(examples: int) -> settings:
    """Return settings for so many examples, always the same; for twenty times as many, and others
    each time, in the profile ``thorough``."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    if thorough := settings.get_current_profile_name() == "thorough":
        examples *= 20
    return settings(
        phases=[Phase.explicit, Phase.reuse, Phase.generate, *[Phase.shrink][:thorough]],
        max_examples=examples,
        derandomize=not thorough,
        database=None,
        suppress_health_check=checks,
    )


@dosed(DOSE)
@given(MOVES, CHUNKS)
def test_rows_are_exact_whatever_joins_leaves_and_is_parked(anyone, moves, chunk):
    run(Course(anyone), moves, chunk)


@dosed(DOSE // 4)
@given(MOVES)
def test_rows_of_the_embedded_model_are_exact_too(subject_of, moves):
    run(Course(subject_of(EMBEDDED)), moves, 0)


def test_every_batch_size_from_1_to_16_is_exact(one_ragged):
    course = Course(one_ragged)
    sizes = set()
    for number in range(16):
        course.join(number, chunk=0)
        sizes.add(len(course.batch))
        course.dispatch()
    for number in range(15):
        course.dispatch()
        course.park(number * 5)
        sizes.add(len(course.batch))
    course.finish()
    assert sizes >= set(range(1, 17))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_several_tokens_a_row_in_one_forward_are_exact(one_ragged, count: int):
    """What speculation needs: rows of different lengths, more than one new token each."""
    course = Course(one_ragged)
    keys = [course.join(number) for number in (3, 4, 0, 7)]
    assert isinstance(course.batch, RaggedBatch)
    frame, layers = course.batch._frame, course.batch._layers
    done, lengths = 0, [len(course.rows[key].answer.prompt) - 1 for key in keys]
    while done + count <= 15:
        fed = [course.rows[key].answer.inputs(done, count) for key in keys]
        frame.set([length + done for length in lengths])
        logits = np.array(one_ragged.model(mx.array(fed), cache=layers))
        for row, key in enumerate(keys):
            for at in range(count):
                course.tally.logits(course.rows[key].answer, done + at, logits[row, at])
        done += count
    course.tally.close()


def test_prompts_of_one_token_come_and_go_before_any_step(anyone):
    course = Course(anyone)
    for _ in range(3):
        course.join(0)
    course.park(0)
    course.cancel(0)
    course.finish()


def test_a_row_that_is_not_there_cannot_leave(qwen):
    course = Course(qwen)
    course.join(3)
    with pytest.raises(ValueError, match="not in list"):
        course.batch.leave(Key(9, 9))


def test_a_failed_forward_leaves_a_batch_that_works(qwen):
    course = Course(qwen)
    for number in (1, 2, 3):
        course.join(number)
    course.dispatch()
    course.batch.drop()
    assert (len(course.batch), course.batch.in_flight, course.batch.nbytes) == (0, 0, 0)
    again = Course(Subject(qwen.model, lambda: course.batch, qwen.prompts))
    again.join(4)
    again.join(11)
    again.finish()


class Spiteful(Exception):
    """What a broken sampler raises."""


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_without_the_row_whose_sampling_fails_the_others_go_on(anyone, bad):
    course = Course(anyone)
    keys = [course.join(number) for number in (1, 2, 3)]
    course.dispatch()
    course.dispatch()
    broken = course.rows[keys[bad]]
    broken.failure = Spiteful("no")
    with pytest.raises(RowError) as failed:
        course.dispatch()
    assert failed.value.index == bad
    course.batch.leave(keys[bad])
    course.finish()
