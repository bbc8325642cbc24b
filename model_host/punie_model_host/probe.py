"""Whether a model can be computed with rows of different lengths in one batch: tried, not
guessed."""

import logging
from collections.abc import Sequence
from typing import Any, Final

import mlx.core as mx
from mlx_lm.models.cache import KVCache, make_prompt_cache

from punie_model_host.batch import Batch, RaggedBatch, Row, SoloBatch
from punie_model_host.engine_messages import Key
from punie_model_host.log import event
from punie_model_host.profile import SamplingProfile
from punie_model_host.sampling import RowSampler
from punie_model_host.sampling_plan import plan_sampling
from punie_protocol.messages.to_model_host import Sampling

_PROMPTS: Final = (tuple(range(1, 6)), tuple(range(3, 12)), tuple(range(2, 4)))
_NOISE: Final = 0.05
"""Share of what a wrong context changes that rounding may change."""
_TINY: Final = 1e-4

_log = logging.getLogger(__name__)


def make_batch(model: Any, name: str) -> Batch:
    """Return the batch that `model` can be computed in, and say in the log when it is the slow
    one."""
    fault = why_not_ragged(model)
    if fault is None:
        return RaggedBatch(model, len(make_prompt_cache(model)))
    event(_log, logging.WARNING, "decodes-one-by-one", model=name, reason=fault)
    return SoloBatch(model)


def why_not_ragged(model: Any) -> str | None:
    """Return why rows of different lengths cannot share a forward, None when they can.

    The caches must be plain, one key and value a token; and the logits of a ragged batch must equal
    those of each row alone, far better than those of a context that lacks one token.
    """
    kinds = {type(cache).__name__ for cache in make_prompt_cache(model)}
    if kinds != {KVCache.__name__}:
        return f"its caches are {', '.join(sorted(kinds))}"
    try:
        off, wrong = _errors(model)
    except Exception as error:  # noqa: BLE001  a model that cannot take ragged caches says it so
        return f"a ragged batch fails: {type(error).__name__}: {str(error)[:200]}"
    if not off <= _NOISE * wrong + _TINY:
        return f"logits in a ragged batch are off by {off:.2g}, a wrong context by {wrong:.2g}"
    return None


def _errors(model: Any) -> tuple[float, float]:
    """Return by how much logits differ in a batch, and by how much they do without a token."""
    batch = RaggedBatch(model, len(make_prompt_cache(model)))
    for number, prompt in enumerate(_PROMPTS):
        batch.join(_row(model, number, prompt))
    together = batch.forward()
    alone = mx.concatenate([_logits(model, prompt) for prompt in _PROMPTS])
    wrong = mx.concatenate([_logits(model, prompt[1:]) for prompt in _PROMPTS])
    return _distance(together, alone), _distance(wrong, alone)


def _distance(some: mx.array, others: mx.array) -> float:
    off = mx.abs(some.astype(mx.float32) - others.astype(mx.float32)).max()
    mx.eval(off)
    return float(memoryview(off)[()])


def _logits(model: Any, tokens: Sequence[int]) -> mx.array:
    return model(mx.array([list(tokens)]), cache=make_prompt_cache(model))[:, -1, :]


def _row(model: Any, number: int, prompt: Sequence[int]) -> Row:
    caches = make_prompt_cache(model)
    mx.eval(model(mx.array([list(prompt[:-1])]), cache=caches))
    sampler = RowSampler(plan_sampling(Sampling(), SamplingProfile(), 2), 2, prompt)
    return Row(
        key=Key(0, number),
        caches=caches,
        length=len(prompt) - 1,
        token=mx.array(list(prompt[-1:])),
        sampler=sampler,
    )
