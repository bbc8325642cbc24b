"""Sampling: what a plan refuses, what a row draws, and that no row feels its neighbours.

mlx-lm's own functions are the reference: parameters mean here what they mean there.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm import sample_utils

from punie_model_host.profile import SamplingProfile
from punie_model_host.sampling import (
    PENALTY_CONTEXT,
    UNSOUND,
    Place,
    RowError,
    RowSampler,
    look_ahead,
    sample,
)
from punie_model_host.sampling_plan import SamplingPlan, check_stop, plan_sampling
from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.messages.to_model_host import Sampling

VOCABULARY = 40
PROMPT = [3, 1, 4, 1, 5]
STEPS = 6
DRAWS = 4000
DEFAULTS = SamplingProfile()


@pytest.fixture(autouse=True, scope="module")
def no_compiler() -> None:
    """As in the model host on a CPU: mlx-lm's functions would ask for a C++ compiler."""
    mx.disable_compile()


def plan(**wish: Any) -> SamplingPlan:
    return plan_sampling(Sampling(**wish), DEFAULTS, VOCABULARY)


def row(**wish: Any) -> RowSampler:
    return RowSampler(plan(**wish), VOCABULARY, PROMPT)


def logits_of(seed: int, rows: int = 1) -> mx.array:
    return mx.random.normal((rows, VOCABULARY), key=mx.random.key(seed)) * 2


def refusal(**wish: Any) -> str:
    with pytest.raises(PunieError) as caught:
        plan(**wish)
    assert isinstance(caught.value.error, InvalidRequest)
    assert caught.value.error.hint
    return caught.value.error.message


# plans

NAN, INF = math.nan, math.inf
NUMBERS = ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"]
NUMBERS += ["frequency_penalty", "xtc_probability", "xtc_threshold"]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e308, -1e308])
def test_no_number_is_too_odd_to_be_refused_by_name(name: str, value: float) -> None:
    message = refusal(**{name: value})
    assert f"{name} is {value!r}" in message
    assert "expected" in message


@pytest.mark.parametrize(
    ("wish", "limit"),
    [
        ({"temperature": -0.1}, ">= 0"),
        ({"temperature": 10.5}, "<= 10"),
        ({"top_p": 0.0}, "> 0"),
        ({"top_p": 1.01}, "<= 1"),
        ({"top_k": -1}, ">= 0"),
        ({"min_p": -0.5}, ">= 0"),
        ({"min_p": 1.5}, "<= 1"),
        ({"repetition_penalty": 0.0}, "> 0"),
        ({"presence_penalty": 2.5}, "<= 2"),
        ({"frequency_penalty": -2.5}, ">= -2"),
        ({"xtc_probability": -1.0}, ">= 0"),
        ({"xtc_probability": 1.5}, "<= 1"),
        ({"xtc_threshold": 0.0}, "> 0"),
        ({"xtc_threshold": 0.6}, "<= 0.5"),
        ({"max_tokens": 0}, ">= 1"),
        ({"max_tokens": -(2**80)}, ">= 1"),
    ],
)
def test_out_of_range_names_field_value_and_limit(wish: dict[str, Any], limit: str) -> None:
    ((name, value),) = wish.items()
    message = refusal(**wish)
    assert f"{name} is {value!r}" in message
    assert limit in message


@pytest.mark.parametrize("huge", [10**400, -(10**400), 10**5000, -(10**5000)], ids="abcd")
def test_integers_that_no_float_holds(huge: int) -> None:
    for name in [*NUMBERS, "logit_bias"]:
        value = {3: huge} if name == "logit_bias" else huge
        assert name in refusal(**{name: value})
    for name in ("top_k", "max_tokens"):
        if huge < 0:
            assert f"{name} is" in refusal(**{name: huge})
        else:
            assert plan(**{name: huge})
    assert 0 <= plan(seed=huge).seed < 2**64
    assert "logit_bias is" in refusal(logit_bias={huge: 1.0})


