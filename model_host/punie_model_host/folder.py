"""Whether a model folder can be loaded: everything that files alone can tell, in milliseconds.

Nothing here needs MLX. Formats: the safetensors header (8 bytes little-endian length, then JSON:
https://github.com/huggingface/safetensors#format) and Hugging Face's sharded index.
"""

import importlib.util
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from punie_model_host.failures import load_failed
from punie_protocol.errors import InvalidRequest, PunieError

EMBEDDED: Final = "embedded"
INDEX: Final = "model.safetensors.index.json"
_EMBEDDED_FOLDER: Final = Path(__file__).parent / "embedded"
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model")
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
class ModelFolder:
    """A folder that passed the checks. `weight_bytes` counts the files of weights."""

    path: Path
    config: dict[str, Any]
    generation: dict[str, Any]
    template: str
    weight_bytes: int

    @property
    def is_quantized(self) -> bool:
        """Whether the configuration says that weights are packed."""
        return bool(self.config.get("quantization") or self.config.get("quantization_config"))


def resolve(model: str, models_dir: Path) -> Path:
    """Return the folder that `model` means: ``embedded``, an absolute path (or one with ``~``),
    or a folder of `models_dir`. Raises `PunieError`; the folder need not exist."""
    if model == EMBEDDED:
        return _EMBEDDED_FOLDER
    path = Path(model).expanduser() if model.startswith("~") else Path(model)
    if path.is_absolute():
        return path
    if not model or ".." in path.parts or "\0" in model:
        hint = "use the name of a folder, or an absolute path"
        raise PunieError(InvalidRequest(message=f"{model!r} names no model", hint=hint))
    return models_dir / path


def check_folder(folder: Path) -> ModelFolder:
    """Return what is in `folder`. Raises `PunieError` with `ModelLoadFailed` that names the first
    file at fault."""
    _check_is_folder(folder)
    config = _json_object(folder, "config.json")
    _check_model_type(folder, config)
    _check_tokenizer(folder)
    weight_bytes = _check_weights(folder)
    has_generation = (folder / "generation_config.json").exists()
    return ModelFolder(
        path=folder,
        config=config,
        generation=_json_object(folder, "generation_config.json") if has_generation else {},
        template=_template(folder),
        weight_bytes=weight_bytes,
    )


def _check_is_folder(folder: Path) -> None:
    try:
        with os.scandir(folder):
            pass
    except FileNotFoundError:
        hint = "give an absolute path, or put the folder into Punie's models folder"
        raise load_failed(folder, "", "no such model folder", hint) from None
    except NotADirectoryError:
        hint = "give the folder that holds config.json"
        raise load_failed(folder, "", "is a file, not a model folder", hint) from None
    except (OSError, ValueError) as error:
        raise load_failed(folder, "", _reason(error), "check its permissions") from None


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else str(error)
    return f"cannot be read: {text}"


def _read(folder: Path, file: str) -> str:
    try:
        return (folder / file).read_text("utf-8")
    except FileNotFoundError:
        raise load_failed(folder, file, "is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise load_failed(folder, file, _reason(error)) from None


def _json_object(folder: Path, file: str) -> dict[str, Any]:
    text = _read(folder, file)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise load_failed(folder, file, f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise load_failed(folder, file, "is not a JSON object")
    return value


def _check_model_type(folder: Path, config: dict[str, Any]) -> None:
    from mlx_lm.utils import MODEL_REMAPPING  # half a second, only when needed

    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise load_failed(folder, "config.json", "has no model_type")
    module = MODEL_REMAPPING.get(kind, kind)
    known = re.fullmatch(r"[\w-]+", module) and importlib.util.find_spec(f"mlx_lm.models.{module}")
    if not known:
        hint = "use a model that mlx-lm supports, converted with mlx_lm.convert"
        raise load_failed(folder, "config.json", f"model_type {kind!r} is not supported", hint)
    if config.get("model_file"):
        hint = "Punie runs no code from model folders"
        raise load_failed(folder, "config.json", "asks to run its own model_file", hint)


def _check_tokenizer(folder: Path) -> None:
    if not any((folder / name).exists() for name in _TOKENIZERS):
        raise load_failed(folder, _TOKENIZERS[0], "is missing")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).exists():
            _json_object(folder, name)


def _template(folder: Path) -> str:
    """Return the chat template's text, all of them when there are several."""
    config = folder / "tokenizer_config.json"
    settings = _json_object(folder, config.name) if config.exists() else {}
    for name in ("chat_template.jinja", "chat_template.json"):
        if (folder / name).exists():
            return _read(folder, name)
    template = settings.get("chat_template")
    if isinstance(template, list):
        return "\n".join(str(entry.get("template", "")) for entry in template)
    if isinstance(template, str) and template:
        return template
    if settings.get("chat_template_type"):
        return ""
    hint = "use a chat or instruct model; a base model cannot hold a conversation"
    raise load_failed(folder, "chat_template.jinja", "is missing: no chat template", hint)


def _check_weights(folder: Path) -> int:
    index = _index(folder) if (folder / INDEX).exists() else {}
    found = {path.name for path in folder.iterdir() if _is_weights(path.name)}
    files = sorted(found | set(index))
    if not files:
        raise load_failed(folder, "model.safetensors", "is missing: no weights in this folder")
    total = 0
    for file in files:
        tensors, size = _check_safetensors(folder, file)
        if missing := index.get(file, set()) - tensors:
            reason = f"lacks {min(missing)} and {len(missing) - 1} more that {INDEX} names"
            raise load_failed(folder, file, reason)
        total += size
    return total


def _is_weights(name: str) -> bool:
    return name.startswith("model") and name.endswith(".safetensors")


def _index(folder: Path) -> dict[str, set[str]]:
    """Return the tensors that each file should have, by file."""
    weight_map = _json_object(folder, INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise load_failed(folder, INDEX, "has no weight_map")
    files: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or "/" in file or not _is_weights(file):
            raise load_failed(folder, INDEX, f"names {file!r}, no model*.safetensors file")
        files.setdefault(file, set()).add(tensor)
    return files


def _check_safetensors(folder: Path, file: str) -> tuple[set[str], int]:
    """Return the names of the tensors in `file`, and its size."""
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
        raise load_failed(folder, file, f"header {_reason(error)}") from None
    if not isinstance(header, dict):
        raise load_failed(folder, file, "header is not a JSON object")
    header.pop("__metadata__", None)
    end = max((_tensor_end(folder, file, *item) for item in header.items()), default=0)
    if (promised := 8 + length + end) != size:
        reason = f"is half-copied or damaged: {size} bytes, its header promises {promised}"
        raise load_failed(folder, file, reason)
    return set(header), size


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
