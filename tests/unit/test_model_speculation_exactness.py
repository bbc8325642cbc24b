"""Rows that are shown drafts compute what they compute alone: whatever the drafts are, how many of
them are right, and whoever joins, leaves or is parked beside them. The reference is mlx-lm's own
forward and caches, one prompt alone; its tokens are forced upon the rows."""

import random
from collections.abc import Callable, Iterator
from functools import cache, partial

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_model_host import batch as batch_module
from punie_model_host.batch import RaggedBatch, Row, SoloBatch
from punie_model_host.engine_messages import Key
from punie_model_host.folder import EMBEDDED
from punie_model_host.profile import SamplingProfile
from punie_model_host.sampling import UNSOUND, RowError, RowSampler
from punie_model_host.sampling_plan import SamplingPlan
from tests.support.courses import Course, Subject, dosed, make_subject
from tests.support.exactness import Forced, choose_forced, look_ahead_forced
from tests.support.small_models import ALONE, PACKED, RAGGED, Kind

DOSE = 6
"""Random courses for each model in ``make test``; ``make test-all`` runs twenty times that."""
MOST = 31
"""Tokens of a draft at most."""


@pytest.fixture(scope="module")
def subject_of(tmp_path_factory) -> Callable[[str], Subject]:
    """Return what makes a subject by its name, once."""
    return cache(lambda name: make_subject(name, tmp_path_factory.mktemp("m")))


@pytest.fixture(params=[*RAGGED, *PACKED])
def someone(request, subject_of) -> Subject:
    """Each small model whose rows can be shown drafts."""
    return subject_of(request.param)


@pytest.fixture
def qwen(subject_of) -> Subject:
    return subject_of(Kind.QWEN3)


