"""Bytes of keys and values: predicted from a configuration, against what a model really holds."""

import os
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from punie_model_host import ragged
from punie_model_host.memory import (
    BLOCK,
    SCRATCH,
    KVBudget,
    at_once,
    kv_bytes_per_token,
    machine_budget,
    score_bytes,
)
from punie_protocol.engine import EngineSettings
from tests.support.small_models import RAGGED, Kind, make_small_model

GIB = 1024**3
QWEN3_30B = {
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
}


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (QWEN3_30B, 48 * 4 * 128 * 2),
        ({"text_config": QWEN3_30B, "num_hidden_layers": 3}, 48 * 4 * 128 * 2),
        # without head_dim: hidden size by heads; without grouped heads: all of them
        (
            {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4},
            2 * 4 * 16 * 2,
        ),
        ({"n_layer": 12, "n_embd": 768, "n_head": 12}, 12 * 12 * 64 * 2),
        # a number a layer: the largest
        (
            {"num_hidden_layers": 2, "head_dim": 8, "num_kv_heads": [2, 4]},
            2 * 4 * 8 * 2,
        ),
        # MLA, as if nothing were compressed: all heads, keys and values of their own sizes
        (
            {
                "num_hidden_layers": 2,
                "num_attention_heads": 16,
                "num_key_value_heads": 1,
                "kv_lora_rank": 512,
                "qk_nope_head_dim": 128,
                "qk_rope_head_dim": 64,
                "v_head_dim": 128,
            },
            2 * 16 * (192 + 128),
        ),
        # layers with larger heads among the others
        (
            {
                "num_hidden_layers": 2,
                "num_key_value_heads": 4,
                "num_global_key_value_heads": 1,
                "head_dim": 8,
                "global_head_dim": 16,
            },
            2 * 4 * 16 * 2,
        ),
        ({"num_hidden_layers": 3, "hidden_size": 10}, 3 * 2 * 10),
    ],
)
def test_bytes_of_a_token_follow_from_the_configuration(config: dict, numbers: int) -> None:
    assert kv_bytes_per_token(config, 2) == numbers * 2
    assert kv_bytes_per_token(config, 4) == numbers * 4


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_hidden_layers": None, "hidden_size": "big"},
        {"num_hidden_layers": True},
        {"num_hidden_layers": -1, "hidden_size": 10},
        {"text_config": []},
        {"num_hidden_layers": 2, "num_attention_heads": 0},
    ],
)
def test_a_configuration_that_says_nothing_is_taken_for_a_large_model(config: dict) -> None:
    assert kv_bytes_per_token(config, 2) == 1024**2


@given(
    total=st.integers(0, 10**10),
    per_token=st.integers(1, 10**6),
    totals=st.lists(st.integers(1, 50_000), min_size=1, max_size=16),
)
def test_what_fits_is_a_rectangle_and_leaves_the_rest(
    total: int, per_token: int, totals: list[int]
) -> None:
    budget = KVBudget(total, per_token)
    need = budget.predicted(totals)
    assert need >= len(totals) * max(totals) * per_token
    assert need % (len(totals) * BLOCK * per_token) == 0
    assert budget.fits(totals) == (need <= total)
    assert budget.left(totals) == max(0, total - need)
    assert budget.predicted([*totals, 1]) > need


@given(total=st.integers(0, 10**9), per_token=st.integers(1, 10**5))
def test_the_largest_request_fits_and_one_token_more_does_not(total: int, per_token: int) -> None:
    budget = KVBudget(total, per_token)
    assert budget.most_tokens == 0 or budget.fits([budget.most_tokens])
    assert not budget.fits([budget.most_tokens + 1])


@given(context=st.integers(0, 10**6), heads=st.integers(1, 128), itemsize=st.sampled_from([2, 4]))
def test_scores_that_stand_in_memory_whole_are_bounded(context, heads, itemsize) -> None:
    each = score_bytes({"text_config": {"num_attention_heads": heads}}, itemsize)
    assert each == heads * itemsize
    tokens = at_once(context, each)
    assert tokens == 16 or tokens * (context + tokens) * each <= SCRATCH // 4
    assert (tokens + 1) * (context + tokens + 1) * each > SCRATCH // 4
    assert score_bytes({}, 4) == 4


def test_nothing_runs_and_nothing_is_needed() -> None:
    assert KVBudget(10, 1).predicted([]) == 0
    assert KVBudget(10, 1).left([]) == 10


@pytest.mark.parametrize(
    ("memory", "weights", "metal", "budget"),
    [
        # 32 GB Mac with the 30B model: Metal's working set is what is scarce
        (32 * GIB, 18 * GIB, 24 * GIB, 5 * GIB),
        # a large one: a quarter of it
        (128 * GIB, 18 * GIB, 96 * GIB, 32 * GIB),
        (16 * GIB, 0, None, 4 * GIB),
        # what is left beside the weights and the reserve: 2 GiB, or 15 %
        (8 * GIB, 5 * GIB, None, 1 * GIB),
        (40 * GIB, 30 * GIB, None, 4 * GIB),
        # too large a model: never nothing
        (16 * GIB, 20 * GIB, 12 * GIB, GIB // 4),
    ],
)
def test_the_machine_says_what_there_is(
    memory: int, weights: int, metal: int | None, budget: int
) -> None:
    assert machine_budget(EngineSettings(), weights, memory, metal) == budget


def test_the_settings_go_before_the_machine() -> None:
    settings = EngineSettings(memory_mb=100)
    assert machine_budget(settings, 30 * GIB, 16 * GIB, 12 * GIB) == 100 * 1024**2


def test_this_machine_has_room() -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert GIB // 4 <= machine_budget(EngineSettings(), 0, memory, None) <= memory // 4 + GIB // 4


@pytest.mark.parametrize("kind", RAGGED)
def test_a_models_cache_is_as_large_as_predicted(kind: Kind, tmp_path: Path) -> None:
    folder = make_small_model(tmp_path / kind, kind)
    model, config = load_model(folder)
    caches = make_prompt_cache(model)
    model(mx.array([[1] * BLOCK]), cache=caches)
    mx.eval([cache.state for cache in caches])
    held = sum(cache.keys.nbytes + cache.values.nbytes for cache in caches)
    assert held == BLOCK * kv_bytes_per_token(config, caches[0].keys.itemsize)


def test_the_batch_never_holds_more_tokens_than_predicted() -> None:
    assert ragged.BLOCK == BLOCK
    cache = ragged.RaggedKVCache(ragged.Frame())
    keys = mx.zeros((1, 1, 1, 1))
    for tokens in range(1, 6 * BLOCK):
        cache.reserve(1, tokens, (keys, keys))
        assert cache.nbytes <= KVBudget(0, 2 * keys.itemsize).predicted([tokens])
