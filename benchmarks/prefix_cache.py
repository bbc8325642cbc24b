"""The look-up in the prefix cache: ours beside mlx-lm's `LRUPromptCache`, in one run.

``python -m benchmarks.prefix_cache --json``. Conversations of N tokens with one layer of tiny keys
and values, so that the search is what is timed; the question shares its first half with all of
them. Also: what is left to compute for a prompt that is cached whole.
"""

import random
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, LRUPromptCache

from benchmarks import common
from punie_model_host.prompt_cache import PromptCache

SIZES = (1_000, 4_000, 16_000)
CONVERSATIONS = 8
VOCABULARY = 150_000


class _Model:
    """What `make_prompt_cache` asks of a model."""

    layers = (None,)


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__, samples=20)
    result: dict[str, Any] = {"conversations": CONVERSATIONS, "samples": {}}
    for size in SIZES:
        raw = _lookups(size, options.samples)
        result["samples"][str(size)] = raw
        result |= {f"{name}_ms_{size}": common.median(times) for name, times in raw.items()}
    result |= _whole_prompt()
    common.finish(result, as_json=options.json)


def _lookups(size: int, samples: int) -> dict[str, list[float]]:
    rng = random.Random(size)
    shared = _tokens(rng, size // 2)
    question = shared + _tokens(rng, size // 2)
    theirs, ours = LRUPromptCache(), PromptCache(1 << 40)
    for number in range(CONVERSATIONS):
        tokens = shared + _tokens(rng, size // 2)
        theirs.insert_cache("m", tokens, _layers(size))
        ours.put(tokens, _layers(size), str(number))

    def take() -> None:
        assert ours.take(_Model, question, "new").cached == size // 2

    def fetch() -> None:
        assert len(theirs.fetch_nearest_cache("m", question)[1]) == size // 2

    return {
        "punie": [common.timed(take) for _ in range(samples)],
        "mlx_lm": [common.timed(fetch) for _ in range(samples)],
    }


def _whole_prompt() -> dict[str, int]:
    """Return how many tokens each leaves to compute for a prompt that it has whole; a model needs
    at least one to say what comes next."""
    tokens = _tokens(random.Random(0), 100)
    theirs, ours = LRUPromptCache(), PromptCache(1 << 40)
    theirs.insert_cache("m", tokens, _layers(100))
    ours.put(tokens, _layers(100), "a")
    return {
        "whole_prompt_left_mlx_lm": len(theirs.fetch_nearest_cache("m", tokens)[1]),
        "whole_prompt_left_punie": 100 - ours.take(_Model, tokens, "a").cached,
    }


def _tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(count)]


def _layers(size: int) -> list[KVCache]:
    cache = KVCache()
    cache.update_and_fetch(mx.zeros((1, 1, size, 1)), mx.zeros((1, 1, size, 1)))
    return [cache]


if __name__ == "__main__":
    main()
