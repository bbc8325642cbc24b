"""The prefix cache: against a plain model, and each promise by itself."""

import gc
import random
import shutil
import tempfile
from array import array
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from mlx_lm import load
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache, make_prompt_cache

from punie_model_host.prefix_cache import PrefixCache
from punie_model_host.token_trie import MAX_SPAN, Node, common_prefix, encode, walk
from tests.support.kv import (
    TOKEN_NBYTES,
    check_trie,
    check_values,
    common,
    files_of,
    kv,
    open_tier,
    reader,
)
from tests.support.tiny_model import make_tiny_model

ROOMY = 1 << 30
runs = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 2, 3, 100, 255, 256])), max_size=5)
sequences = runs.map(lambda pairs: [token for token, times in pairs for _ in range(times)])


class Against(RuleBasedStateMachine):
    """The cache with its tier against the list of all that was put."""

    packed = False

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.put_so_far: list[list[int]] = []
        self.exact = True
        """Nothing was lost yet."""
        self.now = 0.0

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(
        budget=st.sampled_from([0, 40, 300, 700, 1 << 20]), disk=st.sampled_from([0, 20, 300])
    )
    def begin(self, budget: int, disk: int) -> None:
        self.budget = budget * TOKEN_NBYTES
        self.disk = ROOMY if disk == 300 else disk * 1000
        self.roomy = budget == 1 << 20
        self.start()

    def start(self) -> None:
        self.cache = PrefixCache(self.budget, tier=open_tier(self.folder, self.disk), quiet=10.0)

    @rule(tokens=sequences, pinned=st.booleans())
    def put(self, tokens: list[int], pinned: bool) -> None:
        self.cache.put(tokens, reader(tokens, packed=self.packed), pinned=pinned)
        self.put_so_far.append(tokens)
        self.exact &= self.roomy
        if pinned and self.budget >= 2 * len(tokens) * TOKEN_NBYTES and self.roomy:
            assert self.cache.pinned_bytes >= len(tokens) * TOKEN_NBYTES

    @rule(tokens=sequences, more=sequences)
    def continue_one(self, tokens: list[int], more: list[int]) -> None:
        base = self.put_so_far[-1] if self.put_so_far else []
        self.put(base[: len(tokens)] + more, pinned=False)

    @rule(tokens=sequences)
    def match(self, tokens: list[int]) -> None:
        length = self.cache.match(array("I", [*tokens, 0]))
        best = max((common(tokens, kept) for kept in self.put_so_far), default=0)
        assert length == best if self.exact else length <= best

    @rule(tokens=sequences, limit=st.sampled_from([0, 5000, 1 << 30]))
    def borrow(self, tokens: list[int], limit: int) -> None:
        tokens = [*tokens, 0]
        length = self.cache.match(tokens)
        for _ in range(100):
            if not self.cache.warm(tokens, limit):
                break
        else:
            pytest.fail("warming does not end")
        lease = self.cache.lease(tokens)
        assert lease.length == length if self.roomy else lease.length <= length
        check_values(lease.layers, tokens[: lease.length])

    @rule(budget=st.sampled_from([0, 50, 400]))
    def resize_and_back(self, budget: int) -> None:
        self.cache.resize(budget * TOKEN_NBYTES)
        assert self.cache.nbytes <= budget * TOKEN_NBYTES
        self.cache.resize(self.budget)
        self.exact = False

    @rule()
    def rest(self) -> None:
        self.now += 1
        self.cache.idle(self.now)
        self.now += 20
        self.cache.idle(self.now)

    @rule()
    def stop_and_start(self) -> None:
        self.cache.flush(lambda: False)
        self.exact &= self.disk == ROOMY
        self.start()

    @rule()
    def kill_and_start(self) -> None:
        self.exact = False
        self.start()

    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        if not (files := files_of(self.folder)):
            return
        file = data.draw(st.sampled_from(files))
        content = bytearray(file.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content)
        self.exact = self.roomy = False

    @invariant()
    def consistent(self) -> None:
        if not hasattr(self, "cache"):
            return
        root, kept = self.cache._root, list(self.cache._residents)
        check_trie(root)
        warm = [node for node in root.below() if node.layers is not None]
        assert set(map(id, warm)) == set(map(id, kept))
        assert self.cache.nbytes == sum(node.length for node in warm) * TOKEN_NBYTES <= self.budget
        pinned = sum(node.length for node in warm if node.pinned) * TOKEN_NBYTES
        assert self.cache.pinned_bytes == pinned <= self.budget // 2
        assert self.cache.disk_bytes == sum(file.stat().st_size for file in files_of(self.folder))
        assert self.cache.disk_bytes <= self.disk
        cold = {node.stored for node in root.below()} - {None}
        assert len(cold) == len(files_of(self.folder))


