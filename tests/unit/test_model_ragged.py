"""The right-ragged cache against lists of tokens: no model, every row's keys and values known."""

from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.base import scaled_dot_product_attention

from punie_model_host.kv_arrays import LayerKV
from punie_model_host.profile import KVQuantization
from punie_model_host.ragged import BLOCK, Frame, RaggedKVCache, blocks, ragged_cache
from punie_model_host.sequences import cache_of

HEADS, DIM, VALUE_DIM = 2, 64, 32
KINDS = [None, KVQuantization(4, 32), KVQuantization(5, 32), KVQuantization(8, 32)]


@dataclass
class Bench:
    """A cache beside the arrays, (heads, tokens, size), that each of its rows must hold."""

    seed: int = 0
    kind: KVQuantization | None = None
    value_dim: int = VALUE_DIM
    frame: Frame = field(default_factory=Frame)
    rows: list[list[np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache = ragged_cache(self.frame, self.kind)
        self.random = np.random.default_rng(self.seed)

    @property
    def lengths(self) -> list[int]:
        return [row[0].shape[1] for row in self.rows]

    def some(self, rows: int, tokens: int) -> tuple[mx.array, mx.array]:
        shape = (rows, HEADS, tokens)
        keys, values = (self.random.normal(size=(*shape, dim)) for dim in (DIM, self.value_dim))
        return mx.array(keys.astype(np.float32)), mx.array(values.astype(np.float32))

    def stored(self, *keys_and_values: mx.array) -> LayerKV:
        """Return keys and values as the cache keeps them."""
        if (kind := self.kind) is None:
            return keys_and_values
        packed = [mx.quantize(a, kind.group_size, kind.bits) for a in keys_and_values]
        return tuple(array for one in packed for array in one)

    def join(self, tokens: int) -> None:
        layer = self.stored(*self.some(1, tokens + 1))
        layer = tuple(array[:, :, :tokens] for array in layer)  # MLX packs no empty arrays
        longest = max([tokens, *self.lengths])
        self.cache.reserve(len(self.rows) + 1, longest + 1, layer)
        self.cache.put(len(self.rows), layer)
        self.rows.append([np.array(array[0]) for array in layer])

    def leave(self, place: int) -> None:
        last = self.rows.pop()
        if place < len(self.rows):
            self.cache.move(len(self.rows), place, last[0].shape[1])
            self.rows[place] = last
        self.cache.clear(len(self.rows))

    def cut(self, place: int, tokens: int) -> None:
        """Take tokens of a row back."""
        left = max(0, self.lengths[place] - tokens)
        self.rows[place] = [array[:, :left] for array in self.rows[place]]

    def forward(self, tokens: int) -> LayerKV:
        """Write so many new tokens to all rows and check what attention gets to see."""
        new = self.some(len(self.rows), tokens)
        self.frame.set(self.lengths)
        mask = self.cache.make_mask(tokens, return_array=True)
        found = self.cache.update_and_fetch(*new)
        before, added = self.lengths, [np.array(array) for array in self.stored(*new)]
        self.rows = [
            [np.concatenate([old, new[at]], 1) for old, new in zip(row, added, strict=True)]
            for at, row in enumerate(self.rows)
        ]
        seen: LayerKV = found if self.kind is None else (*found[0], *found[1])
        assert {array.shape[2] for array in seen} == {max(self.lengths)}
        for at, row in enumerate(self.rows):
            for array, wanted in zip(seen, row, strict=True):
                np.testing.assert_array_equal(np.array(array[at, :, : wanted.shape[1]]), wanted)
        self.check_mask(mask, before, tokens, max(self.lengths))
        return seen

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
        for at, row in enumerate(self.rows):
            taken = self.cache.take(at, 0, self.lengths[at])
            for array, wanted in zip(taken, row, strict=True):
                np.testing.assert_array_equal(np.array(array[0]), wanted)


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind.bits} bits" if kind else "plain")
def kind(request) -> KVQuantization | None:
    return request.param


LENGTHS = st.integers(0, 40) | st.sampled_from([BLOCK - 2, BLOCK - 1, BLOCK, BLOCK + 1])
MOVES = st.lists(
    st.tuples(st.just("join"), LENGTHS)
    | st.tuples(st.just("leave"), st.integers(0, 15))
    | st.tuples(st.just("forward"), st.integers(1, 3))
    | st.tuples(st.just("cut"), st.integers(0, 100))
    | st.tuples(st.just("shrink"), st.just(0)),
    max_size=30,
)


@given(MOVES, st.integers(0, 1000), st.sampled_from(KINDS))
def test_rows_hold_their_own_tokens_whatever_joins_and_leaves(moves, seed, kind):
    bench = Bench(seed, kind)
    bench.join(3)
    for move, number in moves:
        match move:
            case "join" if len(bench.rows) < 16:
                bench.join(number)
            case "leave" if len(bench.rows) > 1:
                bench.leave(number % len(bench.rows))
            case "forward":
                bench.forward(number)
            case "cut":
                bench.cut(number % len(bench.rows), number % 5)
            case "shrink":
                bench.cache.shrink(len(bench.rows), blocks(max(bench.lengths) + 1))
    bench.check()


@pytest.mark.parametrize("start", [BLOCK - 2, BLOCK - 1, BLOCK])
def test_buffers_grow_over_the_border_of_a_block(start: int, kind: KVQuantization | None):
    bench = Bench(kind=kind)
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
    new = bench.some(len(bench.rows), 1)
    bench.frame.set(bench.lengths)
    mask = bench.cache.make_mask(1)
    assert not isinstance(mask, str)
    keys, values = bench.cache.update_and_fetch(*new)
    query = mx.ones((len(bench.rows), HEADS, 1, DIM))
    return np.array(scaled_dot_product_attention(query, keys, values, bench.cache, 1.0, mask))


def broken(bench: Bench, tokens: int, poison: float) -> LayerKV:
    """Return what the cache keeps of a row that has no numbers."""
    shape = (1, HEADS, tokens)
    return bench.stored(mx.full((*shape, DIM), poison), mx.full((*shape, VALUE_DIM), poison))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("heir", ["moved", "joined"])
def test_what_a_broken_row_leaves_behind_hurts_nobody_who_gets_its_place(heir, poison, kind):
    bench = Bench(kind=kind)
    for tokens in (28, 25, 5)[: 3 if heir == "moved" else 2]:
        bench.join(tokens)
    bench.cache.put(1, broken(bench, 25, poison))
    bench.leave(1)
    if heir == "joined":
        bench.join(5)
    assert np.isfinite(attend(bench)).all()


def test_a_broken_row_hurts_nobody_beside_it(kind):
    bench = Bench(kind=kind)
    for tokens in (4, 20, 9):
        bench.join(tokens)
    bench.cache.put(1, broken(bench, 20, np.nan))
    found = attend(bench)
    assert np.isfinite(found[[0, 2]]).all()
    assert np.isnan(found[1]).all()


def test_a_slice_taken_out_stays_as_it_was_when_the_buffer_goes_on(kind):
    bench = Bench(kind=kind)
    for tokens in (4, 20):
        bench.join(tokens)
    taken = bench.cache.take(0, 0, 4)  # lazy: nothing evaluated yet
    expected = bench.rows[0]
    bench.leave(0)
    bench.forward(1)
    for array, wanted in zip(taken, expected, strict=True):
        np.testing.assert_array_equal(np.array(array[0]), wanted)


@pytest.mark.parametrize("other", KINDS[1:])
@pytest.mark.parametrize("tokens", [1, 3])
def test_attention_finds_in_packed_rows_what_it_finds_in_each_alone(other, tokens):
    bench = Bench(kind=other, value_dim=DIM)
    for length in (4, 20, 9):
        bench.join(length)
    before = [[array.copy() for array in row] for row in bench.rows]
    new = bench.some(3, tokens)
    query = mx.array(bench.random.normal(size=(3, 2 * HEADS, tokens, DIM)).astype(np.float32))
    bench.frame.set(bench.lengths)
    mask = bench.cache.make_mask(tokens)
    assert isinstance(mask, mx.array)
    keys, values = bench.cache.update_and_fetch(*new)
    its = query + 0  # mlx-lm scales what it gets in place
    together = scaled_dot_product_attention(its, keys, values, bench.cache, 0.2, mask)
    for at, row in enumerate(before):
        alone = cache_of(tuple(mx.array(array[None]) for array in row), other)
        mask = alone.make_mask(tokens, return_array=False, window_size=None)
        keys, values = alone.update_and_fetch(*(array[at : at + 1] for array in new))
        found = scaled_dot_product_attention(query[at : at + 1], keys, values, alone, 0.2, mask)
        np.testing.assert_allclose(np.array(found[0]), np.array(together[at]), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [(None, 32), (KVQuantization(8, 32), 8 + 2), (KVQuantization(5, 32), 5 + 2)],
)
def test_nothing_left_holds_no_memory(kind: KVQuantization | None, bits: int):
    """A scale and a bias of 32 bits for 32 numbers."""
    bench = Bench(kind=kind)
    bench.join(20)
    assert bench.cache.nbytes == HEADS * BLOCK * (DIM + VALUE_DIM) * bits // 8
    bench.cache.shrink(0, 0)
    assert bench.cache.nbytes == 0
    assert bench.cache.room == (0, 0)
