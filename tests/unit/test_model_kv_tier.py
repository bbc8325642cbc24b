"""The prefix cache's files: a restart is warm; what is written, when, and what has to go."""

import itertools
import json
import logging
import os
import stat
import time
from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest

from punie_model_host.kv_tier import HOUR, KVTier, fingerprint
from punie_model_host.prefix_cache import PrefixCache
from punie_model_host.profile import KVQuantization
from punie_model_host.token_trie import Node, encode, walk
from tests.support.kv import (
    FINGERPRINT,
    TOKEN_NBYTES,
    check_trie,
    check_values,
    files_of,
    open_tier,
    reader,
)
from tests.support.tiny_model import make_tiny_model

ROOMY = 1 << 30


class Clock:
    """Seconds since 1970, as a test says."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def never() -> bool:
    return False


def started(folder: Path, *, memory: int = ROOMY, **tier) -> PrefixCache:
    """Return the cache of a process that starts."""
    return PrefixCache(memory, tier=open_tier(folder, **tier), quiet=20.0)


def keep(cache: PrefixCache, *sequences: list[int], packed: bool = False) -> None:
    for tokens in sequences:
        cache.put(tokens, reader(tokens, packed=packed))


def borrowed(cache: PrefixCache, tokens: list[int]) -> int:
    """Warm and lease all of `tokens` that is there, check the values, return how many."""
    tokens = [*tokens, 0]
    while cache.warm(tokens, 1 << 20):
        pass
    lease = cache.lease(tokens)
    check_values(lease.layers, tokens[: lease.length])
    return lease.length


@pytest.mark.parametrize("packed", [False, True])
def test_a_restart_is_warm(tmp_path: Path, packed: bool) -> None:
    shared = list(range(1000))
    one, two = [*shared, *[7] * 300], [*shared[:900], *[8] * 300]
    cache = started(tmp_path)
    keep(cache, one, two, packed=packed)
    nodes = len(list(cache._root.below()))
    assert cache.flush(never) == nodes == len(files_of(tmp_path))
    assert cache.flush(never) == 0, "written twice"

    again = started(tmp_path)
    assert again.nbytes == 0
    assert again.disk_bytes == cache.disk_bytes
    assert again.match([*one, 0]) == 1300
    assert again.match([*two, 0]) == 1200
    assert borrowed(again, one) == 1300
    assert borrowed(again, two) == 1200
    check_trie(again._root)


def test_warming_reads_about_as_much_as_it_may(tmp_path: Path) -> None:
    tokens = list(range(2560))
    cache = started(tmp_path)
    keep(cache, tokens)
    cache.flush(never)
    again = started(tmp_path)
    steps = 0
    more = True
    while more:
        before = again.nbytes
        more = again.warm([*tokens, 0], 2 * 256 * TOKEN_NBYTES)
        assert again.nbytes - before == 2 * 256 * TOKEN_NBYTES
        steps += 1
    assert steps == 5
    assert not again.warm([*tokens, 0], 1)


def test_warming_stops_where_memory_does(tmp_path: Path) -> None:
    tokens = list(range(2560))
    cache = started(tmp_path)
    keep(cache, tokens)
    cache.flush(never)
    again = started(tmp_path, memory=600 * TOKEN_NBYTES)
    assert again.match([*tokens, 0]) == 2560
    assert borrowed(again, tokens) == 512
    keep(again, tokens)
    assert again.lease([*tokens, 0]).length == 600 // 256 * 256
    check_trie(again._root)


def test_memory_that_goes_while_a_path_is_warmed_takes_its_end_first(tmp_path: Path) -> None:
    tokens = list(range(1024))
    cache = started(tmp_path)
    keep(cache, tokens)
    cache.flush(never)
    again = started(tmp_path)
    assert again.warm([*tokens, 0], 2 * 256 * TOKEN_NBYTES)
    again.resize(300 * TOKEN_NBYTES)
    check_trie(again._root)
    assert again.lease([*tokens, 0]).length == 256


def test_what_was_computed_again_need_not_be_read(tmp_path: Path) -> None:
    tokens = list(range(600))
    cache = started(tmp_path)
    keep(cache, tokens)
    cache.flush(never)
    again = started(tmp_path)
    longer = [*tokens, *range(100)]
    keep(again, longer)
    for file in files_of(tmp_path):
        file.unlink()
    assert again.lease([*longer, 0]).length == 700
    check_values(again.lease([*longer, 0]).layers, longer)


def test_what_is_put_is_in_memory_though_its_file_goes_on(tmp_path: Path) -> None:
    cache = started(tmp_path)
    keep(cache, list(range(200)))
    cache.flush(never)
    again = started(tmp_path)
    again.put([*range(50)], reader([*range(50)]), pinned=True)
    assert again.nbytes == again.pinned_bytes == 50 * TOKEN_NBYTES
    assert borrowed(again, list(range(200))) == 200


def test_a_branch_inside_a_file_survives_restarts(tmp_path: Path) -> None:
    """Files are never written again, whatever is split in memory, warm or cold."""
    base = list(range(256))
    cache = started(tmp_path)
    keep(cache, base)
    cache.flush(never)
    branches = [[*base[: 50 * n], *[900 + n] * 40] for n in range(1, 5)]
    (first,) = files_of(tmp_path)
    content = first.read_bytes()
    for branch in branches:
        keep(cache, branch)
        cache.flush(never)
        cache = started(tmp_path)
        check_trie(cache._root)
    assert first.read_bytes() == content
    assert len(files_of(tmp_path)) == 5
    for tokens in (base, *branches):
        assert borrowed(cache, tokens) == len(tokens)


def test_files_are_safetensors(tmp_path: Path) -> None:
    """Anyone's reader opens them."""
    cache = started(tmp_path)
    keep(cache, [5, 6, 7])
    cache.flush(never)
    (file,) = files_of(tmp_path)
    tensors, metadata = cast("tuple[dict, dict]", mx.load(str(file), return_metadata=True))
    assert tensors["tokens"].tolist() == [5, 6, 7]
    wanted = reader([5, 6, 7])(0, 3)
    check_values([(tensors[f"{n}.keys"], tensors[f"{n}.values"]) for n in range(2)], [5, 6, 7])
    assert len(tensors) == 1 + 2 * len(wanted)
    assert metadata["fingerprint"] == FINGERPRINT


