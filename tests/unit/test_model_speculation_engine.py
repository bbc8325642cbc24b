"""Through the whole engine: drafts change no answer, greedy or sampled, whatever the drafts say and
however a request ends in the middle of one."""

import random
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import mlx.core as mx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_model_host.batch import RaggedBatch
from punie_model_host.engine_messages import Key, Submit
from punie_model_host.request import Request
from punie_model_host.sampling import Draw
from punie_protocol import errors
from punie_protocol.engine import EngineSettings, Speculation
from punie_protocol.messages.common import Priority
from punie_protocol.messages.to_model_client import (
    Failed,
    Finished,
    StepTimings,
    StopReason,
    TextDelta,
    ToModelClient,
    ToolCall,
)
from punie_protocol.messages.to_model_host import Generate, Sampling, ToolSchema
from tests.support.courses import dosed
from tests.support.drafting import Counted, Daring, MakeDraft, serving_of
from tests.support.engine_bench import EngineBench, Oracle, turn
from tests.support.small_models import ALONE, PACKED, RAGGED, Kind, make_by_name
from tests.support.tiny_model import make_tiny_model

MANY = EngineSettings(memory_mb=64, max_batch=16, step_tokens=64, disk_mb=0)
FEW = EngineSettings(memory_mb=64, max_batch=3, step_tokens=32, disk_mb=0)
"""Rows are parked and come back."""
SYSTEM = "Rules for everyone: be brief, be right, and say so when you are not. " * 2
LIKELY = dict.fromkeys((6, 17, 40, 41, 55), 9.0)
"""A bias that leaves so few tokens that an answer often repeats itself."""


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory) -> Callable[[str], Path]:
    return cache(lambda name: make_by_name(tmp_path_factory.mktemp("models") / name, name))


@pytest.fixture(scope="module")
def oracle_of(folder_of) -> Callable[[str], Oracle]:
    return cache(lambda name: Oracle(folder_of(name)))


@pytest.fixture(params=[*RAGGED, *PACKED[:2]])
def kind(request) -> str:
    return request.param


@pytest.fixture(params=[0, 1])
def ahead(request) -> int:
    """Steps that are begun before one is read: as on a CPU, as on a GPU."""
    return request.param


WISHES = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 45), "seed": st.integers(0, 2**64 - 1)},
    optional={
        "top_p": st.sampled_from([0.8, 0.95]),
        "min_p": st.sampled_from([0.02, 0.2]),
        "xtc_probability": st.sampled_from([0.5, 1.0]),
        "logit_bias": st.sampled_from([LIKELY, {6: 3.0, 40: -5.0}]),
        "repetition_penalty": st.sampled_from([0.8, 1.3]),
        "presence_penalty": st.sampled_from([0.5, -0.5]),
        "frequency_penalty": st.sampled_from([0.5, -0.3]),
        "stop": st.sampled_from([["a"], ["b", "7k"], ["~", "never there"]]),
    },
)
HEATS = st.sampled_from([(0.0, 0), (0.0, 0), (0.3, 0), (0.3, 5), (1.0, 5), (1.0, 20)])
"""Temperatures, and how many tokens are drawn from: never an unlikely one."""
SAMPLING = st.builds(
    lambda heat, wish: Sampling(temperature=heat[0], top_k=heat[1], **wish), HEATS, WISHES
)
TEXTS = st.builds(
    lambda shared, end, times: SYSTEM[:shared] + end * times,
    st.sampled_from([0, 30, len(SYSTEM)]),
    st.text("abc xyz", min_size=1, max_size=10),
    st.sampled_from([1, 1, 3, 30]),
)
SUBMIT = st.tuples(st.just("submit"), st.integers(1, 3), TEXTS, SAMPLING)
MOVES = st.lists(
    SUBMIT
    | SUBMIT
    | st.tuples(st.just("step"), st.integers(1, 5))
    | st.tuples(st.just("cancel"), st.integers(0, 1000)),
    min_size=6,
    max_size=30,
)


def adversary(bench: EngineBench, oracle: Oracle, seed: int, *, spite: bool) -> MakeDraft:
    """Return what drafts the right tokens, and with `spite` only so many of them, and then any.
    Behind an answer's end at a stop string there is more of what it would have been."""
    rng = random.Random(seed)

    def make(request: Request, count: int) -> list[int]:
        known = oracle.expect(bench.requests[request.key]).tokens[len(request.generated) :]
        right = rng.randint(0, count) if spite and rng.random() < 0.7 else count
        return [*known[:right], *[rng.randrange(90) for _ in range(count - right)]]

    return make


