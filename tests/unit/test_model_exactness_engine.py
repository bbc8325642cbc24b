"""Through the whole engine, scheduler and caches too: every request gets the answer that it gets
alone, whatever is submitted, cancelled and goes wrong beside it."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_model_host.batch import Flight
from punie_model_host.engine_messages import Key
from punie_protocol import errors
from punie_protocol.engine import EngineSettings
from punie_protocol.messages.common import Priority
from punie_protocol.messages.to_model_client import Failed, Finished
from punie_protocol.messages.to_model_host import Sampling
from tests.support.courses import dosed
from tests.support.engine_bench import EngineBench, Oracle, turn
from tests.support.small_models import ALONE, PACKED, RAGGED, Kind, make_by_name

SYSTEM = "Rules for everyone: be brief, be right, and say so when you are not. " * 2
"""What many conversations begin with."""
LIMITS = EngineSettings(memory_mb=64, max_batch=4, step_tokens=32, disk_mb=0)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory) -> Callable[[str], Path]:
    return cache(lambda name: make_by_name(tmp_path_factory.mktemp("models") / name, name))


@pytest.fixture(scope="module")
def oracle_of(folder_of) -> Callable[[str], Oracle]:
    return cache(lambda name: Oracle(folder_of(name)))


@pytest.fixture(params=[*RAGGED, *PACKED[:2], *ALONE])
def kind(request) -> str:
    return request.param


GREEDY = st.builds(Sampling, temperature=st.just(0.0), max_tokens=st.integers(1, 40))
SAMPLED = st.builds(
    lambda heat, **wishes: Sampling(temperature=heat[0], top_k=heat[1], **wishes),
    st.sampled_from([(0.3, 0), (0.3, 5), (1.0, 5), (1.0, 20)]),  # never an unlikely token
    top_p=st.sampled_from([1.0, 0.9]),
    seed=st.integers(0, 1000),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    max_tokens=st.integers(1, 40),
)
TEXTS = st.builds(
    lambda shared, end, times: SYSTEM[:shared] + end * times,
    st.sampled_from([0, 30, len(SYSTEM)]),
    st.text("abc xyz", min_size=1, max_size=10),
    st.sampled_from([1, 1, 3, 30]),
)
SUBMIT = st.tuples(st.just("submit"), st.integers(1, 3), TEXTS, GREEDY | SAMPLED)
STEP = st.tuples(st.just("step"), st.integers(1, 12))
CANCEL = st.tuples(st.just("cancel"), st.integers(0, 1000))
SQUEEZE = st.tuples(st.just("squeeze"), st.sampled_from([0, 20_000, 100_000]))
MORE = st.tuples(st.just("more"), st.integers(0, 1000), GREEDY)
COURSES = st.lists(
    SUBMIT | SUBMIT | STEP | STEP | STEP | CANCEL | MORE | SQUEEZE, min_size=8, max_size=30
)


def run(bench: EngineBench, course: list[tuple]) -> None:
    keys = [bench.submit(turn("first"), Sampling(temperature=0.0, max_tokens=9))]
    for move in course:
        match move:
            case "submit", client, text, sampling:
                keys.append(bench.submit(turn(text), sampling, client=client))
            case "step", number:
                for _ in range(number):
                    if bench.engine.has_work:
                        bench.step()
            case "cancel", number if len(keys) > 1:  # the first is left: there is one to compare
                bench.cancel(keys[1 + number % (len(keys) - 1)])
            case "squeeze", budget:
                bench.squeeze(budget)
            case "more", number, sampling:
                before = keys[number % len(keys)]
                if isinstance(bench.end(before), Finished):
                    keys.append(follow_up(bench, before, sampling))
    bench.run()


@dosed(1)
@given(COURSES, st.integers(0, 1))
def test_every_answer_is_what_it_is_alone(kind, folder_of, oracle_of, course, ahead):
    bench = EngineBench(folder_of(kind), LIMITS, ahead=ahead)
    run(bench, course)
    compared, ties = bench.check(oracle_of(kind))
    assert compared
    assert ties <= max(1, compared // 100)


@pytest.mark.parametrize(("size", "ahead"), [(3, 1), (16, 0)])
def test_crowded_batches_are_exact(kind, folder_of, oracle_of, size, ahead):
    """Clients with unlike demands: rows are parked and come back, requests wait for a place."""
    limits = EngineSettings(memory_mb=64, max_batch=size, step_tokens=64, disk_mb=0)
    bench = EngineBench(folder_of(kind), limits, ahead=ahead)
    for number in range(9):
        length = 70 if number < 4 else 16
        sampling = Sampling(temperature=0.0, max_tokens=length)
        priority = Priority.BACKGROUND if number == 5 else Priority.INTERACTIVE
        client = 1 if number < 5 else number
        bench.submit(turn("x" * (number * 13)), sampling, client=client, priority=priority)
    bench.run()
    compared, ties = bench.check(oracle_of(kind))
    assert compared == 4 * 70 + 5 * 16
    assert ties <= 1


def follow_up(bench: EngineBench, key: Key, sampling: Sampling) -> Key:
    """Go on with the conversation of `key`, which is finished."""
    said = [message.text for message in bench.requests[key].messages]
    return bench.submit(turn(*said, bench.text(key), "and then?"), sampling, client=key.link)


def test_what_the_prefix_cache_had_changes_no_answer(kind, folder_of, oracle_of):
    """A repeated prompt, a longer one, one that shares its beginning, the turn after an answer."""
    bench = EngineBench(folder_of(kind), LIMITS)
    sampling = Sampling(temperature=0.0, max_tokens=20)
    first = bench.submit(turn(SYSTEM), sampling)
    bench.run()
    others = [
        bench.submit(turn(SYSTEM), sampling),
        bench.submit(turn(SYSTEM + "More."), sampling),
        bench.submit(turn(SYSTEM[:70]), sampling),
        follow_up(bench, first, sampling),
    ]
    bench.run()
    bench.check(oracle_of(kind))
    ends = [bench.end(key) for key in others]
    cached = [end.usage.cached_tokens for end in ends if isinstance(end, Finished)]
    prompt = len(oracle_of(kind).expect(bench.requests[first]).prepared.tokens)
    assert cached[0] == prompt - 1
    assert cached[3] >= prompt - 1
    if kind not in ALONE:
        assert cached[1] > len(SYSTEM)
        assert cached[2] >= 70


@pytest.mark.parametrize("name", [Kind.QWEN3, *PACKED[:2]])
def test_a_warm_restart_changes_no_answer(folder_of, oracle_of, tmp_path, name):
    limits = EngineSettings(memory_mb=64, max_batch=4, step_tokens=32)
    sampling = Sampling(temperature=0.0, max_tokens=20)
    bench = EngineBench(folder_of(name), limits, cache_dir=tmp_path)
    first = bench.submit(turn(SYSTEM), sampling)
    bench.run()
    bench.engine.close(bench.now + 10)
    again = EngineBench(folder_of(name), limits, cache_dir=tmp_path)
    for text in (SYSTEM, SYSTEM + "More."):
        again.submit(turn(text), sampling)
    again.submit(turn(SYSTEM, bench.text(first), "and then?"), sampling)
    again.run()
    again.check(oracle_of(name))
    for key in again.requests:
        end = again.end(key)
        assert isinstance(end, Finished)
        assert end.usage.cached_tokens >= len(SYSTEM)


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_cancel_in_any_step_hurts_no_neighbour(folder_of, oracle_of, ahead):
    bench = EngineBench(folder_of(Kind.QWEN3), LIMITS, ahead=ahead)
    sampling = Sampling(temperature=0.0, max_tokens=8)
    for step in range(1 + ahead, 15, 2):
        bench.squeeze(0)
        keys = [bench.submit(turn("y" * size), sampling) for size in (3, 120, 40)]
        for _ in range(step):
            if bench.engine.has_work:
                bench.step()
        bench.cancel(keys[step % 3])
        bench.run()
    ends = [bench.end(key) for key in bench.requests]
    assert {type(end) for end in ends} == {Finished, Failed}
    bench.check(oracle_of(Kind.QWEN3))


# faults


class Faulty:
    """Mixed into a model's class: `fails` says whether a forward of these inputs raises."""

    fails: Callable[[mx.array], bool] = staticmethod(lambda _: False)

    def __call__(self, inputs, cache=None, **more):
        if type(self).fails(inputs):
            raise MemoryError("no room")
        return super().__call__(inputs, cache=cache, **more)  # ty: ignore[missing-attribute]  # a mixin


