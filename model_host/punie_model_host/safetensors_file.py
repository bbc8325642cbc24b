"""What a safetensors file says it holds, checked against its size. Format: 8 bytes little-endian
length, then JSON: https://github.com/huggingface/safetensors#format.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from punie_model_host.failures import load_failed

_MAX_HEADER: Final = 100_000_000
_BITS: Final = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}
"""The types that MLX reads from a safetensors file."""


@dataclass(frozen=True, slots=True)
class Tensors:
    """The names of a file's tensors, and the bytes of the file."""

    names: frozenset[str]
    nbytes: int


def check_safetensors(folder: Path, file: str) -> Tensors:
    """Return what is in `file` of `folder`. Raises `PunieError` with `ModelLoadFailed` when it is
    missing, cut off or no such file."""
    try:
        with (folder / file).open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise load_failed(folder, file, "is cut off or no safetensors file: no header")
            header = json.loads(stream.read(length))
    except FileNotFoundError:
        raise load_failed(folder, file, "is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise load_failed(folder, file, f"header cannot be read: {text}") from None
    if not isinstance(header, dict):
        raise load_failed(folder, file, "header is not a JSON object")
    header.pop("__metadata__", None)
    end = max((_tensor_end(folder, file, *item) for item in header.items()), default=0)
    if (promised := 8 + length + end) != size:
        reason = f"is half-copied or damaged: {size} bytes, its header promises {promised}"
        raise load_failed(folder, file, reason)
    return Tensors(frozenset(header), size)


def _tensor_end(folder: Path, file: str, name: str, entry: Any) -> int:
    try:
        kind, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        bits = _BITS.get(kind)
        fits = bits is None or (end - start) * 8 == math.prod(shape) * bits
    except KeyError, TypeError, ValueError:
        raise load_failed(folder, file, f"header entry {name} is damaged") from None
    if bits is None:
        hint = "convert the model with mlx_lm.convert"
        raise load_failed(folder, file, f"{name} has unknown type {kind!r}", hint)
    if not fits or start < 0:
        raise load_failed(folder, file, f"header entry {name} is damaged")
    return end
