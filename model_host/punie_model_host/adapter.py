"""A folder with an adapter, as ``mlx_lm.lora`` writes it: a few numbers a layer that are added to a
model's weights. What its files alone can tell, in milliseconds; nothing here needs MLX.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from punie_model_host.failures import load_failed
from punie_model_host.files import check_is_folder, read_object
from punie_model_host.safetensors_file import check_safetensors

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapters.safetensors"
_TRAIN: Final = "train the adapter with mlx_lm.lora, or merge it into its model with its own tool"
_MAX_RANK: Final = 65_536


class Tuning(StrEnum):
    """What an adapter is made of."""

    LORA = "lora"
    DORA = "dora"
    FULL = "full"
    """Weights in place of the model's."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter folder that passed the checks. `base` is the model that it was trained on, as its
    configuration calls it, empty if it does not say; `tensors` are the names in its file."""

    path: Path
    tuning: Tuning
    base: str
    tensors: frozenset[str]
    weight_bytes: int


class _Parameters(msgspec.Struct, frozen=True):
    rank: Annotated[int, Meta(ge=1, le=_MAX_RANK)]
    scale: float
    dropout: Annotated[float, Meta(ge=0, lt=1)]
    keys: list[str] | None = None


class _File(msgspec.Struct, frozen=True):
    fine_tune_type: Tuning = Tuning.LORA
    model: str = ""
    num_layers: int | None = None
    lora_parameters: _Parameters | None = None


def is_adapter(folder: Path) -> bool:
    """Return whether it looks as if an adapter, not a model, is in `folder`."""
    try:
        return (folder / CONFIG).is_file() and not (folder / "config.json").exists()
    except OSError, ValueError:
        return False


def check_adapter(folder: Path) -> Adapter:
    """Return what is in `folder`. Raises `PunieError` with `ModelLoadFailed` that names the file at
    fault."""
    check_is_folder(folder, "adapter folder")
    config = read_object(folder, CONFIG)
    if "peft_type" in config:
        raise load_failed(folder, CONFIG, "is of PEFT, which mlx-lm cannot read", _TRAIN)
    file = _parse(folder, config)
    tensors = check_safetensors(folder, WEIGHTS)
    if not tensors.names:
        raise load_failed(folder, WEIGHTS, "holds no tensors", _TRAIN)
    return Adapter(
        path=folder,
        tuning=file.fine_tune_type,
        base=file.model,
        tensors=tensors.names,
        weight_bytes=tensors.nbytes,
    )


def _parse(folder: Path, config: dict[str, Any]) -> _File:
    try:
        file = msgspec.convert(config, _File)
    except msgspec.ValidationError as error:
        raise load_failed(folder, CONFIG, str(error), _TRAIN) from None
    if file.fine_tune_type is not Tuning.FULL:
        for key in ("num_layers", "lora_parameters"):
            if getattr(file, key) is None:
                raise load_failed(folder, CONFIG, f"has no {key}", _TRAIN)
    return file