def make_faulty(model: Any) -> type[Faulty]:
    """Let `model` fail when its class, returned, says so."""
    model.__class__ = type("FaultyModel", (Faulty, type(model)), {})
    return model.__class__


@pytest.fixture(params=[Kind.QWEN3, PACKED[0], Kind.LFM2])
def either(request) -> str:
    """A model in each kind of batch."""
    return request.param


@pytest.mark.parametrize(("when", "ahead"), [*((n, 1) for n in range(1, 13)), (1, 0), (7, 0)])
def test_a_forward_that_fails_once_loses_no_token(either, folder_of, oracle_of, when, ahead):
    """Also of who was to be parked then, or had only its last token to come."""
    bench = EngineBench(folder_of(either), LIMITS, ahead=ahead)
    for tokens in (8, 9, 11, 12):
        bench.submit(turn("z" * tokens), Sampling(temperature=0.0, max_tokens=tokens))
    faulty, forwards = make_faulty(bench.model), 0

    def fails(inputs: mx.array) -> bool:
        nonlocal forwards
        assert bench.engine._serving is not None
        decodes = not (bench.engine._serving.scheduler.prefilling or inputs.shape[1] > 1)
        forwards += decodes
        return decodes and forwards == when

    faulty.fails = staticmethod(fails)
    bench.run()
    assert forwards > when
    assert all(isinstance(bench.end(key), Finished) for key in bench.requests)
    bench.check(oracle_of(either))


