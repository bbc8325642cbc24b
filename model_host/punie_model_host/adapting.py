"""An adapter on a model: mlx-lm's own layers, round those that it changes. For the engine's
thread; nothing is read yet."""

from collections import Counter
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import load_adapters

from punie_model_host.adapter import WEIGHTS, Adapter, Tuning
from punie_model_host.failures import load_failed

_LEAVES: Final = frozenset({"lora_a", "lora_b", "m"})
_HINT: Final = "name the model that it was trained on, or train it again with mlx_lm.lora"


def apply(model: Any, adapter: Adapter, base: Path) -> None:
    """Change `model`, which is that of the folder `base`. What is added has the type of the model's
    own numbers: else an answer would take on its type, and keys and values twice the memory. Raises
    `PunieError` when the adapter is not one for it."""
    before = _parameters(model)
    if packed := [name for name in sorted(adapter.tensors) if _is_packed(before.get(name))]:
        reason = f"has {packed[0]} and {len(packed) - 1} more, which are packed in {base}"
        raise load_failed(adapter.path, WEIGHTS, reason, _HINT)
    try:
        load_adapters(model, str(adapter.path))
    except Exception as error:
        reason = f"does not fit the model in {base}: {_first_fault(error)}"
        raise load_failed(adapter.path, WEIGHTS, reason, _HINT) from error
    model.eval()  # layers that are made for training drop some of what they are given
    after = _parameters(model)
    if adapter.tuning is not Tuning.FULL:
        _check_all_there(after, adapter, base)
    kind = _kind(before)
    own = {name: before[name].dtype if name in before else kind for name in adapter.tensors}
    model.update(tree_unflatten([(name, after[name].astype(own[name])) for name in own]))


def _check_all_there(parameters: dict[str, Any], adapter: Adapter, base: Path) -> None:
    needed = {name for name in parameters if name.rpartition(".")[2] in _LEAVES}
    if missing := needed - adapter.tensors:
        reason = f"lacks {min(missing)} and {len(missing) - 1} more for the model in {base}"
        raise load_failed(adapter.path, WEIGHTS, reason, _HINT)


def _parameters(model: Any) -> dict[str, Any]:
    return dict(tree_flatten(model.parameters()))


def _is_packed(array: mx.array | None) -> bool:
    return array is not None and not mx.issubdtype(array.dtype, mx.floating)


def _kind(parameters: dict[str, Any]) -> mx.Dtype:
    """Return the type of most of the tensors that are no packed integers."""
    kinds = Counter(array.dtype for array in parameters.values() if not _is_packed(array))
    return kinds.most_common(1)[0][0] if kinds else mx.float32


def _first_fault(error: Exception) -> str:
    """Of mlx-lm's list, a line for each tensor under a heading, the first and their number."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) < 2:
        return (lines or [type(error).__name__])[0][:300]
    more = f" and {len(lines) - 2} more" if len(lines) > 2 else ""
    return lines[1][:300] + more
