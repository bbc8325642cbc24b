"""A row of a batch computes what it computes alone: every architecture, whoever joins, leaves, is
parked or cancelled beside it. The reference is mlx-lm's own forward and caches, one prompt alone;
its tokens are forced upon the row and the choice at each position is compared."""

from collections.abc import Callable, Iterator
from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_model_host import batch as batch_module
from punie_model_host.batch import RaggedBatch
from punie_model_host.engine_messages import Key
from punie_model_host.folder import EMBEDDED
from punie_model_host.sampling import RowError
from tests.support.courses import Course, Subject, dosed, make_subject
from tests.support.exactness import choose_forced
from tests.support.small_models import ALONE, PACKED, RAGGED, Kind

DOSE = 4
"""Random courses for each model in ``make test``; ``make test-all`` runs forty times that."""


@pytest.fixture(scope="module")
def subject_of(tmp_path_factory) -> Callable[[str], Subject]:
    """Return what makes a subject by its name, once."""

    return cache(lambda name: make_subject(name, tmp_path_factory.mktemp("m")))


@pytest.fixture(params=[*RAGGED, *PACKED, EMBEDDED])
def one_ragged(request, subject_of) -> Subject:
    """Each model whose rows can share a forward."""
    return subject_of(request.param)


@pytest.fixture(params=[*RAGGED, *PACKED, *ALONE])
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


@dosed(DOSE)
@given(MOVES, CHUNKS)
def test_rows_are_exact_whatever_joins_leaves_and_is_parked(anyone, moves, chunk):
    run(Course(anyone), moves, chunk)


@dosed(DOSE // 2)
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
