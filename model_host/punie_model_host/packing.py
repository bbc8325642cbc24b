"""How a folder's weights are packed, as its configuration says; checked before MLX meets it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from punie_model_host.failures import load_failed

type Packing = Mapping[str, Any]
"""mlx-lm's ``quantization``: ``bits``, ``group_size``, ``mode`` of all layers, and by a layer's
name what is different there, or whether it is packed at all."""

_MODES: Final = {
    "affine": ((1, 2, 3, 4, 5, 6, 8), (32, 64, 128)),
    "mxfp4": ((4,), (32,)),
    "nvfp4": ((4,), (16,)),
    "mxfp8": ((8,), (32,)),
}
"""Bits and group sizes that MLX has."""
_HINT: Final = "convert the original model with mlx_lm.convert -q"


def packing_of(folder: Path, config: Mapping[str, Any]) -> Packing | None:
    """Return how the weights are packed; None when they are not, or in another library's way,
    which mlx-lm reads or refuses. Raises `PunieError` for what MLX cannot compute."""
    given, key = config.get("quantization"), "quantization"
    if given is None:
        given, key = config.get("quantization_config"), "quantization_config"
        if not isinstance(given, Mapping) or "quant_method" in given or "bits" not in given:
            return None
    if not isinstance(given, Mapping):
        raise load_failed(folder, "config.json", f"{key} is not an object", _HINT)
    _check(folder, key, {"bits": None, "group_size": None} | dict(given))
    for layer, own in given.items():
        if isinstance(own, Mapping):
            _check(folder, f"{key} of {layer}", own)  # of no mode is affine, whatever others are
    return given


def foreign_method(config: Mapping[str, Any]) -> str:
    """Return the name of another library's way to pack weights; empty if it is not one."""
    given = config.get("quantization_config")
    method = given.get("quant_method") if isinstance(given, Mapping) else None
    return method if isinstance(method, str) and "quantization" not in config else ""


def _check(folder: Path, what: str, values: Packing) -> None:
    mode = values.get("mode", "affine")
    if not isinstance(mode, str) or mode not in _MODES:
        reason = f"{what}: mode {mode!r}; MLX has {', '.join(_MODES)}"
        raise load_failed(folder, "config.json", reason, _HINT)
    for name, allowed in zip(("bits", "group_size"), _MODES[mode], strict=True):
        value = values.get(name, allowed[0])
        if isinstance(value, bool) or value not in allowed:
            choice = ", ".join(map(str, allowed))
            reason = f"{what}: {name} is {value!r}; for {mode} MLX has {choice}"
            raise load_failed(folder, "config.json", reason, _HINT)