def test_packed_keys_and_values_are_in_files_by_name(tmp_path: Path) -> None:
    cache = started(tmp_path)
    tokens = list(range(5))
    some = [[mx.random.normal((1, 2, 5, 64)) for _ in "kv"] for _ in range(2)]
    packed = [[mx.quantize(array, group_size=32, bits=4) for array in layer] for layer in some]
    cache.put(tokens, lambda a, b: [(*k, *v) for k, v in packed])
    cache.flush(never)
    (file,) = files_of(tmp_path)
    tensors = cast("dict[str, mx.array]", mx.load(str(file)))
    for n, layer in enumerate(packed):
        for name, triple in zip(("keys", "values"), layer, strict=True):
            found = [tensors[f"{n}.{name}{part}"] for part in ("", ".scales", ".biases")]
            assert all(mx.array_equal(a, b).item() for a, b in zip(found, triple, strict=True))
    assert len(tensors) == 1 + 2 * 6
    again = started(tmp_path)
    again.warm([*tokens, 0], ROOMY)
    layers = again.lease([*tokens, 0]).layers
    assert layers is not None
    for got, (keys, values) in zip(layers, packed, strict=True):
        pairs = zip(got, (*keys, *values), strict=True)
        assert all(mx.array_equal(a, b).item() for a, b in pairs)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_every_type_comes_back(tmp_path: Path, dtype: mx.Dtype) -> None:
    cache = started(tmp_path)
    keys, values = mx.random.normal((1, 3, 300, 8)).astype(dtype), mx.ones((1, 3, 300, 5), dtype)
    tokens = list(range(300))
    cache.put(tokens, lambda a, b: [(keys[:, :, a:b], values[:, :, a:b])])
    cache.flush(never)
    again = started(tmp_path)
    again.warm([*tokens, 0], ROOMY)
    layers = again.lease([*tokens, 0]).layers
    assert layers is not None
    assert layers[0][0].dtype == dtype
    assert mx.array_equal(layers[0][0], keys).item()
    assert mx.array_equal(layers[0][1], values).item()