Against.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, suppress_health_check=list(HealthCheck), deadline=None
)


TestAgainst = pytest.mark.timeout(120)(Against.TestCase)


class AgainstPacked(Against):
    """The same with six arrays a layer."""

    packed = True


AgainstPacked.TestCase.settings = settings(Against.TestCase.settings, max_examples=20)


TestAgainstPacked = pytest.mark.timeout(120)(AgainstPacked.TestCase)


# the trie


@given(st.binary(max_size=50), st.binary(max_size=50), st.binary(max_size=9))
def test_common_prefix(shared: bytes, a: bytes, b: bytes) -> None:
    size = common_prefix(shared + a, shared + b)
    assert (shared + a)[:size] == (shared + b)[:size]
    assert (shared + a)[size : size + 1] != (shared + b)[size : size + 1] or size == min(
        len(shared + a), len(shared + b)
    )


@given(st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=6), st.integers(1, 5))
def test_walks_and_splits(sequences: list[list[int]], span: int) -> None:
    root = Node(b"")
    for tokens in sequences:
        path, at = walk(root, encode(tokens))
        node = path[-1] if path else root
        if surplus := sum(n.length for n in path) - at:
            node = node.split(node.length - surplus)
        while at < len(tokens):
            child = Node(encode(tokens[at : at + span]))
            node.add(child)
            node, at = child, at + span
        for kept in sequences[: sequences.index(tokens) + 1]:
            assert walk(root, encode(kept))[1] == len(kept)


# memory


def test_a_shared_beginning_stands_once() -> None:
    cache = PrefixCache(ROOMY)
    shared = list(range(1000))
    for last in range(20):
        tokens = [*shared, 5000 + last, 1, 2]
        cache.put(tokens, reader(tokens))
    assert cache.nbytes == (1000 + 20 * 3) * TOKEN_NBYTES


def _active_memory() -> int:
    gc.collect()  # what other tests left in cycles
    return mx.get_active_memory()


@pytest.mark.parametrize("heads", [1, 4])
def test_memory_is_what_it_says(heads: int) -> None:
    """No slice keeps the array it was cut from alive."""
    before = _active_memory()
    cache = PrefixCache(ROOMY)
    for last in range(3):
        tokens = [*range(650 + 20 * last), *range(9000 + 100 * last, 9100 + 100 * last)]
        big = mx.zeros((1, heads, 20_000, 256))
        mx.eval(big)
        cache.put(tokens, lambda a, b, big=big: [(big[:, :, a:b], big[:, :, a:b])])
        del big
    held = _active_memory() - before
    assert cache.nbytes == (690 + 3 * 100) * heads * 256 * 4 * 2
    assert cache.nbytes * 0.99 <= held <= cache.nbytes * 1.01


