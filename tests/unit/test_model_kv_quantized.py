"""Keys and values in a few bits, as a profile asks for: when that loads, what a sequence holds,
what a token is predicted to take."""

import copy
import gc
import logging
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from punie_model_host.batch import RaggedBatch, SoloBatch
from punie_model_host.folder import check_folder
from punie_model_host.loading import LoadedModel, build, read_weights
from punie_model_host.memory import kv_bytes_per_token
from punie_model_host.probe import make_batch, why_not_ragged
from punie_model_host.profile import PROFILE, KVQuantization
from punie_model_host.sequences import arrays_of, cache_of, detach, new_caches, span_of
from punie_protocol.engine import EngineSettings
from punie_protocol.errors import ModelLoadFailed, PunieError
from punie_protocol.messages.to_model_client import Finished
from punie_protocol.messages.to_model_host import Sampling
from tests.support.engine_bench import EngineBench, Oracle, turn
from tests.support.small_models import KV_GROUP, RAGGED, Kind, make_small_model

BITS = (4, 5, 6, 8)


def load(folder: Path) -> LoadedModel:
    loaded = build(check_folder(folder))
    read_weights(loaded, lambda _done, _total: None)
    return loaded


def refused(folder: Path, profile: str) -> ModelLoadFailed:
    """Return why a model does not load with this profile."""
    (folder / PROFILE).write_text(profile)
    with pytest.raises(PunieError) as failed:
        build(check_folder(folder))
    error = failed.value.error
    del failed  # the frames that hold the model, and it its file
    gc.collect()
    assert isinstance(error, ModelLoadFailed)
    assert error.file == PROFILE
    return error


# what loads


@pytest.mark.parametrize("kind", RAGGED)
@pytest.mark.parametrize("bits", BITS)
def test_rows_of_plain_models_share_a_forward(tmp_path, caplog, kind, bits):
    loaded = load(make_small_model(tmp_path / kind, kind, kv_bits=bits))
    packing = loaded.profile.kv_quantization
    assert packing == KVQuantization(bits, KV_GROUP)
    with caplog.at_level(logging.WARNING):
        assert isinstance(make_batch(loaded.model, "mine", packing), RaggedBatch)
    assert not caplog.messages


def test_without_a_word_in_the_profile_nothing_is_packed(tmp_path):
    folder = make_small_model(tmp_path / "m", Kind.QWEN3)
    assert build(check_folder(folder)).profile.kv_quantization is None
    (folder / PROFILE).write_text("kv_group_size = 32")
    assert build(check_folder(folder)).profile.kv_quantization is None


@pytest.mark.parametrize("line", ["kv_bits = 3", "kv_bits = 8\nkv_group_size = 16", "kv_bits = ''"])
def test_bits_and_groups_that_nobody_packs_are_named(tmp_path, line):
    error = refused(make_small_model(tmp_path / "m", Kind.QWEN3), line)
    assert "kv_" in error.message


def test_a_group_must_divide_the_head_size_and_the_error_names_both(tmp_path):
    folder = make_small_model(tmp_path / "m", Kind.QWEN3, kv_bits=8)  # heads of 32
    error = refused(folder, "kv_bits = 8")
    assert "kv_group_size 64 does not divide the model's head size 32" in error.message
    assert "kv_group_size" in error.hint


@pytest.mark.parametrize("kind", [Kind.GEMMA3, Kind.MAMBA2, Kind.LFM2])
def test_other_caches_cannot_be_packed(tmp_path, kind):
    error = refused(make_small_model(tmp_path / "m", kind), "kv_bits = 4\nkv_group_size = 32")
    assert "kv_bits needs plain caches" in error.message


def test_a_model_that_looks_into_its_caches_is_refused_before_its_weights_are_read(
    tmp_path, monkeypatch
):
    folder = make_small_model(tmp_path / "m", Kind.QWEN3, kv_bits=4)
    attention = "mlx_lm.models.qwen3.scaled_dot_product_attention"

    def own_attention(queries, keys, values, **more):
        return mx.fast.scaled_dot_product_attention(queries, keys + 0, values, scale=more["scale"])

    monkeypatch.setattr(attention, own_attention)
    error = refused(folder, "kv_bits = 4\nkv_group_size = 32")
    assert "kv_bits fails with it: TypeError" in error.message


