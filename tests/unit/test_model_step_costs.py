"""What a forward takes: as it was measured, straight between, and a bounded guess beyond."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_model_host.step_costs import StepCosts


def costs(**measured: float) -> StepCosts:
    """Return costs of one row, by widths as ``w1``."""
    some = StepCosts()
    for name, seconds in measured.items():
        some.tick()
        some.add(1, int(name[1:]), seconds)
    return some


def steps(some: StepCosts, rows: int, width: int, seconds: float, count: int = 1) -> None:
    """Let so many forwards go by that take so long."""
    for _ in range(count):
        some.tick()
        some.add(rows, width, seconds)


def test_nothing_is_known_of_rows_that_were_not_measured() -> None:
    some = costs(w1=1.0)
    assert some.plain(1, 32) == 1.0
    assert some.plain(2, 32) is None
    assert costs(w4=1.0).plain(1, 32) is None


def test_a_plain_forward_counts_for_so_many_steps_measured_or_not() -> None:
    some = costs(w1=1.0)
    steps(some, 3, 1, 5.0, 16)  # of any rows
    for _ in range(15):
        some.tick()
    assert some.plain(1, 32) == 1.0
    some.tick()
    assert some.plain(1, 32) is None
    assert some.plain(1, 33) == 1.0


def test_what_lies_between_two_measurements_is_straight_between() -> None:
    some = costs(w1=1.0, w5=3.0, w9=4.0)
    expected = [1.0, 1.5, 2.0, 2.5, 3.0, 3.25, 3.5, 3.75, 4.0]
    assert [some.seconds(1, width) for width in range(1, 10)] == pytest.approx(expected)


def test_beyond_the_widest_is_guessed_and_not_far() -> None:
    some = costs(w1=1.0)
    assert some.widest(1, guess=True) == 4
    assert some.widest(1, guess=False) == 1
    guesses = [some.seconds(1, width) for width in range(1, 5)]
    assert guesses == sorted(set(guesses))
    assert guesses[-1] < 1.5
    some.add(1, 4, 2.0)
    assert some.widest(1, guess=True) == 8
    assert some.widest(1, guess=False) == 4
    assert some.widest(2, guess=True) == 4
    assert some.seconds(1, 8) > 2.0


def test_of_the_first_few_the_fastest_counts() -> None:
    some = costs(w1=1000.0)
    steps(some, 1, 1, 1.0)
    steps(some, 1, 1, 500.0)
    assert some.seconds(1, 1) == 1.0


def test_one_that_took_very_long_is_an_outlier() -> None:
    some = costs(w1=1.0)
    steps(some, 1, 1, 1.0, 2)
    steps(some, 1, 1, 1000.0)
    assert some.seconds(1, 1) == pytest.approx(1.5)
    steps(some, 1, 1, 4.0, 40)  # it takes that long from now on
    assert some.seconds(1, 1) == pytest.approx(4.0, rel=0.01)
    steps(some, 1, 1, 0.0)
    assert some.seconds(1, 1) == pytest.approx(3.0, rel=0.01)


def test_old_measurements_are_forgotten_but_for_plain_ones() -> None:
    some = costs(w1=1.0, w8=100.0)
    steps(some, 2, 1, 1.0, 512)
    assert some.widest(1, guess=True) == 16
    steps(some, 2, 1, 1.0)
    assert some.widest(1, guess=True) == 4
    assert some.seconds(1, 8) < 2.0
    assert some.plain(1, 1000) == 1.0


def test_a_clock_that_stands_still_gives_finite_rates() -> None:
    some = costs(w1=0.0, w4=-1.0)
    assert all(some.seconds(1, width) > 0 for width in range(1, 9))


@given(
    st.dictionaries(st.integers(2, 32), st.floats(0.0, 100.0), max_size=8),
    st.floats(0.0, 100.0),
    st.integers(1, 32),
)
def test_no_guess_is_less_than_what_narrower_or_more_than_what_wider_ones_took(
    measured: dict[int, float], plain: float, width: int
) -> None:
    some = costs(w1=plain, **{f"w{each}": seconds for each, seconds in measured.items()})
    known = {1: plain, **measured}
    below = max(each for each in known if each <= width)
    above = min((each for each in known if each >= width), default=None)
    least = min(known[below], known[above]) if above else known[below]
    assert some.seconds(1, width) >= least * (1 - 1e-9)
    if above:
        assert some.seconds(1, width) <= max(known[below], known[above]) * (1 + 1e-9) + 1e-6