def test_growing_by_little_leaves_no_splinters() -> None:
    cache = PrefixCache(ROOMY)
    tokens: list[int] = []
    for _ in range(100):
        tokens += range(len(tokens), len(tokens) + 7)
        cache.put(tokens, reader(tokens))
    assert len(list(cache._root.below())) == -(-700 // MAX_SPAN)
    check_values(cache.lease([*tokens, 0]).layers, tokens)


def test_what_is_used_stays() -> None:
    """Least recently used first, the leaf before what it continues."""
    cache = PrefixCache(350 * TOKEN_NBYTES)
    first, second, third = ([n] * 100 for n in (1, 2, 3))
    for tokens in (first, second, third):
        cache.put(tokens, reader(tokens))
    cache.match([*first, 0])
    fourth = [4] * 100
    cache.put(fourth, reader(fourth))
    assert [cache.match([*tokens, 0]) for tokens in (first, second, third, fourth)] == [
        100,
        0,
        100,
        100,
    ]


def test_a_leaf_goes_before_its_beginning() -> None:
    cache = PrefixCache(600 * TOKEN_NBYTES)
    system = [9] * MAX_SPAN
    for n in (1, 2, 3, 4, 5):
        tokens = system + [n] * 100
        cache.put(tokens, reader(tokens))
    lengths = [cache.match([*system, *[n] * 100, 0]) - MAX_SPAN for n in (1, 2, 3, 4, 5)]
    assert lengths == [0, 0, 100, 100, 100]


def test_an_entry_over_the_budget_keeps_its_beginning() -> None:
    cache = PrefixCache(300 * TOKEN_NBYTES)
    tokens = list(range(1000))
    cache.put(tokens, reader(tokens))
    assert cache.nbytes == 300 * TOKEN_NBYTES
    lease = cache.lease(tokens)
    assert lease.length == 300
    check_values(lease.layers, tokens[:300])


def test_pinned_stays_whatever_else_is_used() -> None:
    cache = PrefixCache(4000 * TOKEN_NBYTES)
    system = [7] * 900
    cache.put(system, reader(system), pinned=True)
    for n in range(20):
        tokens = [100 + n] * 500
        cache.put(tokens, reader(tokens))
    assert cache.match([*system, 0]) == 900
    assert cache.nbytes <= 4000 * TOKEN_NBYTES


def test_pins_have_a_quarter_of_the_budget_and_the_oldest_goes_first() -> None:
    cache = PrefixCache(4000 * TOKEN_NBYTES)
    for n in range(20):
        tokens = [100 + n] * 256
        cache.put(tokens, reader(tokens), pinned=True)
        assert cache.pinned_bytes == min(n + 1, 3) * 256 * TOKEN_NBYTES
    for n in range(20):
        tokens = [200 + n] * 500
        cache.put(tokens, reader(tokens))
    kept = [n for n in range(20) if cache.match([*[100 + n] * 256, 0]) == 256]
    assert kept == [17, 18, 19]
    cache.resize(500 * TOKEN_NBYTES)
    assert cache.nbytes <= 500 * TOKEN_NBYTES
    assert cache.pinned_bytes <= 125 * TOKEN_NBYTES
    cache.resize(0)
    assert (cache.nbytes, cache.pinned_bytes) == (0, 0)


def test_what_continues_a_pinned_path_leaves_it_pinned() -> None:
    cache = PrefixCache(1000 * TOKEN_NBYTES)
    system = [7] * 100
    cache.put(system, reader(system), pinned=True)
    longer = [*system, *[8] * 50]
    cache.put(longer, reader(longer))
    assert cache.pinned_bytes == 100 * TOKEN_NBYTES
    for n in range(9):
        cache.put([n] * 500, reader([n] * 500))
    assert cache.match([*longer, 0]) == 100


def test_no_more_is_pinned_than_was_asked_for() -> None:
    cache = PrefixCache(1000 * TOKEN_NBYTES)
    tokens = [*[7] * 100, *[8] * 100]
    cache.put(tokens, reader(tokens))
    cache.put(tokens[:100], reader(tokens[:100]), pinned=True)
    assert cache.pinned_bytes == 100 * TOKEN_NBYTES
    check_values(cache.lease([*tokens, 0]).layers, tokens)
    for n in range(9):
        cache.put([n] * 500, reader([n] * 500))
    assert cache.match([*tokens, 0]) == 100


def test_a_pinned_path_loses_its_end_first() -> None:
    cache = PrefixCache(4000 * TOKEN_NBYTES)
    system = [7] * 1000
    cache.put(system, reader(system), pinned=True)
    cache.resize(2400 * TOKEN_NBYTES)
    assert cache.pinned_bytes == 2 * MAX_SPAN * TOKEN_NBYTES
    check_trie(cache._root)
    for n in range(9):
        cache.put([n] * 500, reader([n] * 500))
    assert cache.match([*system, 0]) >= 2 * MAX_SPAN


def test_the_last_token_is_left_to_compute() -> None:
    cache = PrefixCache(ROOMY)
    tokens = [1, 2, 3]
    cache.put(tokens, reader(tokens))
    assert cache.match(tokens) == 2
    assert cache.lease(tokens).length == 2
    assert cache.match([1]) == cache.match([]) == 0


def test_a_lease_outlives_what_it_was_taken_from() -> None:
    cache = PrefixCache(ROOMY)
    tokens = list(range(500))
    cache.put(tokens, reader(tokens))
    lease = cache.lease([*tokens, 0])
    cache.clear()
    assert cache.nbytes == 0
    check_values(lease.layers, tokens)


@pytest.mark.parametrize("count", [200, 256, 500])
@pytest.mark.parametrize("packed", [False, True])
def test_a_lease_is_the_borrowers(count: int, packed: bool) -> None:
    """Assigned into, in place: neither the cache nor another borrower sees it."""
    cache = PrefixCache(ROOMY)
    tokens = list(range(count))
    cache.put(tokens, reader(tokens, packed=packed))
    other = cache.lease([*tokens, 0])
    mine = cache.lease([*tokens, 0])
    assert mine.layers is not None
    for layer in mine.layers:
        for one in layer:
            one[:, :, 3] = 0
    mx.eval(mine.layers)
    check_values(other.layers, tokens)
    check_values(cache.lease([*tokens, 0]).layers, tokens)


def test_what_was_put_is_the_caches() -> None:
    """The arrays read from may be assigned into afterwards."""
    cache = PrefixCache(ROOMY)
    tokens = list(range(200))
    mine = kv(tokens)
    cache.put(tokens, lambda _start, _stop: mine)
    for keys, _ in mine:
        keys[:] = 0.0
    check_values(cache.lease([*tokens, 0]).layers, tokens)


def test_a_model_goes_on_from_a_lease(tmp_path: Path) -> None:
    """Keys and values from the cache are as good as computed ones."""
    model, *_ = load(str(make_tiny_model(tmp_path / "m")), lazy=False)
    rng = random.Random(3)
    tokens = [rng.randrange(200) for _ in range(400)]
    own = make_prompt_cache(model)
    wanted = model(mx.array([tokens]), cache=own)[0, 300:]
    cache = PrefixCache(ROOMY)
    cache.put(tokens, lambda a, b: [(c.keys[:, :, a:b], c.values[:, :, a:b]) for c in own])
    lease = cache.lease([*tokens[:300], 0])
    assert lease.length == 300
    assert lease.layers is not None
    borrowed = make_prompt_cache(model)
    for layer, (keys, values) in zip(borrowed, lease.layers, strict=True):
        layer.update_and_fetch(keys, values)
    got = model(mx.array([tokens[300:]]), cache=borrowed)[0]
    assert mx.allclose(got, wanted, atol=1e-4).item()


def test_a_read_that_fails_leaves_the_cache_as_it_was() -> None:
    cache = PrefixCache(ROOMY)
    tokens = list(range(2000))
    cache.put(tokens[:MAX_SPAN], reader(tokens))

    def failing(start: int, stop: int):
        if start >= 1000:
            raise MemoryError("no more")
        return reader(tokens)(start, stop)

    with pytest.raises(MemoryError):
        cache.put(tokens, failing)
    check_trie(cache._root)
    assert cache.nbytes == MAX_SPAN * TOKEN_NBYTES
    assert cache.match(tokens) == MAX_SPAN


def test_lookups_and_hits_are_counted() -> None:
    cache = PrefixCache(ROOMY)
    cache.put([1, 2], reader([1, 2]))
    cache.lease([1, 2, 3])
    cache.lease([9, 9])
    assert (cache.lookups, cache.hits) == (2, 1)


def test_memory_does_not_leak() -> None:
    """A thousand conversations later, what is held is what the budget says."""
    rng = random.Random(1)
    before = _active_memory()
    cache = PrefixCache(2000 * TOKEN_NBYTES)
    for _ in range(300):
        tokens = [rng.randrange(3) for _ in range(rng.randrange(1, 400))]
        cache.put(tokens, reader(tokens))
        cache.lease(tokens)
    assert _active_memory() - before <= 2000 * TOKEN_NBYTES * 1.25
    check_trie(cache._root)


# states that cannot be cut


def _state(tokens: list[int]) -> list:
    """Caches as a hybrid model has them, after `tokens`; each says how many it has seen."""
    rotating, arrays, plain = RotatingKVCache(8), ArraysCache(1), KVCache()
    for token in tokens:
        one = mx.full((1, 1, 1, 2), float(token))
        rotating.update_and_fetch(one, one)
        plain.update_and_fetch(one, one)
    arrays[0] = mx.array([[float(sum(tokens))]])
    return [rotating, arrays, plain]


def _state_values(layers: list) -> tuple:
    return layers[1][0].item(), layers[2].keys[0, 0, : layers[2].offset, 0].tolist()


def test_the_longest_state_that_a_prompt_continues() -> None:
    cache = PrefixCache(ROOMY, sliceable=False)
    for tokens in ([1, 2], [1, 2, 3, 4], [1, 2, 9]):
        cache.put_state(tokens, _state(tokens))
    assert cache.match([1, 2, 3, 4]) == 2
    length, layers = cache.lease_state([1, 2, 3, 4, 5])
    assert length == 4
    assert layers is not None
    assert _state_values(layers) == (10.0, [1.0, 2.0, 3.0, 4.0])
    assert cache.lease_state([5, 5]) == (0, None)
    assert (cache.lookups, cache.hits) == (2, 1)


def test_a_state_is_not_changed_by_who_borrowed_it() -> None:
    cache = PrefixCache(ROOMY, sliceable=False)
    mine = _state([1, 2, 3])
    cache.put_state([1, 2, 3], mine)
    for _ in range(3):
        length, layers = cache.lease_state([1, 2, 3, 4])
        assert length == 3
        assert layers is not None
        assert _state_values(layers) == (6.0, [1.0, 2.0, 3.0])
        for owner in (layers, mine):
            one = mx.full((1, 1, 1, 2), -1.0)
            owner[0].update_and_fetch(one, one)
            owner[2].update_and_fetch(one, one)
            owner[1][0] = mx.array([[0.0]])


def test_states_keep_to_the_budget() -> None:
    size = sum(layer.nbytes for layer in _state([1]))
    cache = PrefixCache(3 * size, sliceable=False)
    for n in range(5):
        cache.put_state([n], _state([n]))
        cache.match([0, 0])
        assert cache.nbytes <= 3 * size
    assert [cache.match([n, 0]) for n in range(5)] == [1, 0, 0, 1, 1]
    cache.put_state([8], [*_state([8]), *_state([8]), *_state([8]), *_state([8])])
    assert cache.match([8, 0]) == 0
    cache.resize(size)
    assert cache.nbytes <= size
    cache.clear()
    assert cache.nbytes == 0