def test_packed_rows_run_alone_when_the_batch_is_wrong(tmp_path, monkeypatch):
    """The batch is tried with packed keys and values too, and there is a slow way left."""
    folder = make_small_model(tmp_path / "m", Kind.QWEN3, kv_bits=8)
    loaded = load(folder)
    packing = loaded.profile.kv_quantization
    right = "punie_model_host.ragged.QuantizedRaggedKVCache.make_mask"
    with monkeypatch.context() as patch:
        patch.setattr(right, lambda *_args, **_more: None)
        assert why_not_ragged(loaded.model) is None
        assert "are off by" in (why_not_ragged(loaded.model, packing) or "")
        batch = make_batch(loaded.model, "mine", packing)
    assert isinstance(batch, SoloBatch)
    assert {type(cache).__name__ for cache in batch.new_caches()} == {"QuantizedSequence"}


def test_rows_alone_are_exact(tmp_path, monkeypatch):
    folder = make_small_model(tmp_path / "m", Kind.QWEN3, kv_bits=4)
    monkeypatch.setattr("punie_model_host.probe.why_not_ragged", lambda *_: "of a test")
    settings = EngineSettings(memory_mb=64, max_batch=4, step_tokens=32, disk_mb=0)
    bench = EngineBench(folder, settings)
    sampling = Sampling(temperature=0.0, max_tokens=12)
    for text in ("a", "bb" * 30, "a"):
        bench.submit(turn(text), sampling)
    bench.run()
    again = bench.submit(turn("bb" * 30), sampling)
    bench.run()
    bench.check(Oracle(folder))
    end = bench.end(again)
    assert isinstance(end, Finished)
    assert end.usage.cached_tokens > 50


@pytest.mark.parametrize("scratch", [2**20, 2**17])
def test_a_prompt_in_the_pieces_that_scores_have_room_for_is_exact(tmp_path, monkeypatch, scratch):
    folder = make_small_model(tmp_path / "m", Kind.LLAMA, kv_bits=8)
    settings = EngineSettings(memory_mb=64, max_batch=4, step_tokens=512, disk_mb=0)
    bench = EngineBench(folder, settings)
    monkeypatch.setattr("punie_model_host.memory.SCRATCH", scratch)
    widths = []
    whole = type(bench.model).__call__

    def noting(self, inputs, *rest, **more):
        widths.append(inputs.shape[1])
        return whole(self, inputs, *rest, **more)

    monkeypatch.setattr(type(bench.model), "__call__", noting)
    for text in ("a" * 300, "a" * 320):
        bench.submit(turn(text), Sampling(temperature=0.0, max_tokens=4))
    bench.run()
    monkeypatch.undo()
    assert 16 <= max(widths) < 100
    compared, ties = bench.check(Oracle(folder))
    assert (compared, ties) == (8, 0)


# what a sequence holds


def some(tokens: int, seed: int = 0) -> tuple[mx.array, mx.array]:
    random = np.random.default_rng(seed)
    keys, values = (random.normal(size=(1, 2, tokens, dim)).astype("f") for dim in (128, 64))
    return mx.array(keys), mx.array(values)


class Layers:
    """A model as far as its caches go."""

    layers = (0, 1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("pieces", [(1, 1, 1), (255, 1, 1, 300), (300, 7), (256, 256, 1)])
def test_a_sequence_is_bit_for_bit_that_of_mlx_lm_in_whatever_pieces(bits, pieces):
    mine, _ = new_caches(Layers(), KVQuantization(bits, 64))
    theirs = QuantizedKVCache(group_size=64, bits=bits)
    keys, values = some(sum(pieces))
    theirs.update_and_fetch(keys, values)
    start = 0
    for piece in pieces:
        stop = start + piece
        got = mine.update_and_fetch(keys[:, :, start:stop], values[:, :, start:stop])
        assert [one.shape[2] for half in got for one in half] == [stop] * 6
        start = stop
    pairs = zip(span_of(mine, 0, start), span_of(theirs, 0, start), strict=True)
    assert all(mx.array_equal(one, other).item() for one, other in pairs)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [32, 64])
def test_all_bits_that_mlx_packs_work_at_any_head_size(bits, group):
    """mlx-lm's own cache has no room for 5 and 6 bits of 128 numbers."""
    cache, _ = new_caches(Layers(), KVQuantization(bits, group))
    keys, values = some(302)
    for span in (slice(0, 300), slice(300, 302)):
        packed = cache.update_and_fetch(keys[:, :, span], values[:, :, span])
    for got, plain in zip(packed, (keys, values), strict=True):
        wanted = mx.quantize(plain, group_size=group, bits=bits)
        assert all(mx.array_equal(a, b).item() for a, b in zip(got, wanted, strict=True))
        near = mx.dequantize(*got, group_size=group, bits=bits)
        assert mx.abs(near - plain).max().item() <= 8 / (2**bits - 1)  # a step of their range


