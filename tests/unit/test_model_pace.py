"""How many tokens of prompts a step has: simulated machines."""

import pytest

from punie_model_host.pace import GOAL, LEAST, MOST, Pace


def settle(pace: Pace, per_token: float, decode: float, *, rows: int = 4) -> None:
    """Take steps of a machine that needs so long, half of them without a prompt."""
    for _ in range(20):
        pace.step(decode, rows=rows, prefilled=0)
        tokens = pace.tokens
        pace.step(tokens * per_token + (decode if rows else 0.0), rows=rows, prefilled=tokens)


@pytest.mark.parametrize(("per_token", "decode"), [(0.001, 0.04), (0.002, 0.1), (0.0004, 0.0)])
def test_prompts_take_what_a_stream_can_bear(per_token: float, decode: float) -> None:
    pace = Pace(128)
    settle(pace, per_token, decode)
    assert GOAL * 0.8 <= pace.tokens * per_token <= GOAL * 1.01


def test_it_follows_a_context_that_grows() -> None:
    pace = Pace(128)
    settle(pace, 0.0005, 0.03)
    fast = pace.tokens
    settle(pace, 0.003, 0.03)
    assert LEAST <= pace.tokens < fast / 4


@pytest.mark.parametrize(("per_token", "tokens"), [(1.0, LEAST), (1e-9, MOST), (0.0, MOST)])
def test_a_step_is_neither_empty_nor_endless(per_token: float, tokens: int) -> None:
    pace = Pace(128)
    settle(pace, per_token, 0.01)
    assert pace.tokens == tokens


def test_a_slow_first_step_is_forgotten() -> None:
    pace = Pace(128)
    pace.step(30.0, rows=0, prefilled=128)
    assert pace.tokens == LEAST
    settle(pace, 0.001, 0.02, rows=0)
    assert pace.tokens * 0.001 >= GOAL * 0.8


def test_a_chunk_too_small_to_measure_changes_nothing() -> None:
    pace = Pace(128)
    pace.step(5.0, rows=3, prefilled=3)
    assert pace.tokens == 128