def test_only_the_user_can_read(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    (folder / FINGERPRINT).mkdir(parents=True, mode=0o755)
    mask = os.umask(0)
    try:
        cache = started(folder)
        keep(cache, [1, 2, 3])
        cache.flush(never)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((folder / FINGERPRINT).stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in files_of(folder)} == {0o600}


# when it is written


def test_nothing_is_written_until_it_is_quiet(tmp_path: Path) -> None:
    cache = started(tmp_path)
    keep(cache, list(range(600)))
    assert not cache.idle(100.0)
    assert not cache.idle(119.9)
    assert not files_of(tmp_path)
    assert cache.idle(120.0)
    assert len(files_of(tmp_path)) == 1
    cache.match([1, 2, 3])
    assert not cache.idle(121.0)
    assert not cache.idle(140.0)
    assert [cache.idle(141.0) for _ in range(3)] == [True, True, False]
    assert len(files_of(tmp_path)) == 3


def test_the_beginning_is_written_first_and_the_last_used_before(tmp_path: Path) -> None:
    cache = started(tmp_path)
    old, new = [1] * 600, [2] * 600
    keep(cache, old, new)
    cache.idle(0.0)
    for count in (256, 512, 600):
        cache.idle(20.0)
        assert started(tmp_path).match([*new, 0]) == count
    cache.idle(20.0)
    assert started(tmp_path).match([*old, 0]) == 256


def test_wear_is_limited(tmp_path: Path) -> None:
    clock = Clock()
    cache = started(tmp_path, clock=clock, rate=4 * 100_000)
    for n in range(200):
        keep(cache, [n] * 256)
    cache.idle(0.0)
    while cache.idle(20.0):
        pass
    size = files_of(tmp_path)[0].stat().st_size
    assert 100_000 <= cache.disk_bytes < 100_000 + size, "a quarter of an hour's at once"
    for _ in range(60):
        clock.now += HOUR / 60
        while cache.idle(20.0):
            pass
    assert 500_000 <= cache.disk_bytes < 500_000 + size
    clock.now += 24 * HOUR
    while cache.idle(20.0):
        pass
    assert 600_000 <= cache.disk_bytes < 600_000 + 2 * size, "what was not used does not add up"
    clock.now -= 48 * HOUR
    assert not cache.idle(20.0)


def test_no_wear_at_all_but_for_the_end(tmp_path: Path) -> None:
    cache = started(tmp_path, rate=0)
    keep(cache, [1] * 100)
    cache.idle(0.0)
    assert not cache.idle(20.0)
    assert not files_of(tmp_path)
    assert cache.flush(never) == 1


def test_flush_ends_when_it_must(tmp_path: Path) -> None:
    cache = started(tmp_path)
    keep(cache, list(range(2560)))
    turns = itertools.chain([False] * 3, itertools.repeat(True))
    assert cache.flush(lambda: next(turns)) == 3
    assert started(tmp_path).match([*range(2560), 0]) == 3 * 256


# what has to go


def test_the_least_recently_used_files_go_first(tmp_path: Path) -> None:
    cache = started(tmp_path)
    keep(cache, [1] * 256)
    cache.flush(never)
    size = cache.disk_bytes
    clock = Clock()
    cache = started(tmp_path, budget=3 * size, clock=clock)
    for n in (2, 3):
        keep(cache, [n] * 256)
    cache.flush(never)
    cache.match([1] * 257)
    keep(cache, [4] * 256)
    cache.flush(never)
    assert cache.disk_bytes == 3 * size
    after = started(tmp_path, budget=3 * size)
    assert [after.match([n] * 257) for n in (1, 2, 3, 4)] == [256, 0, 256, 256]


def test_what_is_old_is_not_written_in_place_of_what_is_new(tmp_path: Path) -> None:
    """Else a small disk would be written in circles."""
    cache = started(tmp_path, budget=3000 + 256 * TOKEN_NBYTES)
    for n in range(5):
        keep(cache, [n] * 256)
    assert cache.flush(never) == 1
    assert started(tmp_path).match([4] * 257) == 256
    cache.idle(0.0)
    assert not cache.idle(20.0)
    assert not cache.idle(21.0)


def test_nothing_goes_for_what_finds_no_room(tmp_path: Path) -> None:
    cache = started(tmp_path)
    keep(cache, [1] * 100, [2] * 256)
    cache.flush(never)
    cache = started(tmp_path, budget=cache.disk_bytes)
    keep(cache, [3] * 256)
    cache.match([2] * 257)
    assert cache.flush(never) == 0
    assert [cache.match([n] * 257) for n in (1, 2, 3)] == [100, 256, 256]
    assert len(files_of(tmp_path)) == 2


def test_no_budget_is_no_files(tmp_path: Path) -> None:
    cache = started(tmp_path)
    keep(cache, [1] * 600)
    cache.flush(never)
    none = started(tmp_path, budget=0)
    keep(none, [1] * 600)
    assert none.flush(never) == 0
    assert files_of(tmp_path) == []


def test_recency_lasts_by_the_time_of_the_file(tmp_path: Path) -> None:
    """Touched at most once an hour; none counts as older than what continues it."""
    clock = Clock()
    cache = started(tmp_path, clock=clock)
    keep(cache, [*[1] * 256, *[2] * 100])
    keep(cache, [3] * 100)
    cache.flush(never)
    times = {file: file.stat().st_mtime_ns for file in files_of(tmp_path)}

    cache.match([*[1] * 256, *[2] * 100, 0])
    cache.flush(never)
    assert {file: file.stat().st_mtime_ns for file in files_of(tmp_path)} == times

    clock.now += HOUR
    cache.match([*[1] * 256, 0])
    cache.idle(0.0)
    cache.idle(20.0)
    changed = {file.name for file in files_of(tmp_path) if file.stat().st_mtime_ns != times[file]}
    assert changed == {_file_of(_path(cache, [1] * 256)[0])}


def test_order_after_a_restart(tmp_path: Path) -> None:
    """By the files' times, the first of a path as late as the last of it."""
    cache = started(tmp_path)
    sequences = [[n] * 300 for n in range(4)]
    keep(cache, *sequences)
    cache.flush(never)
    moments = [3000, 1000, 4000, 2000]
    for tokens, moment in zip(sequences, moments, strict=True):
        first, last = _path(cache, tokens)
        os.utime(tmp_path / FINGERPRINT / _file_of(first), (0, 0))
        os.utime(tmp_path / FINGERPRINT / _file_of(last), (moment, moment))
    half = started(tmp_path, budget=cache.disk_bytes // 2)
    assert [half.match([*tokens, 0]) for tokens in sequences] == [300, 0, 300, 0]


def _path(cache: PrefixCache, tokens: list[int]) -> list[Node]:
    return walk(cache._root, encode(tokens))[0]


def _file_of(node: Node) -> str:
    assert node.stored is not None
    return node.stored.id + ".kv.safetensors"


def test_other_models_go_first(tmp_path: Path) -> None:
    for n, name in enumerate(("11" * 16, "22" * 16)):
        other = PrefixCache(ROOMY, tier=KVTier(tmp_path, name, ROOMY, 0))
        keep(other, [1] * 256)
        other.flush(never)
        for file in (tmp_path / name).iterdir():
            os.utime(file, (1000 + n, 1000 + n))
    size = other.disk_bytes
    cache = started(tmp_path, budget=3 * size)
    keep(cache, [1] * 256)
    cache.flush(never)
    assert len(list(tmp_path.iterdir())) == 3
    keep(cache, [2] * 256)
    cache.flush(never)
    assert {folder.name for folder in tmp_path.iterdir()} == {"22" * 16, FINGERPRINT}


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_another_layout_is_dropped(tmp_path: Path, warm: bool) -> None:
    """The same fingerprint and other shapes: what the model computes counts."""
    cache = started(tmp_path)
    tokens = list(range(600))
    keep(cache, tokens)
    cache.flush(never)
    again = started(tmp_path)
    if warm:
        again.warm([*tokens, 0], 1)
    wide = mx.random.normal((1, 5, 300, 2))
    again.put(tokens[:300], lambda a, b: [(wide[:, :, a:b], wide[:, :, a:b])])
    while again.warm([*tokens, 0], 1 << 20):
        pass
    lease = again.lease([*tokens, 0])
    assert lease.layers is not None
    for array in lease.layers[0]:
        assert mx.array_equal(array, wide[:, :, : lease.length]).item()
    check_trie(again._root)


# which keys belong to which weights


def test_the_fingerprint_changes_with_what_is_computed(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "m")
    seen = {fingerprint(folder, "float32")}
    assert fingerprint(folder, "float32") in seen
    assert len(next(iter(seen))) == 32

    def different(dtype: str = "float32", **more) -> None:
        new = fingerprint(folder, dtype, **more)
        assert new not in seen
        seen.add(new)

    different("bfloat16")
    for packing in (KVQuantization(4, 32), KVQuantization(8, 32), KVQuantization(4, 64)):
        different(quantization=packing)
    weights = folder / "model.safetensors"
    info = weights.stat()
    os.utime(weights, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
    different()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5000.0}))
    different()
    (folder / "model-2.safetensors").write_bytes(b"x")
    different()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    different(adapter=adapter)
    (adapter / "adapters.safetensors").write_bytes(b"x")
    different(adapter=adapter)
    (adapter / "adapter_config.json").write_text('{"rank": 8}')
    different(adapter=adapter)
    different(adapter=adapter, quantization=KVQuantization(4, 32))


def test_scanning_reads_no_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = started(tmp_path)
    keep(cache, list(range(5000)))
    cache.flush(never)
    read: list[int] = []
    real = os.fdopen

    def counted(*args, **more):
        stream = real(*args, **more)
        if "b" in str(args[1:]):
            read.append(0)
        return stream

    monkeypatch.setattr(os, "fdopen", counted)
    before = mx.get_active_memory()
    started(tmp_path)
    assert len(read) == 20
    assert mx.get_active_memory() <= before


def test_a_quiet_start_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = started(tmp_path)
    keep(cache, list(range(600)), [*range(500), 3])
    cache.flush(never)
    caplog.set_level(logging.INFO)
    again = started(tmp_path)
    borrowed(again, list(range(600)))
    assert caplog.text == ""