def test_bias_of_no_token_of_no_number_and_of_too_many() -> None:
    assert "logit_bias is 40: the model's tokens are 0 to 39" in refusal(logit_bias={40: 1.0})
    assert "logit_bias is -1" in refusal(logit_bias={-1: 1.0})
    assert "logit_bias[3] is nan" in refusal(logit_bias={3: NAN})
    assert "logit_bias[3] is 100.5: expected -100.0 to 100.0" in refusal(logit_bias={3: 100.5})
    assert "1025 tokens, at most 1024" in refusal(logit_bias=dict.fromkeys(range(1025), 1.0))
    assert len(refusal(logit_bias={10**4000: 1.0})) < 300


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([""], "stop[0] has 0 characters, 1 to 256"),
        (["a", "b" * 257], "stop[1] has 257 characters, 1 to 256"),
        (["a"] * 17, "17 strings, at most 16"),
        ([50256], "stop[0] is 50256: expected a string"),
        (["a", None], "stop[1] is None: expected a string"),
        (7, "stop is 7: expected a string or a list"),
        ({"a": 1}, "expected a string or a list"),
        (b"a", "expected a string or a list"),
        (["x", ["y"]], "stop[1] is ['y']"),
    ],
)
def test_a_stop_that_is_none_names_what_was_given(value: object, words: str) -> None:
    with pytest.raises(PunieError) as caught:
        check_stop(value)
    assert words in caught.value.error.message


def test_stops_are_a_string_or_several_or_nothing() -> None:
    assert check_stop(None) == check_stop([]) == ()
    assert check_stop("a") == ("a",)
    assert check_stop(["a", "b" * 256]) == ("a", "b" * 256)


def test_what_is_odd_but_clear_is_taken() -> None:
    for top_k in (VOCABULARY, VOCABULARY + 1, 2**80):
        assert plan(top_k=top_k).profile.top_k == 0
    assert plan(top_k=VOCABULARY - 1).profile.top_k == VOCABULARY - 1
    assert plan(max_tokens=2**80).profile.max_tokens == 100_000_000
    assert plan(seed=-1).seed == 2**64 - 1
    assert plan(seed=2**64 + 7).seed == plan(seed=7).seed == 7
    assert plan().seed != plan().seed
    assert plan(temperature=1).draws
    assert not plan(temperature=0.0).draws
    assert not plan(temperature=5e-324).draws


def test_the_profile_holds_where_nothing_is_wished() -> None:
    profile = SamplingProfile(temperature=0.7, top_k=20, presence_penalty=1.0)
    merged = plan_sampling(Sampling(top_p=0.5, temperature=0.0), profile, VOCABULARY).profile
    assert merged == SamplingProfile(temperature=0.0, top_k=20, presence_penalty=1.0, top_p=0.5)
    small = plan_sampling(Sampling(), profile, 20).profile
    assert small.top_k == 0


# draws


def reference(logits: mx.array, wish: dict[str, Any]) -> list[float]:
    """The distribution that mlx-lm draws from, with XTC happening or not for certain."""
    likely = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    if "top_p" in wish:
        likely = sample_utils.apply_top_p(likely, wish["top_p"])
    if "min_p" in wish:
        likely = sample_utils.apply_min_p(likely, wish["min_p"])
    if "xtc_probability" in wish:
        likely = sample_utils.apply_xtc(
            likely, wish["xtc_probability"], wish.get("xtc_threshold", 0.1), []
        )
    if "top_k" in wish:
        likely = sample_utils.apply_top_k(likely, wish["top_k"])
    return numbers(mx.softmax(likely / wish["temperature"], axis=-1)[0])


def numbers(values: mx.array) -> list[float]:
    return [float(value) for value in memoryview(values.astype(mx.float32))]


def shares(logits: mx.array, wish: dict[str, Any]) -> list[float]:
    """How often each token comes out, of as many draws with a seed each."""
    rows = [row(seed=seed, **wish) for seed in range(DRAWS)]
    tokens = sample(mx.repeat(logits, DRAWS, axis=0), rows).read()
    counts = Counter(tokens)
    return [counts[token] / DRAWS for token in range(VOCABULARY)]


