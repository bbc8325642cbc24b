"""What drafts may cost: never more than a share of the time, what may be risked at first, and the
one step that went over it."""

from hypothesis import given
from hypothesis import strategies as st

from punie_model_host.ledger import SHARE, Ledger

PLAIN = 0.01
START, MOST = 3.0, 16.0
STEPS = st.lists(
    st.tuples(st.floats(0.001, 1.0), st.floats(-1.0, 1.0) | st.floats(-0.02, 0.001)),
    min_size=1,
    max_size=200,
)


def run(steps: list[tuple[float, float]]) -> tuple[Ledger, list[float]]:
    """Take every chance that is allowed; return what each of them won."""
    ledger, won = Ledger(START, MOST), []
    for seconds, gain in steps:
        allowed = ledger.allows
        ledger.worked(seconds, PLAIN)
        if allowed:
            ledger.book(gain, PLAIN)
            won.append(gain)
    return ledger, won


@given(STEPS)
def test_no_more_is_lost_than_may_be(steps: list[tuple[float, float]]) -> None:
    _, won = run(steps)
    risked = START * PLAIN + SHARE * sum(seconds for seconds, _ in steps)
    last = max(0.0, -won[-1]) if won else 0.0
    assert -sum(won) <= risked + last + 1e-9


@given(STEPS, st.lists(st.floats(0.001, 0.02), min_size=50, max_size=100))
def test_what_was_won_is_not_for_losing_all_of_it(
    steps: list[tuple[float, float]], losses: list[float]
) -> None:
    """From any moment on: no more than what is remembered, a share of the time, and one step."""
    ledger, _ = run([*steps, (0.01, 100.0)])
    lost = spent = 0.0
    for loss in losses:
        if ledger.allows:
            lost, spent = lost + loss, spent + PLAIN
            ledger.worked(PLAIN, PLAIN)
            ledger.book(-loss, PLAIN)
    assert lost <= MOST * PLAIN + SHARE * spent + max(losses) + 1e-9


def test_time_brings_another_chance() -> None:
    ledger, _ = run([(PLAIN, -1.0)])
    steps = 0
    while not ledger.allows:
        ledger.worked(PLAIN, PLAIN)
        steps += 1
    owed = (1.0 - START * PLAIN - SHARE * PLAIN) / (SHARE * PLAIN)
    assert owed - 1 <= steps <= owed + 1


def test_before_anything_is_known_a_first_one_is_allowed() -> None:
    assert Ledger().allows
    ledger = Ledger()
    ledger.book(-100.0, PLAIN)
    assert not ledger.allows
