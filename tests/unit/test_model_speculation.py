"""The policy of drafts: what it wins where there is something to win, and that it never costs more
than its share. Pure: forwards take what a formula says."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punie_model_host.engine_messages import Key
from punie_model_host.ledger import SHARE
from punie_model_host.speculation import (
    DRAFT_ROWS,
    MOST_OF_MODEL,
    WIDTHS,
    Candidate,
    Hits,
    Source,
)
from punie_protocol.engine import Speculation
from tests.support.simulated_speculation import Machine, Said, Seconds


def bandwidth(each: float) -> Seconds:
    """As on a GPU: weights are read once, `each` more token takes that share of it."""
    return lambda rows, width: 0.01 * (1 + each * (rows * width - 1))


CHEAP = bandwidth(0.01)
DEAR = bandwidth(0.7)
"""As on a CPU: nothing is won by computing tokens together."""


def chatter(tokens: int, words: int, seed: int) -> list[int]:
    """Return tokens that look as if they repeated themselves, and do not."""
    rng = random.Random(seed)
    return [rng.randrange(words) for _ in range(tokens)]


def file(tokens: int) -> list[int]:
    """Return tokens that are all different."""
    return list(range(1000, 1000 + tokens))


def test_a_quoted_file_takes_few_forwards() -> None:
    machine = Machine(CHEAP)
    machine.add(file(2000), prompt=[0, *file(2000), 0, 1000, 1001])
    machine.run()
    assert machine.slowdown < 0.2
    assert max(machine.widths) >= 16
    assert machine.counts[Source.NGRAM].accepted > 1800


def test_beside_a_row_that_says_something_new_a_quoted_file_is_still_quicker() -> None:
    machine = Machine(CHEAP)
    machine.add(chatter(400, 50_000, 1))
    machine.add(file(400), prompt=[0, *file(400), 0, 1000, 1001])
    machine.run()
    assert len(machine.widths) < 450
    assert machine.slowdown < 0.9


def test_where_nothing_is_won_by_it_no_time_is_lost_for_long() -> None:
    machine = Machine(DEAR)
    machine.add(file(1000), prompt=[0, *file(1000), 0, 1000, 1001])
    machine.run()
    assert machine.slowdown < 1.05


@settings(max_examples=60)
@given(
    st.sampled_from([0.0, 0.005, 0.02, 0.1, 0.3, 1.0]),
    st.lists(st.integers(2, 60), min_size=1, max_size=6),
    st.integers(0, 1000),
    st.sampled_from([None, 1, 3]),
)
def test_no_text_makes_drafts_cost_more_than_their_share(
    each: float, words: list[int], seed: int, most: int | None
) -> None:
    seconds = bandwidth(each)
    machine = Machine(seconds, most=most)
    for number, size in enumerate(words):
        machine.add(chatter(300, size, seed + number))
    machine.run()
    rows = len(words)
    risked = 3 * seconds(rows, 1) + SHARE * machine.now
    assert machine.now - machine.plain <= risked + seconds(rows, max(machine.widths)) + 1e-9


@pytest.mark.parametrize("each", [0.3, 0.7, 1.5])
def test_beside_other_work_nothing_is_shown_of_which_the_cost_is_a_guess(each: float) -> None:
    """What a forward takes beside a prompt cannot be measured: the guess would be believed."""
    machine = Machine(bandwidth(each))
    machine.add(chatter(2000, 3, 1))
    rows = list(machine.rows.values())
    for step in range(1500):
        if rows[0].left:
            machine.step(rows, alone=step < 4)
    assert machine.slowdown < 1.05


@given(st.integers(1, 5), st.integers(0, 100))
def test_nothing_is_shown_before_it_is_known_what_a_plain_forward_takes(
    rows: int, seed: int
) -> None:
    """Of so many rows, each time that a row more or less is decoded."""
    machine = Machine(CHEAP)
    for number in range(rows):
        machine.add(chatter(40 + number * 9, 2, seed + number))
    known: set[int] = set()
    while going := [row for row in machine.rows.values() if row.left]:
        machine.step(going)
        if machine.widths[-1] == 1:
            known.add(len(going))
        assert len(going) in known
    assert max(machine.widths) > 1


def test_a_forward_without_drafts_comes_now_and_then() -> None:
    machine = Machine(CHEAP)
    machine.add([1, 2, 3, 4] * 2000)
    machine.run()
    runs, last = [], 0
    for place, width in enumerate(machine.widths):
        if width == 1:
            runs.append(place - last)
            last = place
    assert len(runs) > 5
    assert max(runs) <= 33


@pytest.mark.parametrize("most", [1, 2, 5, 64])
def test_no_draft_is_longer_than_is_wished(most: int) -> None:
    machine = Machine(bandwidth(0.0), most=most)
    machine.add(file(2000), prompt=[0, *file(2000), 0, 1000, 1001])
    machine.run()
    assert 1 < max(machine.widths) <= most + 1
    assert max(machine.widths) == min(most + 1, WIDTHS[-1]) or most > MOST_OF_MODEL


@pytest.mark.parametrize("mode", Speculation)
def test_without_a_source_there_are_no_drafts(mode: Speculation) -> None:
    machine = Machine(CHEAP, mode)
    machine.add([1, 2, 3, 4] * 100)
    has = mode in (Speculation.NGRAM, Speculation.AUTO)
    assert machine.speculator.is_on is has
    machine.run()
    assert (max(machine.widths) > 1) is has


def test_no_rows_and_rows_of_one_token_are_no_fault() -> None:
    machine = Machine(CHEAP, Speculation.AUTO, draft=(0.001, 10))
    assert machine.speculator.propose([]) == {}
    assert not machine.speculator.promises([])
    assert machine.speculator.stepped(0.01, {}, alone=True) == {}
    for says in ([5], [5, 5], [5, 5, 5], [5]):
        machine.add(says, prompt=[5])
    machine.run()
    assert all(not row.left for row in machine.rows.values())


def test_the_ledger_empties_and_then_there_are_none() -> None:
    machine = Machine(bandwidth(3.0))
    machine.add(chatter(4000, 2, 1))
    machine.run()
    drafted = sum(width > 1 for width in machine.widths)
    assert 0 < drafted < len(machine.widths) / 20


def test_the_last_forward_of_an_answer_is_filed_as_what_it_was() -> None:
    """A row that ends in its draft is over before the policy learns: its wide forward must not pass
    for a plain one."""
    machine = Machine(bandwidth(0.2))
    for _ in range(30):
        row = machine.add([1, 2, 3, 4] * 6)
        while row.left:
            machine.step([row])
    assert machine.widths.count(1) < len(machine.widths)
    assert machine.speculator._costs.seconds(1, 1) == pytest.approx(0.01)


# the draft model


@pytest.mark.parametrize("rows", [1, 2])
def test_a_draft_model_that_knows_is_used_in_small_batches(rows: int) -> None:
    machine = Machine(CHEAP, Speculation.DRAFT, draft=(0.001, 9))
    for number in range(rows):
        machine.add(chatter(600, 50_000, number))
    machine.run()
    assert machine.slowdown < 0.6
    assert machine.counts[Source.DRAFT].accepted > 200 * rows
    assert machine.draft_model is not None
    assert all(w.count <= MOST_OF_MODEL for some in machine.draft_model.wishes for w in some)


def test_in_larger_batches_no_draft_model_is_asked() -> None:
    machine = Machine(CHEAP, Speculation.DRAFT, draft=(0.001, 9))
    for number in range(DRAFT_ROWS + 1):
        machine.add(chatter(100, 50_000, number))
    machine.run()
    assert machine.draft_model is not None
    assert not machine.draft_model.wishes


@settings(max_examples=30)
@given(
    st.sampled_from([0.002, 0.02, 0.2]),
    st.sampled_from([1, 2, 3, 30]),
    st.integers(1, 2),
    st.sampled_from([0.01, 0.2, 1.0]),
)
def test_a_draft_model_costs_no_more_than_its_share(
    seconds: float, wrong: int, rows: int, each: float
) -> None:
    forward = bandwidth(each)
    machine = Machine(forward, Speculation.DRAFT, draft=(seconds, wrong))
    for number in range(rows):
        machine.add(chatter(400, 50_000, number))
    machine.run()
    once = forward(rows, MOST_OF_MODEL + 1) + seconds * MOST_OF_MODEL
    risked = 3 * forward(rows, 1) + SHARE * machine.now + once
    assert machine.now - machine.plain <= risked + 1e-9


# how often drafts are right


@pytest.mark.parametrize(
    ("taken", "right", "seen"),
    [
        ([1, 2, 3, 4, 5], 4, 4),  # all of it, and one more
        ([1, 2, 9], 2, 3),  # what is behind a wrong one is not known
        ([9], 0, 1),
        ([1], 1, 1),  # a draft that was not shown, or only in part
        ([], 0, 0),
    ],
)
def test_a_draft_is_judged_as_far_as_it_was_compared(
    taken: list[int], right: int, seen: int
) -> None:
    own, general, expected = Hits(), Hits(), Hits()
    request: Any = Said(Key(1, 1), [0], [1, 2, 3, 4, 5])
    one = Candidate(
        request=request, source=Source.NGRAM, tokens=[1, 2, 3, 4], chance=0.5, hits=(own, general)
    )
    one.judge(taken)
    expected.add(right, seen)
    for prior in (0.0, 0.5, 1.0):
        assert own.share(prior) == general.share(prior) == expected.share(prior)
    assert one.expected(1) == 1
    assert one.expected(3) == 1 + 0.5 + 0.25
    assert one.expected(32) == one.expected(5)


@given(st.lists(st.integers(0, 8).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))))
def test_a_share_is_one(added: list[tuple[int, int]]) -> None:
    hits = Hits()
    for right, seen in added:
        hits.add(right, seen)
        hits.fade()
    assert 0 <= hits.share(0.0) <= hits.share(0.5) <= hits.share(1.0) < 1


def test_what_was_seen_last_counts_most() -> None:
    hits = Hits()
    assert hits.share(0.6) == pytest.approx(0.6)
    for _ in range(100):
        hits.add(4, 4)
    assert hits.share(0.1) > 0.85
    for _ in range(100):
        hits.add(0, 1)
    assert hits.share(0.9) < 0.25
    for _ in range(300):
        hits.fade()
    assert hits.share(0.9) == pytest.approx(0.9, abs=0.01)