@pytest.mark.parametrize(
    "wish",
    [
        {"temperature": 1.0},
        {"temperature": 0.3},
        {"temperature": 2.5},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 1.0, "top_p": 1e-9},
        {"temperature": 1.5, "top_k": 3},
        {"temperature": 1.5, "top_k": 1},
        {"temperature": 1.5, "top_k": VOCABULARY - 1},
        {"temperature": 2.0, "min_p": 0.2},
        {"temperature": 2.0, "min_p": 1.0},
        {"temperature": 1.0, "xtc_probability": 1.0, "xtc_threshold": 0.05},
        {"temperature": 1.0, "xtc_probability": 1.0, "xtc_threshold": 0.5},
        {"temperature": 1.3, "xtc_probability": 1.0, "xtc_threshold": 0.05, "top_k": 4},
        {"temperature": 1.3, "top_p": 0.9, "min_p": 0.03, "top_k": 6},
        {
            "temperature": 1.3,
            "top_p": 0.95,
            "min_p": 0.02,
            "xtc_probability": 1.0,
            "xtc_threshold": 0.08,
            "top_k": 5,
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [1, 2])
def test_draws_are_distributed_as_mlx_lms(wish: dict[str, Any], seed: int) -> None:
    logits = logits_of(seed)
    wanted, got = reference(logits, wish), shares(logits, wish)
    for share, probability in zip(got, wanted, strict=True):
        # five standard deviations; a token that is filtered out never comes
        spread = 5 * math.sqrt(probability * (1 - probability) / DRAWS)
        assert abs(share - probability) <= spread + 1e-9


def test_xtc_happens_as_often_as_it_is_asked_for() -> None:
    logits = mx.zeros((1, VOCABULARY)).at[0, 7].add(9.0).at[0, 8].add(8.9)
    wish = {"temperature": 1.0, "xtc_threshold": 0.2}
    for probability in (0.0, 0.25, 1.0):
        got = shares(logits, wish | {"xtc_probability": probability})
        without = reference(logits, {"temperature": 1.0})[7]
        assert abs(got[7] - without * (1 - probability)) < 0.05
        assert probability < 1.0 or got[7] == 0


@pytest.mark.parametrize("temperature", [1e-5, 1.2e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_tiny_temperatures_are_greedy(temperature: float, dtype: mx.Dtype) -> None:
    logits = (mx.arange(VOCABULARY)[None] * 30.0).astype(dtype)
    for top_k in (0, 5):
        sampled = sample(logits, [row(temperature=temperature, seed=3, top_k=top_k)])
        assert sampled.read() == [VOCABULARY - 1]


def test_greedy_is_the_likeliest_token() -> None:
    logits = logits_of(5, 16)
    best = [int(token) for token in memoryview(mx.argmax(logits, axis=-1))]
    assert sample(logits, [row() for _ in range(16)]).read() == best


def test_a_bias_decides() -> None:
    logits = logits_of(6, 3)
    rows = [row(logit_bias={9: 100.0}), row(), row(logit_bias={9: 99.0, 11: 100.0, 0: -100.0})]
    best = [int(token) for token in memoryview(mx.argmax(logits, axis=-1))][1]
    assert sample(logits, rows).read() == [9, best, 11]


# penalties, of tokens that nobody has looked at yet


def processed(logits: mx.array, tokens: Sequence[int], wish: dict[str, Any]) -> mx.array:
    logits = mx.array(logits)
    for processor in sample_utils.make_logits_processors(**wish):
        logits = processor(mx.array(list(tokens)), logits)
    return logits


@given(
    wish=st.fixed_dictionaries(
        {},
        optional={
            "repetition_penalty": st.floats(0.5, 3.0),
            "presence_penalty": st.floats(-2.0, 2.0),
            "frequency_penalty": st.floats(-2.0, 2.0),
            "logit_bias": st.dictionaries(st.integers(0, 39), st.floats(-3, 3), min_size=1),
        },
    ),
    prompt=st.lists(st.integers(0, VOCABULARY - 1), max_size=30),
    seed=st.integers(0, 100),
)
@settings(max_examples=40)
def test_penalties_are_mlx_lms(wish: dict[str, Any], prompt: list[int], seed: int) -> None:
    sampler, tokens = RowSampler(plan(**wish), VOCABULARY, prompt), list(prompt)
    steps = logits_of(seed, 30)
    lazy = [sample(steps[n : n + 1], [sampler]) for n in range(30)]
    for n, sampled in enumerate(lazy):
        scores = numbers(processed(steps[n : n + 1], tokens, wish)[0])
        (token,) = sampled.read()
        assert max(scores) - scores[token] < 1e-5  # several may tie but for rounding
        tokens.append(token)


def test_the_end_of_a_long_prompt_counts() -> None:
    prompt = [1] * 20 + [2] * 20
    logits = mx.zeros((1, VOCABULARY)).at[0, 1].add(1.0).at[0, 2].add(1.5)
    sampler = RowSampler(plan(presence_penalty=1.0), VOCABULARY, prompt)
    assert sample(logits, [sampler]).read() == [1]


# neighbours

wishes = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**64 - 1)},
    optional={
        "temperature": st.sampled_from([0.0, 0.2, 1.0, 5.0]),
        "top_p": st.sampled_from([0.1, 0.8, 1.0]),
        "top_k": st.sampled_from([0, 1, 3, 39, 500]),
        "min_p": st.sampled_from([0.0, 0.1, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "presence_penalty": st.sampled_from([0.0, 1.0]),
        "frequency_penalty": st.sampled_from([0.0, 1.0]),
        "xtc_probability": st.sampled_from([0.0, 0.5, 1.0]),
        "logit_bias": st.sampled_from([{}, {3: 2.0, 17: -2.0}]),
    },
)


def alone(wish: dict[str, Any], steps: Sequence[mx.array]) -> list[int]:
    sampler = row(**wish)
    return [sample(logits, [sampler]).read()[0] for logits in steps]


@given(
    st.lists(st.tuples(wishes, st.integers(0, STEPS - 1)), min_size=1, max_size=16),
    st.sampled_from([mx.float32, mx.bfloat16]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60)
def test_a_row_gets_beside_others_what_it_gets_alone(
    members: list[tuple[dict[str, Any], int]], dtype: mx.Dtype, random: Any
) -> None:
    """Rows join at different steps, and change places at each."""
    logits = {
        n: [logits_of(100 * n + step).astype(dtype) for step in range(STEPS)]
        for n in range(len(members))
    }
    samplers = [row(**wish) for wish, _ in members]
    got: dict[int, list[int]] = {n: [] for n in logits}
    for step in range(STEPS):
        present = [n for n, (_, joins) in enumerate(members) if joins <= step]
        random.shuffle(present)
        if not present:
            continue
        batch = mx.concatenate([logits[n][samplers[n].position] for n in present])
        tokens = sample(batch, [samplers[n] for n in present]).read()
        for n, token in zip(present, tokens, strict=True):
            got[n].append(token)
    for n, (wish, joins) in enumerate(members):
        assert got[n] == alone(wish, logits[n][: STEPS - joins])


def test_no_neighbour_cuts_the_tail() -> None:
    """At a high temperature tokens come out that a sum of probabilities does not notice."""
    logits = mx.arange(VOCABULARY)[None] * -1.0
    hot = [row(temperature=10.0, seed=seed) for seed in range(300)]
    others = [row(temperature=1.0, seed=1, top_p=0.5), row(temperature=1.0, top_k=2, min_p=0.9)]
    others += [row(temperature=1.0, xtc_probability=1.0)]
    beside = sample(mx.repeat(logits, 303, axis=0), hot + others).read()[:300]
    assert max(beside) > 30
    alone = [row(temperature=10.0, seed=seed) for seed in range(300)]
    assert beside == sample(mx.repeat(logits, 300, axis=0), alone).read()


def test_logits_stay_as_they_are() -> None:
    """Whoever gave them may have to sample from them again, without a row that failed."""
    logits = logits_of(8, 3)
    before = mx.array(logits)
    for wishes in ([{}, {"temperature": 1.0}, {}], [{"logit_bias": {1: 9.0}}] * 3):
        sample(logits, [row(**wish) for wish in wishes]).read()
        assert mx.array_equal(logits, before)


def test_every_position_draws_anew() -> None:
    sampler, logits = row(temperature=1.0, seed=9), logits_of(1)
    tokens = [token for _ in range(1000) for token in sample(logits, [sampler]).read()]
    expected = reference(logits, {"temperature": 1.0})
    for token, probability in enumerate(expected):
        spread = 5 * math.sqrt(probability * (1 - probability) / 1000)
        assert abs(tokens.count(token) / 1000 - probability) <= spread


def test_a_seed_decides_and_nothing_global_does() -> None:
    def tokens(seed: int) -> list[int]:
        return alone({"temperature": 5.0, "seed": seed}, [logits_of(n) for n in range(20)])

    mx.random.seed(1)
    first = tokens(1)
    mx.random.seed(2)
    assert first == tokens(1) != tokens(2)


def test_logits_that_are_no_numbers_fail_their_row_alone() -> None:
    good = logits_of(3)
    bad = [mx.full((1, VOCABULARY), value) for value in (NAN, -INF, INF)]
    for wish in ({}, {"temperature": 1.0, "seed": 1}, {"presence_penalty": 1.0}):
        (expected,) = alone(wish, [good]) if wish else sample(good, [row()]).read()
        batch = mx.concatenate([good, *bad, good])
        sampled = sample(batch, [row(**wish) for _ in range(5)])
        assert sampled.read() == [expected, UNSOUND, UNSOUND, UNSOUND, expected]
        # what is computed with before it is looked at stays in the vocabulary
        assert all(token < VOCABULARY for token in memoryview(sampled.tokens))


def test_logits_with_one_nan_are_not_drawn_from() -> None:
    logits = mx.concatenate([logits_of(1).at[0, 20].add(NAN), logits_of(2)])
    rows = [row(temperature=1.0, top_p=0.9, seed=seed) for seed in (1, 2)]
    first, second = sample(logits, rows).read()
    assert first == UNSOUND
    assert second != UNSOUND


def test_a_row_that_fails_is_named_and_changes_nothing() -> None:
    broken = RowSampler(SamplingPlan(SamplingProfile(temperature=1.0), seed=-1), VOCABULARY, [])
    wish = {"temperature": 1.0, "seed": 4, "presence_penalty": 1.0}
    sound, logits = row(**wish), [logits_of(n) for n in range(3)]
    with pytest.raises(RowError) as caught:
        sample(mx.concatenate([logits[0], logits[0]]), [sound, broken])
    assert caught.value.index == 1
    assert sound.position == 0
    assert [sample(each, [sound]).read()[0] for each in logits] == alone(wish, logits)


# looking ahead

LINE = 2 * PENALTY_CONTEXT + 3
"""Positions of a row: more than penalties look back on."""


@given(
    st.lists(st.tuples(wishes, st.lists(st.integers(0, 9), max_size=8)), min_size=1, max_size=8),
    st.sampled_from([mx.float32, mx.bfloat16]),
)
@settings(max_examples=40)
def test_a_place_says_what_is_sampled_there_once_its_drafts_are_taken(
    members: list[tuple[dict[str, Any], list[int]]], dtype: mx.Dtype
) -> None:
    """Each row looks ahead and takes, again and again, by as much as it likes; the places of all
    rows are asked at once. One token more than its drafts is taken, as of a batch."""
    lines = [
        [logits_of(100 * n + at).astype(dtype) for at in range(LINE)] for n in range(len(members))
    ]
    said = [alone(wish, line) for (wish, _), line in zip(members, lines, strict=True)]
    rows = [row(**wish) for wish, _ in members]
    for move in range(8):
        ahead = [leaps[move] if move < len(leaps) else 0 for _, leaps in members]
        places, logits, expected = [], [], []
        for n, (sampler, count) in enumerate(zip(rows, ahead, strict=True)):
            start = sampler.position
            for at in range(start, min(start + count + 1, LINE)):
                places.append(Place(sampler, tuple(said[n][start:at])))
                logits.append(lines[n][at])
                expected.append(said[n][at])
        if not places:
            break
        for _ in range(2):  # nobody is a token further by it
            assert look_ahead(mx.concatenate(logits), places).read() == expected
        for n, (sampler, count) in enumerate(zip(rows, ahead, strict=True)):
            start = sampler.position
            sampler.take(said[n][start : start + count + 1])
    for sampler, line, tokens in zip(rows, lines, said, strict=True):
        rest = [sample(logits, [sampler]).read()[0] for logits in line[sampler.position :]]
        assert rest == tokens[LINE - len(rest) :]


def test_tokens_taken_at_once_and_one_by_one_are_the_same_past() -> None:
    wish = {"temperature": 1.0, "seed": 4, "frequency_penalty": 1.0, "repetition_penalty": 1.3}
    logits = [logits_of(n) for n in range(LINE)]
    said = alone(wish, logits)
    for count in (1, 2, PENALTY_CONTEXT - 1, PENALTY_CONTEXT, PENALTY_CONTEXT + 1, LINE - 5):
        sampler = row(**wish)
        sample(logits[0], [sampler])
        sampler.take(said[1:count])
        rest = [sample(each, [sampler]).read()[0] for each in logits[max(1, count) :]]
        assert rest == said[max(1, count) :]


def test_a_bias_may_depend_on_the_position() -> None:
    class Fixed(RowSampler):
        def bias_at(self, position: int) -> mx.array:
            return mx.zeros((VOCABULARY,)).at[30 + position].add(100.0)

    fixed = Fixed(plan(logit_bias={1: 1.0}), VOCABULARY, PROMPT)
    places = [Place(fixed), Place(fixed, (30,)), Place(fixed, (30, 31))]
    assert look_ahead(logits_of(1, 3), places).read() == [30, 31, 32]
    fixed.take([30, 31])
    assert sample(logits_of(2), [fixed]).read() == [32]


def test_a_place_that_fails_is_named_and_one_without_numbers_fails_alone() -> None:
    broken = RowSampler(SamplingPlan(SamplingProfile(temperature=1.0), seed=-1), VOCABULARY, [])
    sound = row(temperature=1.0, seed=2)
    places = [Place(sound), Place(sound, (3,)), Place(broken), Place(broken, (3,))]
    with pytest.raises(RowError) as caught:
        look_ahead(logits_of(1, 4), places)
    assert caught.value.index == 2
    assert sound.position == 0
    logits = mx.concatenate([logits_of(1), mx.full((1, VOCABULARY), NAN), logits_of(2)])
    said = look_ahead(logits, [Place(sound), Place(sound, (3,)), Place(sound, (3, 4))]).read()
    assert [token == UNSOUND for token in said] == [False, True, False]
