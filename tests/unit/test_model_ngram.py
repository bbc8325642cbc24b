"""Drafts from a request's own tokens: found as a plain search finds them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from punie_model_host.ngram import LONGEST, NOTHING, History, Match, find

TOKENS = st.integers(1, 4).flatmap(
    lambda size: st.lists(st.integers(0, size), max_size=120)
) | st.lists(st.integers(0, 2**32 - 1), max_size=30)


def search(tokens: list[int]) -> Match:
    """Look at every place, for as long as its tokens are those at the end."""
    best = NOTHING
    for end in range(len(tokens) - 1):
        length = 0
        while length < min(end + 1, LONGEST) and tokens[end - length] == tokens[-1 - length]:
            length += 1
        if length and length >= best.length:
            best = Match(end + 1, length)
    return best


def found(tokens: list[int]) -> Match:
    return find(np.array(tokens, dtype=np.uint32))


@given(TOKENS)
def test_the_longest_end_that_was_there_before_is_found_the_latest_such(tokens: list[int]) -> None:
    assert found(tokens) == search(tokens)


@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.lists(st.integers(0, 9), min_size=LONGEST - 3, max_size=LONGEST + 3),
    st.lists(st.integers(0, 3), max_size=40),
)
def test_long_matches_are_as_good_as_each_other(
    before: list[int], part: list[int], between: list[int]
) -> None:
    tokens = [*before, *part, *between, *part]
    assert found(tokens) == search(tokens)
    assert found(tokens).length >= min(LONGEST, len(part))


def test_a_tokens_own_place_is_none_before_it() -> None:
    assert found([]) == found([5]) == found([1, 2, 3]) == NOTHING
    assert found([7, 7]) == Match(1, 1)
    assert found([1, 2, 3, 1, 2]) == Match(2, 2)
    assert found([5] * 100) == Match(99, LONGEST)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50), st.integers(0, 3000))
def test_a_history_is_its_prompt_and_what_was_added(prompt: list[int], added: int) -> None:
    history = History(prompt)
    views = []
    for token in range(added):
        if token % 500 == 0:
            views.append((history.tokens, history.tokens.tolist()))
        history.append(token)
    assert history.tokens.tolist() == [*prompt, *range(added)]
    assert history.tokens.dtype == np.uint32
    for view, as_it_was in views:
        assert view.tolist() == as_it_was
