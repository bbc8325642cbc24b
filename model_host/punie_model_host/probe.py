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
from punie_model_host.profile import KVQuantization, SamplingProfile
from punie_model_host.sampling import RowSampler
from punie_model_host.sampling_plan import plan_sampling
from punie_model_host.sequences import arrays_of, new_caches
from punie_protocol.messages.to_model_host import Sampling

_PROMPTS: Final = (tuple(range(1, 6)), tuple(range(3, 12)), tuple(range(2, 4)))
_NOISE: Final = 0.05
"""Share of what a wrong context changes that rounding may change."""
_PACKED_NOISE: Final = 0.25
"""The same for packed keys and values: where rounding decides between two of so few steps, it
changes a number by a step."""
_TINY: Final = 1e-4
_PLAIN: Final = [KVCache.__name__]

_log = logging.getLogger(__name__)


def make_batch(model: Any, name: str, quantization: KVQuantization | None = None) -> Batch:
    """Return the batch that `model` can be computed in, and say in the log when it is the slow
    one."""
    fault = why_not_ragged(model)
    if fault is None and quantization is not None:
        fault = why_not_ragged(model, quantization)
    if fault is None:
        return RaggedBatch(model, len(make_prompt_cache(model)), quantization)
    event(_log, logging.WARNING, "decodes-one-by-one", model=name, reason=fault)
    return SoloBatch(model, quantization)


def why_not_quantized(model: Any, quantization: KVQuantization) -> str | None:
    """Return why the model's keys and values cannot be packed so, None when they can. Computes
    nothing: shapes tell, also before the weights are read."""
    caches, group = make_prompt_cache(model), quantization.group_size
    if (kinds := _kinds(caches)) != _PLAIN:
        return f"kv_bits needs plain caches, the model's are {', '.join(kinds)}"
    try:
        model(mx.array([[0]]), cache=caches)
        sizes = sorted({array.shape[-1] for cache in caches for array in arrays_of(cache)})
        if wrong := [size for size in sizes if size % group]:
            return f"kv_group_size {group} does not divide the model's head size {wrong[0]}"
        model(mx.array([[0, 0]]), cache=new_caches(model, quantization))
    except Exception as error:  # noqa: BLE001  a model that cannot take packed caches says it so
        return f"kv_bits fails with it: {type(error).__name__}: {str(error)[:200]}"
    return None


def why_not_ragged(model: Any, quantization: KVQuantization | None = None) -> str | None:
    """Return why rows of different lengths cannot share a forward, None when they can.

    The caches must be plain, one key and value a token; and the logits of a ragged batch must equal
    those of each row alone, far better than those of a context that lacks one token.
    """
    if (kinds := _kinds(make_prompt_cache(model))) != _PLAIN:
        return f"its caches are {', '.join(kinds)}"
    try:
        off, wrong = _errors(model, quantization)
    except Exception as error:  # noqa: BLE001  a model that cannot take ragged caches says it so
        return f"a ragged batch fails: {type(error).__name__}: {str(error)[:200]}"
    if not off <= (_NOISE if quantization is None else _PACKED_NOISE) * wrong + _TINY:
        return f"logits in a ragged batch are off by {off:.2g}, a wrong context by {wrong:.2g}"
    return None


def _kinds(caches: Sequence[Any]) -> list[str]:
    return sorted({type(cache).__name__ for cache in caches})


def _errors(model: Any, quantization: KVQuantization | None) -> tuple[float, float]:
    """Return by how much logits differ in a batch, and by how much they do without a token."""
    batch = RaggedBatch(model, len(make_prompt_cache(model)), quantization)
    for number, prompt in enumerate(_PROMPTS):
        batch.join(_row(batch, model, number, prompt))
    together = batch.forward()
    alone = mx.concatenate([_logits(batch, model, prompt) for prompt in _PROMPTS])
    wrong = mx.concatenate([_logits(batch, model, prompt[1:]) for prompt in _PROMPTS])
    return _distance(together, alone), _distance(wrong, alone)


def _distance(some: mx.array, others: mx.array) -> float:
    off = mx.abs(some.astype(mx.float32) - others.astype(mx.float32)).max()
    mx.eval(off)
    return float(memoryview(off)[()])


def _logits(batch: Batch, model: Any, tokens: Sequence[int]) -> mx.array:
    return model(mx.array([list(tokens)]), cache=batch.new_caches())[:, -1, :]


def _row(batch: Batch, model: Any, number: int, prompt: Sequence[int]) -> Row:
    caches = batch.new_caches()
    mx.eval(model(mx.array([list(prompt[:-1])]), cache=caches))
    sampler = RowSampler(plan_sampling(Sampling(), SamplingProfile(), 2), 2, prompt)
    return Row(
        key=Key(0, number),
        caches=caches,
        length=len(prompt) - 1,
        token=mx.array(list(prompt[-1:])),
        sampler=sampler,
    )