def dare(
    bench: EngineBench, oracle: Oracle, seed: int = 0, most: int = 31, *, spite: bool = True
) -> Counted:
    """Let the engine of `bench` be shown anything, and count it."""
    make = adversary(bench, oracle, seed, spite=spite)
    serving_of(bench.engine).speculator = Daring(make, seed, most)
    return Counted(bench.engine)


def compare(bench: EngineBench, oracle: Oracle) -> tuple[int, int]:
    """Every request that was not cancelled has the answer that it has alone, up to its first stop
    string. Returns how many were compared and how many left it at a near-tie."""
    compared = ties = 0
    for key, request in bench.requests.items():
        end, text, answer = bench.end(key), bench.text(key), oracle.expect(request)
        stops = request.sampling.stop or []
        assert isinstance(stops, list)
        places = [at for stop in stops if (at := answer.text.find(stop)) >= 0]
        tie = answer.near_ties(text)
        ties += tie
        if isinstance(end, Failed):
            assert isinstance(end.error, errors.Cancelled), end.error
            continue
        assert isinstance(end, Finished), f"{key} has no end"
        compared += 1
        assert end.usage.output_tokens <= answer.prepared.max_tokens
        if not tie:
            assert text == answer.text[: min(places, default=None)]
            assert end.stop_reason is (StopReason.STOP if places else StopReason.LENGTH)
    return compared, ties


def check_counters(bench: EngineBench, counted: Counted, source: str = "draft") -> None:
    """The engine counted what the batch saw, and every token of an answer once."""
    assert not counted.faults
    engine = bench.engine
    status = engine._metrics.snapshot(engine._gauges())
    assert status.drafts.get(source) == (counted.counts if counted.shown else None)
    assert counted.counts.accepted <= counted.counts.proposed
    ends = [end for key in bench.requests if (end := bench.end(key)) is not None]
    tokens = sum(end.usage.output_tokens for end in ends)
    assert status.output_tokens == tokens
    assert status.ttft_s is not None
    assert status.gap_s is not None
    began = sum(end.usage.output_tokens > 0 for end in ends)
    assert sum(status.ttft_s.counts) == began
    assert sum(status.gap_s.counts) == tokens - began


def run(bench: EngineBench, moves: list[tuple]) -> None:
    keys = [bench.submit(turn("first"), Sampling(temperature=0.0, max_tokens=30))]
    for move in moves:
        match move:
            case "submit", client, text, sampling:
                keys.append(bench.submit(turn(text), sampling, client=client))
            case "step", number:
                for _ in range(number):
                    if bench.engine.has_work:
                        bench.step()
            case "cancel", number if len(keys) > 1:
                bench.cancel(keys[1 + number % (len(keys) - 1)])
    bench.run()


