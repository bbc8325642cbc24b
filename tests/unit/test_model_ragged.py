"""The right-ragged cache against lists of tokens: no model, every row's keys and values known."""

from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_model_host.ragged import BLOCK, Frame, RaggedKVCache, blocks

HEADS, DIM, VALUE_DIM = 2, 3, 5


@dataclass
class Bench:
    """A cache beside what each of its rows must hold."""

    seed: int = 0
    frame: Frame = field(default_factory=Frame)
    rows: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache = RaggedKVCache(self.frame)
        self.random = np.random.default_rng(self.seed)

    @property
    def lengths(self) -> list[int]:
        return [keys.shape[1] for keys, _ in self.rows]

    def some(self, rows: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        shape = (rows, HEADS, tokens)
        keys, values = (self.random.normal(size=(*shape, dim)) for dim in (DIM, VALUE_DIM))
        return keys.astype(np.float32), values.astype(np.float32)

    def join(self, tokens: int) -> None:
        keys, values = self.some(1, tokens)
        longest = max([tokens, *self.lengths])
        self.cache.reserve(len(self.rows) + 1, longest + 1, mx.array(keys), mx.array(values))
        self.cache.put(len(self.rows), mx.array(keys), mx.array(values))
        self.rows.append((keys[0], values[0]))

    def leave(self, place: int) -> None:
        last = self.rows.pop()
        if place < len(self.rows):
            self.cache.move(len(self.rows), place, last[0].shape[1])
            self.rows[place] = last
        self.cache.clear(len(self.rows))

    def forward(self, tokens: int) -> tuple[mx.array, mx.array]:
        """Write so many new tokens to all rows and check what attention gets to see."""
        new_keys, new_values = self.some(len(self.rows), tokens)
        self.frame.set(self.lengths)
        mask = self.cache.make_mask(tokens, return_array=True)
        keys, values = self.cache.update_and_fetch(mx.array(new_keys), mx.array(new_values))
        before = self.lengths
        self.rows = [
            (np.concatenate([k, new_k], 1), np.concatenate([v, new_v], 1))
            for (k, v), new_k, new_v in zip(self.rows, new_keys, new_values, strict=True)
        ]
        assert keys.shape[2] == values.shape[2] == max(self.lengths)
        for row, length in enumerate(self.lengths):
            np.testing.assert_array_equal(np.array(keys[row, :, :length]), self.rows[row][0])
            np.testing.assert_array_equal(np.array(values[row, :, :length]), self.rows[row][1])
        self.check_mask(mask, before, tokens, keys.shape[2])
        return keys, values

    def check_mask(
        self, mask: mx.array | str | None, before: list[int], tokens: int, keys: int
    ) -> None:
        if mask is None:
            assert tokens == 1
            assert set(before) == {keys - 1}
            return
        assert isinstance(mask, mx.array)
        seen = np.broadcast_to(np.array(mask), (len(before), 1, tokens, keys))
        for row, length in enumerate(before):
            for token in range(tokens):
                visible = np.flatnonzero(seen[row, 0, token])
                np.testing.assert_array_equal(visible, np.arange(length + token + 1))

    def check(self) -> None:
        """Compare every row, taken out."""
        for row, (keys, values) in enumerate(self.rows):
            got = self.cache.take(row, 0, keys.shape[1])
            np.testing.assert_array_equal(np.array(got[0][0]), keys)
            np.testing.assert_array_equal(np.array(got[1][0]), values)


LENGTHS = st.integers(0, 40) | st.sampled_from([BLOCK - 2, BLOCK - 1, BLOCK, BLOCK + 1])
MOVES = st.lists(
    st.tuples(st.just("join"), LENGTHS)
    | st.tuples(st.just("leave"), st.integers(0, 15))
    | st.tuples(st.just("forward"), st.integers(1, 3))
    | st.tuples(st.just("shrink"), st.just(0)),
    max_size=30,
)


@given(MOVES, st.integers(0, 1000))
def test_rows_hold_their_own_tokens_whatever_joins_and_leaves(moves, seed):
    bench = Bench(seed)
    bench.join(3)
    for move, number in moves:
        match move:
            case "join" if len(bench.rows) < 16:
                bench.join(number)
            case "leave" if len(bench.rows) > 1:
                bench.leave(number % len(bench.rows))
            case "forward":
                bench.forward(number)
            case "shrink":
                bench.cache.shrink(len(bench.rows), blocks(max(bench.lengths) + 1))
    bench.check()


@pytest.mark.parametrize("start", [BLOCK - 2, BLOCK - 1, BLOCK])
def test_buffers_grow_over_the_border_of_a_block(start: int):
    bench = Bench()
    bench.join(start)
    bench.join(3)
    for _ in range(4):
        bench.forward(1)
    bench.check()


def test_sliced_masks_agree_with_even_ones():
    even, uneven = Frame(), Frame()
    even.set([9, 9])
    uneven.set([9, 4])
    for window in (None, 3, 100):
        one = RaggedKVCache(even).make_mask(2, return_array=True, window_size=window)
        two = RaggedKVCache(uneven).make_mask(2, return_array=True, window_size=window)
        assert isinstance(one, mx.array)
        assert isinstance(two, mx.array)
        np.testing.assert_array_equal(np.array(one), np.array(two)[0, 0])
    mask = RaggedKVCache(uneven).make_mask(2, window_size=3)
    assert isinstance(mask, mx.array)
    seen = [np.flatnonzero(line).tolist() for line in np.array(mask)[1, 0]]
    assert seen == [[2, 3, 4], [3, 4, 5]]


def attend(bench: Bench) -> np.ndarray:
    """Return what attention of one new token finds in each row."""
    keys, values = bench.some(len(bench.rows), 1)
    bench.frame.set(bench.lengths)
    mask = bench.cache.make_mask(1)
    seen, found = bench.cache.update_and_fetch(mx.array(keys), mx.array(values))
    query = mx.ones((len(bench.rows), HEADS, 1, DIM))
    out = mx.fast.scaled_dot_product_attention(query, seen, found[..., :DIM], scale=1.0, mask=mask)
    return np.array(out)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("heir", ["moved", "joined"])
def test_what_a_broken_row_leaves_behind_hurts_nobody_who_gets_its_place(heir: str, poison: float):
    bench = Bench()
    for tokens in (28, 25, 5)[: 3 if heir == "moved" else 2]:
        bench.join(tokens)
    broken = mx.full((1, HEADS, 25, DIM), poison), mx.full((1, HEADS, 25, VALUE_DIM), poison)
    bench.cache.put(1, *broken)
    bench.leave(1)
    if heir == "joined":
        bench.join(5)
    assert np.isfinite(attend(bench)).all()


def test_a_broken_row_hurts_nobody_beside_it():
    bench = Bench()
    for tokens in (4, 20, 9):
        bench.join(tokens)
    broken = np.full((1, HEADS, 20, DIM), np.nan), np.full((1, HEADS, 20, VALUE_DIM), np.nan)
    bench.cache.put(1, *map(mx.array, broken))
    found = attend(bench)
    assert np.isfinite(found[[0, 2]]).all()
    assert np.isnan(found[1]).all()


def test_a_slice_taken_out_stays_as_it_was_when_the_buffer_goes_on():
    bench = Bench()
    for tokens in (4, 20):
        bench.join(tokens)
    keys, values = bench.cache.take(0, 0, 4)  # lazy: nothing evaluated yet
    expected = bench.rows[0]
    bench.leave(0)
    bench.forward(1)
    np.testing.assert_array_equal(np.array(keys[0]), expected[0])
    np.testing.assert_array_equal(np.array(values[0]), expected[1])


def test_nothing_left_holds_no_memory():
    bench = Bench()
    bench.join(20)
    assert bench.cache.nbytes == HEADS * BLOCK * (DIM + VALUE_DIM) * 4
    bench.cache.shrink(0, 0)
    assert bench.cache.nbytes == 0
