"""Which models may share a forward: found out by trying, on real ones and on broken ones."""

import logging
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import qwen3
from mlx_lm.models.cache import KVCache

from punie_model_host.batch import RaggedBatch, SoloBatch
from punie_model_host.folder import EMBEDDED, check_folder, resolve
from punie_model_host.loading import build, read_weights
from punie_model_host.probe import make_batch, why_not_ragged
from tests.support.small_models import RAGGED, Kind, make_small_model


def load(folder: Path) -> Any:
    loaded = build(check_folder(folder))
    read_weights(loaded, lambda _done, _total: None)
    return loaded.model


@pytest.mark.parametrize("kind", RAGGED)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_models_with_plain_caches_are_ragged(tmp_path: Path, kind: Kind, seed: int):
    assert why_not_ragged(load(make_small_model(tmp_path, kind, seed=seed))) is None


def test_the_embedded_model_is_ragged():
    assert why_not_ragged(load(resolve(EMBEDDED, Path()))) is None


@pytest.mark.parametrize("kind", RAGGED)
def test_weights_of_4_bits_are_ragged(tmp_path: Path, kind: Kind):
    assert why_not_ragged(load(make_small_model(tmp_path, kind, quantized=True))) is None


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rounding_to_16_bits_is_no_fault(tmp_path: Path, dtype: mx.Dtype, seed: int):
    model = load(make_small_model(tmp_path, Kind.QWEN3, seed=seed))
    model.set_dtype(dtype)
    assert why_not_ragged(model) is None


@pytest.mark.parametrize(
    ("kind", "caches"),
    [
        (Kind.GEMMA3, "KVCache, RotatingKVCache"),
        (Kind.MAMBA2, "ArraysCache"),
        (Kind.LFM2, "ArraysCache, KVCache"),
    ],
)
def test_windows_and_states_run_alone_and_the_log_says_so(tmp_path, caplog, kind, caches):
    model = load(make_small_model(tmp_path, kind))
    with caplog.at_level(logging.WARNING):
        assert isinstance(make_batch(model, "mine"), SoloBatch)
    (line,) = caplog.messages
    assert line == f"decodes-one-by-one model=mine reason='its caches are {caches}'"


def test_a_model_that_can_is_not_mentioned(tmp_path, caplog):
    model = load(make_small_model(tmp_path, Kind.LLAMA))
    with caplog.at_level(logging.WARNING):
        assert isinstance(make_batch(model, "mine"), RaggedBatch)
    assert not caplog.messages


class WithoutMask(qwen3.Model):
    """Every token of the batch's width is seen, rubbish too."""

    def __call__(self, inputs, cache: Any = None, input_embeddings=None):
        hidden = self.model.embed_tokens(inputs)
        for layer, one in zip(self.layers, cache, strict=True):
            hidden = layer(hidden, "causal" if inputs.shape[1] > 1 else None, one)
        return self.lm_head(self.model.norm(hidden))


class OnePlace:
    """A cache that gives one offset for all rows."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    @property
    def offset(self):
        offset = self._cache.offset
        return offset if isinstance(offset, int) else offset.max()

    def __getattr__(self, name: str):
        return getattr(self._cache, name)


class WithOnePlace(qwen3.Model):
    """Every row is thought to be as long as the longest."""

    def __call__(self, inputs, cache: Any = None, input_embeddings=None):
        return super().__call__(inputs, [OnePlace(one) for one in cache])


class WithPythonNumbers(qwen3.Model):
    """Decides by the offset in Python, as some models do."""

    def __call__(self, inputs, cache: Any = None, input_embeddings=None):
        assert 0 <= int(cache[0].offset) < 1000
        return super().__call__(inputs, cache)


class WithNeighbours(qwen3.Model):
    """Mixes the rows of a batch."""

    def __call__(self, inputs, cache: Any = None, input_embeddings=None):
        logits = super().__call__(inputs, cache)
        return logits + 0.3 * logits.mean(axis=0, keepdims=True)


class WithoutNumbers(qwen3.Model):
    """Computes what is no number."""

    def __call__(self, inputs, cache: Any = None, input_embeddings=None):
        return super().__call__(inputs, cache) * mx.nan


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (WithoutMask, "are off by"),
        (WithOnePlace, "are off by"),
        (WithNeighbours, "are off by"),
        (WithoutNumbers, "are off by nan"),
        (WithPythonNumbers, "a ragged batch fails: "),
    ],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_model_that_computes_ragged_rows_wrongly_runs_alone(tmp_path, broken, why, seed):
    model = load(make_small_model(tmp_path, Kind.QWEN3, seed=seed))
    model.__class__ = broken
    reason = why_not_ragged(model)
    assert reason is not None
    assert why in reason


def test_a_cache_of_its_own_is_not_taken_for_a_plain_one(tmp_path):
    class Rounded(KVCache):
        """Keeps less than it gets."""

    model = load(make_small_model(tmp_path, Kind.QWEN3))
    model.make_cache = lambda: [Rounded() for _ in model.layers]
    assert why_not_ragged(model) == "its caches are Rounded"