@dosed(1)
@given(MOVES, st.integers(0, 1), st.integers(0, 1000), st.sampled_from([MANY, FEW]))
def test_drafts_of_any_kind_change_no_answer(
    kind, folder_of, oracle_of, moves, ahead, seed, limits
):
    bench, oracle = EngineBench(folder_of(kind), limits, ahead=ahead), oracle_of(kind)
    counted = dare(bench, oracle, seed)
    run(bench, moves)
    compared, ties = compare(bench, oracle)
    assert ties <= max(1, compared // 20)
    check_counters(bench, counted)


@pytest.mark.parametrize("rows", [1, 2, 5, 16])
def test_answers_are_exact_and_counted_at_every_size(folder_of, oracle_of, rows, ahead):
    """Rows come one by one, with unlike ways to sample; each of them is drafted right and wrong."""
    bench, oracle = EngineBench(folder_of(Kind.QWEN3), MANY, ahead=ahead), oracle_of(Kind.QWEN3)
    counted = dare(bench, oracle, seed=rows)
    for number in range(rows):
        sampling = Sampling(
            temperature=number % 3 / 2,
            top_k=5,
            seed=number,
            max_tokens=30 + number,
            presence_penalty=0.7 if number % 4 == 1 else 0.0,
            logit_bias=LIKELY if number % 4 == 2 else {},
        )
        bench.submit(turn("abc" * (1 + number * 7)), sampling, client=number)
        bench.step()
    bench.run()
    compared, ties = compare(bench, oracle)
    assert (compared, ties) == (rows, 0)
    check_counters(bench, counted)
    assert counted.counts.accepted > 5 * rows
    assert counted.counts.proposed > counted.counts.accepted
    assert counted.widest > 20 or rows == 1


@pytest.mark.parametrize("wish", [{}, {"repetition_penalty": 1.2}, {"temperature": 1.0}])
def test_the_requests_own_tokens_are_tried_and_right(folder_of, oracle_of, wish, ahead):
    """The policy itself, on a clock by which steps cost nothing: answers that repeat themselves."""
    limits = EngineSettings(memory_mb=64, max_batch=4, disk_mb=0, speculation=Speculation.NGRAM)
    bench, oracle = EngineBench(folder_of(Kind.LLAMA), limits, ahead=ahead), oracle_of(Kind.LLAMA)
    counted = Counted(bench.engine)
    for number in range(4):
        sampling = Sampling(max_tokens=80, seed=number, logit_bias=LIKELY, **wish)
        bench.submit(turn("(5&J" * number), sampling, client=number)
    bench.run()
    assert compare(bench, oracle)[1] == 0
    check_counters(bench, counted, "ngram")
    assert counted.shown
    assert counted.counts.accepted


def test_none_are_shown_when_it_is_off(folder_of, oracle_of):
    limits = EngineSettings(memory_mb=64, disk_mb=0, speculation=Speculation.OFF)
    bench, oracle = EngineBench(folder_of(Kind.LLAMA), limits), oracle_of(Kind.LLAMA)
    counted = Counted(bench.engine)
    bench.submit(turn("x"), Sampling(max_tokens=80, logit_bias=LIKELY, temperature=0.0))
    bench.run()
    assert compare(bench, oracle) == (1, 0)
    check_counters(bench, counted)
    assert not counted.shown


def test_models_whose_rows_are_computed_alone_are_shown_none(folder_of, oracle_of):
    bench, oracle = EngineBench(folder_of(ALONE[2]), MANY), oracle_of(ALONE[2])
    assert not serving_of(bench.engine).speculator.is_on
    counted = Counted(bench.engine)
    for number in range(3):
        bench.submit(turn("ab" * 20), Sampling(temperature=0.0, max_tokens=40), client=number)
    bench.run()
    assert compare(bench, oracle) == (3, 0)
    assert not counted.shown


def test_an_answer_that_ends_inside_a_draft_is_kept_for_the_next_turn(folder_of, oracle_of, ahead):
    """What was computed behind its end is in no cache."""
    bench, oracle = EngineBench(folder_of(Kind.QWEN3), FEW, ahead=ahead), oracle_of(Kind.QWEN3)
    plain, inside = Sampling(temperature=0.0, max_tokens=40), 0
    for number in range(6):
        text = SYSTEM + str(number) * (number + 1)
        before = bench.submit(turn(text), plain)
        bench.run()
        stop = bench.text(before)[7 + number : 9 + number]
        bench.squeeze(0)
        counted = dare(bench, oracle, seed=number, spite=False)
        first = bench.submit(turn(text), Sampling(temperature=0.0, max_tokens=40, stop=[stop]))
        bench.run()
        end, said = bench.end(first), bench.text(first)
        assert isinstance(end, Finished)
        inside += counted.counts.accepted > end.usage.output_tokens
        second = bench.submit(turn(text, said, "and then?"), plain)
        bench.run()
        end = bench.end(second)
        assert isinstance(end, Finished)
        assert end.usage.cached_tokens >= len(text) + len(said)
    assert inside, "no stop was within a draft"
    assert compare(bench, oracle)[1] == 0


CALLS = [
    "I look.",
    "<tool_call>",
    "\n<function=read_file>\n<parameter=path>\n",
    "a.py\n",
    "</parameter>\n</function>\n",
    "</tool_call>",
    "\nDone.",
]
"""Tokens of an answer with a call; its end is one more."""


NO_TIME = StepTimings(queue=0, prefill=0, decode=0)


def ask(bench: EngineBench, request: Generate, number: int = 0) -> list[ToModelClient]:
    """Return what its client gets, less times and ids; texts together."""
    bench.squeeze(0)
    key = Key(9, number)
    request = msgspec.structs.replace(request, request_id=number)
    bench.engine.handle(Submit(key, request, bench.now))
    bench.run()
    end = bench.end(key)
    assert isinstance(end, Finished)
    end = msgspec.structs.replace(end, timings=NO_TIME, request_id=0)
    calls = [
        msgspec.structs.replace(one, call_id="", request_id=0)
        for one in bench.of(key)
        if isinstance(one, ToolCall)
    ]
    return [TextDelta(request_id=0, text=bench.text(key)), *calls, end]


@pytest.fixture(scope="module")
def caller(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "caller", says=CALLS)


@pytest.mark.parametrize("one_call", [False, True])
@pytest.mark.parametrize("limit", [3, 6, 7, 40])
def test_an_answer_with_calls_ends_inside_a_draft_as_it_does_without(
    caller, one_call, limit, ahead
):
    """At its end token, after its one call, at its limit of tokens: in the middle of drafts that
    are right until there, and behind."""
    request = Generate(
        request_id=0,
        client_id="c",
        conversation_id="v",
        priority=Priority.INTERACTIVE,
        messages=turn("hi"),
        sampling=Sampling(temperature=0.0, max_tokens=limit),
        tools=[ToolSchema(name="read_file", description="", parameters='{"type": "object"}')],
        one_call=one_call,
    )
    off = EngineSettings(memory_mb=64, disk_mb=0, speculation=Speculation.OFF)
    bench = EngineBench(caller, off, ahead=ahead)
    serving = serving_of(bench.engine)
    without = ask(bench, request)
    encode = partial(serving._loaded.tokenizer.encode, add_special_tokens=False)
    says = [token for text in (*CALLS, "<|im_end|>") for token in encode(text)]
    assert len(says) == len(CALLS) + 1
    counted = Counted(bench.engine)
    for seed in range(1, 7):
        serving.speculator = Daring(
            lambda request, count: [*says[len(request.generated) :], *[7] * 40][:count], seed
        )
        assert ask(bench, request, seed) == without
    assert counted.counts.accepted


# faults


def faulty_after(bench: EngineBench, forwards: int) -> list[int]:
    """Let the forward that is so many after now raise, if it decodes; return what was seen."""
    batch, seen = serving_of(bench.engine).batch, []
    assert isinstance(batch, RaggedBatch)
    look_ahead, forward = batch._look_ahead, batch.forward

    def counting(real: Callable) -> Callable:
        def count(*arguments):
            seen.append(len(seen))
            result = real(*arguments)
            if len(seen) == forwards:
                raise MemoryError("no room")
            return result

        return count

    batch._look_ahead, batch.forward = counting(look_ahead), counting(forward)
    return seen


@pytest.mark.parametrize("when", [1, 2, 3, 5, 8])
def test_a_forward_that_fails_once_loses_no_token(folder_of, oracle_of, when, ahead):
    bench, oracle = EngineBench(folder_of(Kind.QWEN3), FEW, ahead=ahead), oracle_of(Kind.QWEN3)
    dare(bench, oracle, seed=when)
    for tokens in (18, 19, 31, 42):
        sampling = Sampling(temperature=1.0, top_k=5, seed=1, max_tokens=tokens)
        bench.submit(turn("z" * tokens), sampling)
    seen = faulty_after(bench, when)
    bench.run()
    assert len(seen) > when
    assert compare(bench, oracle) == (4, 0)


@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.parametrize("penalty", [0.0, 1e-6])
def test_a_row_that_loses_its_numbers_ends_alone(folder_of, oracle_of, bad, penalty, ahead):
    """Its keys and values are broken in the middle of its answer; what it had is what it has
    alone, and the other rows are as if nothing were."""
    bench, oracle = EngineBench(folder_of(Kind.QWEN3), MANY, ahead=ahead), oracle_of(Kind.QWEN3)
    dare(bench, oracle, seed=bad, most=3)
    sampling = Sampling(temperature=0.0, max_tokens=60, presence_penalty=penalty)
    keys = [bench.submit(turn(text * 9), sampling) for text in ("alpha", "be", "gam")]
    while not bench.text(keys[bad]):
        bench.step()
    batch = serving_of(bench.engine).batch
    assert isinstance(batch, RaggedBatch)
    for layer in batch._layers:
        layer._buffers[1][batch.keys.index(keys[bad]), :, 2] = mx.nan
    bench.run()
    end = bench.end(keys[bad])
    assert isinstance(end, Failed)
    assert isinstance(end.error, errors.ModelFault)
    assert "no numbers" in end.error.message
    for key in keys:
        assert oracle.expect(bench.requests[key]).near_ties(bench.text(key)) == 0
        assert key == keys[bad] or isinstance(bench.end(key), Finished)


def test_a_row_whose_sampling_fails_ends_alone(folder_of, oracle_of, ahead):
    bench, oracle = EngineBench(folder_of(Kind.QWEN3), MANY, ahead=ahead), oracle_of(Kind.QWEN3)
    dare(bench, oracle)
    sampling = Sampling(temperature=1.0, top_k=5, seed=3, max_tokens=40)
    keys = [bench.submit(turn(text), sampling) for text in ("alpha", "beta", "gamma")]
    while not bench.text(keys[1]):
        bench.step()
    request = bench.engine._requests[keys[1]]
    request.sampler.draw = _refuse
    bench.run()
    end = bench.end(keys[1])
    assert isinstance(end, Failed)
    assert "no chance" in end.error.message
    for key in keys:
        assert oracle.expect(bench.requests[key]).near_ties(bench.text(key)) == 0
        assert key == keys[1] or isinstance(bench.end(key), Finished)


def _refuse(position: int) -> Draw:
    raise RuntimeError(f"no chance at {position}")
