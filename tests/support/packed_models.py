"""Model folders as mlx-lm's own tools leave them: packed by ``mlx_lm.convert``, tuned by
``mlx_lm.lora``, sharded, in another library's format."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.convert import convert
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model, save_config

from punie_model_host.folder import INDEX

type Layers = Callable[[str, Any], bool | dict[str, Any]]

AWQ_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight numbers is in each four bits of a word."""


def pack(
    plain: Path,
    folder: Path,
    *,
    bits: int = 4,
    group_size: int = 32,
    mode: str = "affine",
    dtype: str = "bfloat16",
    layers: Layers | None = None,
) -> Path:
    """Convert the model `plain` into `folder` and return it; `layers` says what is different for a
    layer, by its name."""
    convert(
        str(plain),
        str(folder),
        quantize=True,
        q_bits=bits,
        q_group_size=group_size,
        q_mode=mode,
        dtype=dtype,
        quant_predicate=layers,  # ty: ignore[invalid-argument-type]  declared with one more
    )
    return folder


def edit_config(folder: Path, file: str = "config.json", /, **values: object) -> None:
    """Change keys of a JSON file; those with None go."""
    path = folder / file
    merged = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: v for key, v in merged.items() if v is not None}))


def shard(folder: Path) -> None:
    """Spread the weights over two files, with the index that says so."""
    whole = folder / "model.safetensors"
    weights = _load(whole)
    names = sorted(weights)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        mx.save_safetensors(str(folder / file), {name: weights[name] for name in part})
        index |= dict.fromkeys(part, file)
    whole.unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def tune(
    base: Path,
    folder: Path,
    *,
    rank: int = 4,
    scale: float = 10.0,
    dropout: float = 0.0,
    kind: str = "lora",
    keys: list[str] | None = None,
    named: str | None = None,
    seed: int = 7,
) -> Path:
    """Write the adapter that training on the model `base` could have left, and return `folder`:
    the layers are mlx-lm's, the numbers random. `named` is what it calls its model."""
    folder.mkdir(parents=True, exist_ok=True)
    model, _ = load_model(base)
    model.freeze()
    parameters = {"rank": rank, "scale": scale, "dropout": dropout, "keys": keys}
    if kind == "full":
        model.layers[-1].unfreeze()
    else:
        linear_to_lora_layers(model, 2, parameters, use_dora=kind == "dora")
    key, weights = mx.random.key(seed), {}
    trained: dict[str, Any] = dict(tree_flatten(model.trainable_parameters()))
    for name, old in trained.items():
        key, its = mx.random.split(key)
        weights[name] = old + 0.1 * mx.random.normal(old.shape, key=its)
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    config = {"model": named or str(base), "fine_tune_type": kind, "num_layers": 2}
    save_config(config | {"lora_parameters": parameters}, folder / "adapter_config.json")
    return folder


def as_awq(folder: Path, group_size: int = 32) -> None:
    """Make the plain weights of a folder those of AutoAWQ: matrices of layers in 4 bits."""
    weights: dict[str, mx.array] = {}
    rng = np.random.default_rng(3)
    for name, array in _load(folder / "model.safetensors").items():
        if not (name.startswith("model.layers") and name.endswith("proj.weight")):
            weights[name] = array
            continue
        outputs, inputs = array.shape
        prefix = name.removesuffix("weight")
        groups = inputs // group_size
        scales = rng.uniform(0.02, 0.04, (groups, outputs)).astype(np.float16)
        weights[f"{prefix}qweight"] = _words(rng.integers(0, 16, (inputs, outputs)))
        weights[f"{prefix}qzeros"] = _words(rng.integers(6, 10, (groups, outputs)))
        weights[f"{prefix}scales"] = mx.array(scales)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    packing = {"quant_method": "awq", "bits": 4, "group_size": group_size, "version": "gemm"}
    edit_config(folder, quantization_config=packing)


def awq_matrix(weights: Mapping[str, mx.array], prefix: str) -> np.ndarray:
    """Return the (outputs, inputs) matrix that AWQ's numbers mean."""
    numbers, zeros, scales = (
        np.array(weights[f"{prefix}.{part}"]) for part in ("qweight", "qzeros", "scales")
    )
    each = numbers.shape[0] // scales.shape[0]
    zeros, scales = (np.repeat(part, each, 0) for part in (_numbers(zeros), scales))
    return ((_numbers(numbers) - zeros) * scales.astype(np.float32)).T


def _words(numbers: np.ndarray) -> mx.array:
    eights = numbers.reshape(numbers.shape[0], -1, 8)[..., list(AWQ_ORDER)].astype(np.uint32)
    return mx.array((eights << (4 * np.arange(8, dtype=np.uint32))).sum(-1).astype(np.uint32))


def _numbers(words: np.ndarray) -> np.ndarray:
    shifts = 4 * np.argsort(AWQ_ORDER).astype(np.uint32)
    return ((words[..., None] >> shifts) & 15).reshape(words.shape[0], -1).astype(np.float32)


def _load(path: Path) -> dict[str, mx.array]:
    weights = mx.load(str(path))
    assert isinstance(weights, dict)
    mx.eval(weights)
    return weights