def test_an_empty_sequence_holds_nothing():
    for packing in (None, KVQuantization(8, 64)):
        cache, _ = new_caches(Layers(), packing)
        assert arrays_of(cache) == ()
        assert detach(cache) == ()
        assert cache.nbytes == 0
        assert cache.empty()


@pytest.mark.parametrize("packing", [None, KVQuantization(4, 64), KVQuantization(6, 32)])
def test_a_sequence_goes_on_from_what_was_kept(packing):
    whole, _ = new_caches(Layers(), packing)
    keys, values = some(40)
    whole.update_and_fetch(keys, values)
    again = cache_of(span_of(whole, 0, 30), packing)
    assert again.offset == 30
    assert isinstance(again, KVCache if packing is None else QuantizedKVCache)
    kept = [np.array(one) for one in arrays_of(again)]
    own = copy.deepcopy(again)
    again.update_and_fetch(keys[:, :, 30:], values[:, :, 30:])
    pairs = zip(span_of(again, 0, 40), span_of(whole, 0, 40), strict=True)
    assert all(mx.array_equal(one, other).item() for one, other in pairs)
    for one, was in zip(arrays_of(own), kept, strict=True):
        np.testing.assert_array_equal(np.array(one), was)


@pytest.mark.parametrize("packing", [None, KVQuantization(8, 64)])
def test_detached_arrays_hold_no_more_than_they_show(packing):
    whole, _ = new_caches(Layers(), packing)
    whole.update_and_fetch(*some(200))
    piece = cache_of(span_of(whole, 100, 103), packing)
    mx.eval(detach(piece))
    assert piece.nbytes == sum(array.nbytes for array in span_of(whole, 100, 103))
    pairs = zip(arrays_of(piece), span_of(whole, 100, 103), strict=True)
    assert all(mx.array_equal(one, other).item() for one, other in pairs)
    assert detach(object()) == ()


# what it takes


@pytest.mark.parametrize("kind", RAGGED)
@pytest.mark.parametrize("bits", BITS)
def test_a_sequence_takes_what_is_predicted(tmp_path, kind, bits):
    loaded = load(make_small_model(tmp_path / "m", kind, kv_bits=bits))
    packing = loaded.profile.kv_quantization
    caches = new_caches(loaded.model, packing)
    mx.eval(loaded.model(mx.array([[1] * 256]), cache=caches))
    per_token = kv_bytes_per_token(loaded.folder.config, mx.float32.size, packing)
    assert sum(cache.nbytes for cache in caches) == 256 * per_token


@given(st.sampled_from(BITS), st.sampled_from([32, 64, 128]), st.sampled_from([2, 4]))
def test_packed_numbers_take_their_bits_and_a_scale_and_a_bias_a_group(bits, group, itemsize):
    config = {"num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 128}
    numbers = 3 * 2 * 2 * 128
    got = kv_bytes_per_token(config, itemsize, KVQuantization(bits, group))
    assert got == numbers * bits // 8 + numbers // group * 2 * itemsize
    assert got < kv_bytes_per_token(config, itemsize)


def test_a_smaller_token_lets_more_of_them_run(tmp_path):
    settings = EngineSettings(memory_mb=1, max_batch=4, step_tokens=32, disk_mb=0)
    most = []
    for bits in (None, 8, 4):
        folder = make_small_model(tmp_path / f"m{bits}", Kind.LLAMA, kv_bits=bits)
        serving = EngineBench(folder, settings).engine._serving
        assert serving is not None
        most.append(serving._kv.most_tokens / (1 if bits else 2))  # heads half as large
    assert most[1] / most[0] == pytest.approx(32 / (8 + 2), rel=0.1)  # a scale and a bias
    assert most[2] / most[0] == pytest.approx(32 / (4 + 2), rel=0.1)


@pytest.mark.parametrize("bits", [4, 8])
def test_status_counts_packed_bytes(tmp_path, bits):
    settings = EngineSettings(memory_mb=64, max_batch=4, step_tokens=64, disk_mb=0)
    folder = make_small_model(tmp_path / "m", Kind.QWEN3, kv_bits=bits)
    bench = EngineBench(folder, settings)
    bench.submit(turn("x" * 100), Sampling(temperature=0.0, max_tokens=4))
    running = []
    while bench.engine.has_work:
        bench.step()
        assert bench.engine._serving is not None
        running.append(bench.engine._serving.kv_status(bench.engine._requests.values()).running)
    per_token = 2 * 2 * 2 * KV_GROUP * bits // 8 + 2 * 2 * 2 * 2 * 4
    assert max(running) == 256 * per_token
    bench.check(Oracle(folder))