@pytest.mark.parametrize("when", [1, 2, 8, 9, 11])
def test_tokens_that_never_arrive_are_computed_again(either, folder_of, oracle_of, when):
    bench = EngineBench(folder_of(either), LIMITS)
    for tokens in (8, 9, 11, 12):
        bench.submit(turn("z" * tokens), Sampling(temperature=0.0, max_tokens=tokens))
    reads, read = 0, Flight.read

    def failing(flight: Flight) -> list[tuple[Key, int]]:
        nonlocal reads
        reads += 1
        if reads == when:
            raise RuntimeError("the device has gone away")
        return read(flight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flight, "read", failing)
        bench.run()
    assert reads > when
    assert all(isinstance(bench.end(key), Finished) for key in bench.requests)
    bench.check(oracle_of(either))


def test_a_row_that_cannot_be_computed_ends_alone(either, folder_of, oracle_of):
    bench, oracle = EngineBench(folder_of(either), LIMITS), oracle_of(either)
    sampling = Sampling(temperature=0.0, max_tokens=24)
    keys = [bench.submit(turn(text), sampling) for text in ("alpha", "beta", "gamma")]
    bad, *others = (oracle.expect(bench.requests[key]) for key in keys)
    elsewhere = {token for other in others for token in (*other.prepared.tokens, *other.tokens)}
    places = [n for n, t in enumerate(bad.tokens[:-1]) if t not in {*elsewhere, *bad.tokens[:n]}]
    place = places[-1]
    poison = bad.tokens[place]
    assert place
    faulty = make_faulty(bench.model)
    faulty.fails = staticmethod(lambda inputs: bool((inputs == poison).any().item()))
    bench.run()
    end = bench.end(keys[0])
    assert isinstance(end, Failed)
    assert isinstance(end.error, errors.ModelFault)
    assert "no room" in end.error.message
    assert bad.text.startswith(bench.text(keys[0]))
    for key, other in zip(keys[1:], others, strict=True):
        assert isinstance(bench.end(key), Finished)
        assert bench.text(key) == other.text


@pytest.mark.parametrize("untied", [Kind.QWEN3, PACKED[0], Kind.MAMBA2])
def test_a_row_without_numbers_ends_alone_and_leaves_nothing_behind(untied, folder_of, oracle_of):
    bench, oracle = EngineBench(folder_of(untied), LIMITS), oracle_of(untied)
    poison = oracle.loaded.tokenizer.encode("~", add_special_tokens=False)[0]
    embedding = next(m for n, m in bench.model.named_modules() if "embed" in n and "weight" in m)
    embedding.weight[poison] = mx.nan
    sampling = Sampling(temperature=0.0, max_tokens=12)
    broken: list[Key] = []
    whole: list[Key] = []
    for number in range(8):
        text = f"number {number} " * (8 - number)
        broken.append(bench.submit(turn("~" + text), sampling, client=number))
        whole.append(bench.submit(turn(text), sampling, client=100 + number))
    bench.run()
    for key in broken:
        end = bench.end(key)
        assert isinstance(end, Failed)
        assert isinstance(end.error, errors.ModelFault)
        assert not bench.text(key)
    for key in whole:
        answer = oracle.expect(bench.requests[key])
        if "~" not in answer.text:
            assert isinstance(bench.end(key), Finished)
            assert bench.text(key) == answer.text
