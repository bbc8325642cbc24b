"""The prefix cache beside mlx-lm's `LRUPromptCache`, in one run.

``python -m benchmarks.prefix_cache --json``. Three parts:

- the look-up: conversations of N tokens with one layer of tiny keys and values, so that the search
  is what is timed; the question shares its first half with all of them;
- what is left to compute for a prompt that is cached whole, and the bytes held for conversations
  that share a beginning;
- with keys and values of a real size: to keep a conversation, to borrow it, to write it to disk,
  to find it there after a restart, to read it back.
"""

import random
import tempfile
from array import array
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, LRUPromptCache

from benchmarks import common
from punie_model_host.kv_arrays import LayerKV, size_of
from punie_model_host.kv_tier import KVTier
from punie_model_host.prefix_cache import PrefixCache, Read

SIZES = (1_000, 4_000, 16_000)
CONVERSATIONS = 8
VOCABULARY = 150_000
ROOMY = 1 << 40
LAYERS, HEADS, HEAD_SIZE, REAL = 16, 4, 64, 4_000
"""32 kB a token in fp32, a third of what a 30B model has in bf16."""


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__, samples=20)
    result: dict[str, Any] = {"conversations": CONVERSATIONS, "samples": {}}
    for size in SIZES:
        raw = _lookups(size, options.samples)
        result["samples"][str(size)] = raw
        result |= {f"{name}_ms_{size}": common.median(times) for name, times in raw.items()}
    result |= _whole_prompt() | _bytes_held()
    raw = _real(max(3, options.samples // 4))
    result["samples"]["real"] = raw
    result |= {f"{name}_ms": common.median(times) for name, times in raw.items()}
    result["real_mb"] = round(REAL * LAYERS * HEADS * HEAD_SIZE * 2 * 4 / 1e6, 1)
    common.finish(result, as_json=options.json)


def _lookups(size: int, samples: int) -> dict[str, list[float]]:
    rng = random.Random(size)
    shared = _tokens(rng, size // 2)
    question = shared + _tokens(rng, size // 2)
    theirs, ours = LRUPromptCache(), PrefixCache(ROOMY)
    for _ in range(CONVERSATIONS):
        tokens = shared + _tokens(rng, size // 2)
        theirs.insert_cache("m", tokens, _caches(_layers(size, 1, 1, 1)))
        ours.put(tokens, _reader(_layers(size, 1, 1, 1)))
    as_array = array("I", question)

    def match(tokens: list[int] | array[int]) -> None:
        assert ours.match(tokens) == size // 2

    def lease() -> None:
        lease = ours.lease(question)
        assert lease.length == size // 2
        mx.eval(lease.layers)

    def fetch() -> None:
        assert len(theirs.fetch_nearest_cache("m", question)[1]) == size // 2

    return {
        "punie_match": [common.timed(partial(match, question)) for _ in range(samples)],
        "punie_match_array": [common.timed(partial(match, as_array)) for _ in range(samples)],
        "punie_lease": [common.timed(lease) for _ in range(samples)],
        "mlx_lm_fetch": [common.timed(fetch) for _ in range(samples)],
    }


def _whole_prompt() -> dict[str, int]:
    """Return how many tokens each leaves to compute for a prompt that it has whole; a model needs
    at least one to say what comes next."""
    tokens = _tokens(random.Random(0), 100)
    theirs, ours = LRUPromptCache(), PrefixCache(ROOMY)
    theirs.insert_cache("m", tokens, _caches(_layers(100, 1, 1, 1)))
    ours.put(tokens, _reader(_layers(100, 1, 1, 1)))
    return {
        "whole_prompt_left_mlx_lm": len(theirs.fetch_nearest_cache("m", tokens)[1]),
        "whole_prompt_left_punie": 100 - ours.lease(tokens).length,
    }


def _bytes_held() -> dict[str, float]:
    """Return the bytes for conversations that have half of 4,000 tokens in common, as a share of
    what all of them would take one by one."""
    rng = random.Random(1)
    shared = _tokens(rng, 2_000)
    theirs, ours = LRUPromptCache(), PrefixCache(ROOMY)
    for _ in range(CONVERSATIONS):
        tokens = shared + _tokens(rng, 2_000)
        theirs.insert_cache("m", tokens, _caches(_layers(4_000, 1, 2, 8)))
        ours.put(tokens, _reader(_layers(4_000, 1, 2, 8)))
    alone = CONVERSATIONS * size_of(_layers(4_000, 1, 2, 8))
    return {
        "bytes_held_mlx_lm": round(theirs.nbytes / alone, 3),
        "bytes_held_punie": round(ours.nbytes / alone, 3),
    }


def _real(rounds: int) -> dict[str, list[float]]:
    """Return milliseconds for one conversation of `REAL` tokens, a fresh one each round."""
    raw: dict[str, list[float]] = {}
    for number in range(rounds):
        tokens = array("I", [*_tokens(random.Random(number), REAL), 0])
        with tempfile.TemporaryDirectory() as folder:
            for name, took in _round(Path(folder), tokens).items():
                raw.setdefault(name, []).append(took)
    return raw


def _round(folder: Path, tokens: array[int]) -> dict[str, float]:
    layers = _layers(len(tokens), LAYERS, HEADS, HEAD_SIZE)
    mx.eval(layers)

    def start() -> PrefixCache:
        return PrefixCache(ROOMY, tier=KVTier(folder, "ab" * 16, ROOMY, 0))

    def warm() -> None:
        assert not again.warm(tokens, ROOMY)

    cache = start()
    took = {
        "put": common.timed(lambda: cache.put(tokens, _reader(layers))),
        "borrow": common.timed(lambda: mx.eval(cache.lease(tokens).layers)),
        "flush": common.timed(lambda: cache.flush(lambda: False)),
        "start": common.timed(start),
    }
    again = start()
    took["warm"] = common.timed(warm)
    assert again.lease(tokens).length == REAL
    return took


def _tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(count)]


def _layers(tokens: int, layers: int, heads: int, size: int) -> list[LayerKV]:
    shape = (1, heads, tokens, size)
    return [(mx.zeros(shape), mx.zeros(shape)) for _ in range(layers)]


def _reader(layers: list[LayerKV]) -> Read:
    return lambda start, stop: [(k[:, :, start:stop], v[:, :, start:stop]) for k, v in layers]


def _caches(layers: list[LayerKV]) -> list[KVCache]:
    caches = []
    for keys, values in layers:
        cache = KVCache()
        cache.update_and_fetch(keys, values)
        caches.append(cache)
    return caches


if __name__ == "__main__":
    main()