@pytest.fixture
def forcing() -> Iterator[None]:
    """Every row of a batch gets its reference's tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_module, "sample", choose_forced)
        patch.setattr(batch_module, "look_ahead", look_ahead_forced)
        yield


def drafts_of(seed: int) -> Callable[[Forced], list[int]]:
    """Return what makes up a draft: right for a random number of tokens, none included, and then
    perhaps wrong."""
    rng = random.Random(seed)

    def make(row: Forced) -> list[int]:
        left = row.answer.tokens[row.position :]
        right = left[: rng.choice([0, 0, 1, 2, 5, 9, len(left) - 1])][: len(left) - 1]
        if not rng.randrange(3):
            return right
        spite = (left[len(right)] + rng.randrange(1, 60)) % 90
        rubbish = [rng.randrange(90) for _ in range(rng.choice([0, 1, 3, MOST]))]
        return [*right, spite, *rubbish][:MOST]

    return make


def first_right(row: Forced, number: int) -> list[int]:
    """Return a draft of which a token is right now and then: no row gets far by it."""
    return row.answer.tokens[row.position :][: number % 4 == 0] + [0] * number


MOVES = st.lists(
    st.tuples(
        st.sampled_from(
            ["join", "join", "step", "verify", "verify", "verify", "look", "park", "back", "cancel"]
        ),
        st.integers(0, 1000),
    ),
    min_size=5,
    max_size=30,
)
CHUNKS = st.sampled_from([0, 512, 64, 7])


def run(course: Course, moves: list[tuple[str, int]], chunk: int) -> None:
    course.join(len(moves), chunk)
    for move, number in moves:
        match move:
            case "join" if len(course.batch) < 16:
                course.join(number, chunk)
            case "step":
                for _ in range(1 + number % 3):
                    course.dispatch(ahead=number % 2)
            case "verify":
                course.verify(drafts_of(number))
            case "look":
                course.look(number)
            case "park":
                course.park(number)
            case "back" if len(course.batch) < 16:
                course.come_back(number)
            case "cancel":
                course.cancel(number)
    course.verify(drafts_of(len(moves)))
    course.finish()


@dosed(DOSE)
@given(MOVES, CHUNKS)
def test_rows_are_exact_whatever_they_are_shown(forcing, someone, moves, chunk):
    run(Course(someone), moves, chunk)


@dosed(2)
@given(MOVES)
def test_rows_of_the_embedded_model_are_exact_too(forcing, subject_of, moves):
    run(Course(subject_of(EMBEDDED)), moves, 0)


def test_every_batch_size_from_1_to_16_is_exact(forcing, someone):
    course = Course(someone)
    sizes = set()
    for number in range(16):
        course.join(number, chunk=0)
        sizes.add(len(course.batch))
        course.verify(partial(first_right, number=number))
    for number in range(15):
        course.verify(drafts_of(number))
        course.look(number)
        course.park(number * 5)
        sizes.add(len(course.batch))
    course.finish()
    assert sizes >= set(range(1, 17))


@pytest.mark.parametrize("right", [0, 1, 3, 8])
def test_every_length_of_a_draft_is_exact(forcing, someone, right):
    """From a single token to one that is right to its end, beside a row that has none."""
    course = Course(someone)
    course.join(4, chunk=0)
    course.join(8, chunk=0)
    while len(course.batch) > 1:
        course.verify(
            lambda row: row.answer.tokens[row.position : -1][: right * (row.what == "row 0")]
        )
        course.look(right)
    course.finish()


def test_no_draft_at_all_is_a_step_like_any_other(forcing, someone):
    course = Course(someone)
    for number in (1, 8, 0):
        course.join(number)
    for _ in range(3):
        course.verify(lambda _row: [])
        course.dispatch()
    course.finish()


class Spiteful(Exception):
    """What a broken sampler raises."""


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_without_the_row_whose_sampling_fails_the_others_go_on(forcing, qwen, bad):
    course = Course(qwen)
    keys = [course.join(number) for number in (1, 2, 3)]
    course.verify(drafts_of(1))
    broken = course.rows[keys[bad]]
    broken.failure = Spiteful("no")
    with pytest.raises(RowError) as failed:
        course.verify(drafts_of(2 + bad))
    assert failed.value.index == bad
    course.batch.leave(keys[bad])
    course.verify(drafts_of(3))
    course.finish()


def test_rows_that_are_computed_one_by_one_take_no_drafts(forcing, subject_of):
    course = Course(subject_of(ALONE[0]))
    course.join(2)
    assert isinstance(course.batch, SoloBatch)
    with pytest.raises(ValueError, match="SoloBatch takes no drafts"):
        course.batch.verify({})
    course.finish()


# with rows' own samplers


@pytest.fixture
def poisoned(tmp_path) -> tuple[Subject, int]:
    """A model, with references, that has no numbers for one token, which is in none of them."""
    subject = make_subject(Kind.QWEN3, tmp_path)
    answers = [subject.answer(number) for number in range(len(subject.prompts))]
    used = {token for answer in answers for token in (*answer.prompt, *answer.tokens)}
    token = next(token for token in range(200) if token not in used)
    subject.model.model.embed_tokens.weight[token] = mx.nan
    return subject, token


def join(batch: RaggedBatch, subject: Subject, number: int, penalty: float = 0.0) -> Key:
    answer = subject.answer(number)
    body, caches = answer.prompt[:-1], batch.new_caches()
    subject.model(mx.array([body]), cache=caches)
    key = Key(1, number)
    plan = SamplingPlan(SamplingProfile(presence_penalty=penalty), seed=0)
    sampler = RowSampler(plan, answer.logits.shape[1], answer.prompt)
    token = mx.array(answer.prompt[-1:])
    batch.join(Row(key=key, caches=caches, length=len(body), token=token, sampler=sampler))
    return key


def test_a_wrong_draft_that_has_no_numbers_hurts_nobody(poisoned):
    """Nothing times NaN is NaN: what is taken back may not be there for a longer neighbour's
    forward to see."""
    subject, bad = poisoned
    batch = subject.new_batch()
    assert isinstance(batch, RaggedBatch)
    keys = [join(batch, subject, number) for number in (3, 6, 5)]
    got: dict[Key, list[int]] = {key: [] for key in keys}
    for step in range(4):
        right = subject.answer(3).tokens[len(got[keys[0]]) :][: step % 2]
        taken = batch.verify({keys[0]: [*right, *[bad] * 6], keys[2]: [bad]})
        for key, tokens in taken.items():
            got[key] += tokens
        batch.dispatch()
        for key, token in batch.read():
            got[key].append(token)
    for number, key in zip((3, 6, 5), keys, strict=True):
        assert got[key] == subject.answer(number).tokens[: len(got[key])]


def test_what_fills_up_shorter_drafts_hurts_nobody(tmp_path):
    """Token 0 may be one that a model has no numbers for."""
    subject = make_subject(Kind.QWEN3, tmp_path)
    prompts = [[token or 1 for token in prompt] for prompt in subject.prompts]
    subject = Subject(subject.model, subject.new_batch, prompts)
    expected = [subject.answer(number).tokens for number in (3, 6)]
    assert not any(0 in tokens for tokens in expected)
    subject.model.model.embed_tokens.weight[0] = mx.nan
    batch = subject.new_batch()
    assert isinstance(batch, RaggedBatch)
    short, long = (join(batch, subject, number) for number in (3, 6))
    got = batch.verify({long: expected[1][:9]})
    for _ in range(3):
        batch.dispatch()
        for key, token in batch.read():
            got[key].append(token)
    assert got[short] == expected[0][: len(got[short])]
    assert got[long] == expected[1][: len(got[long])]


def test_a_row_without_numbers_is_said_to_be_so(poisoned):
    """Also where its last tokens matter; its neighbours have theirs."""
    subject, bad = poisoned
    batch = subject.new_batch()
    assert isinstance(batch, RaggedBatch)
    sound, broken = join(batch, subject, 3), join(batch, subject, 5, penalty=1e-6)
    batch._inputs = mx.array([subject.answer(3).prompt[-1], bad], dtype=mx.uint32)
    expected = subject.answer(3).tokens
    assert batch.verify({sound: expected[:2]}) == {sound: expected[:3], broken: [UNSOUND]}
    batch.leave(broken)
    assert batch.verify({sound: expected[3:5]}) == {sound: expected[3:6]}
