"""Whether a model folder can be loaded: everything that files alone can tell, in milliseconds.

Nothing here needs MLX. Format: Hugging Face's model folders, with the index of several files.
"""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from punie_model_host.adapter import CONFIG as ADAPTER_CONFIG
from punie_model_host.adapter import Adapter, check_adapter, is_adapter
from punie_model_host.failures import load_failed
from punie_model_host.files import check_is_folder, expanded, read_object, read_text
from punie_model_host.packing import Packing, packing_of
from punie_model_host.profile import Profile, load_profile
from punie_model_host.safetensors_file import check_safetensors
from punie_protocol.errors import InvalidRequest, PunieError

EMBEDDED: Final = "embedded"
INDEX: Final = "model.safetensors.index.json"
_EMBEDDED_FOLDER: Final = Path(__file__).parent / "embedded"
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model")
_NAME_BASE: Final = (
    f'put the model there, or set "model" in {ADAPTER_CONFIG} to the absolute path of its folder'
)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder that passed the checks; without `chats` it needs no chat template. `named` is the
    folder that was asked for: `path`, which holds the model, or that of an adapter on it.
    `packing` says how weights are packed, `weight_bytes` counts the files of weights, an adapter's
    too."""

    path: Path
    named: Path
    config: dict[str, Any]
    profile: Profile
    packing: Packing | None
    adapter: Adapter | None
    weight_bytes: int
    chats: bool = True


def find_model(model: str, models_dir: Path, *, chats: bool = True) -> ModelFolder:
    """Return what `model` means as `resolve` says; the folder of an adapter means its model with
    it. Raises `PunieError`, as `check_folder` does."""
    folder = resolve(model, models_dir)
    if not is_adapter(folder):
        return check_folder(folder, chats=chats)
    adapter = check_adapter(folder)
    return check_folder(_base(adapter, models_dir), chats=chats, adapter=adapter)


def resolve(model: str, models_dir: Path) -> Path:
    """Return the folder that `model` means: ``embedded``, an absolute path (or one with ``~``),
    or a folder of `models_dir`. Raises `PunieError`; the folder need not exist."""
    if model == EMBEDDED:
        return _EMBEDDED_FOLDER
    path = expanded(model)
    if path.is_absolute():
        return path
    if not model or ".." in path.parts or "\0" in model:
        hint = "use the name of a folder, or an absolute path"
        raise PunieError(InvalidRequest(message=f"{model!r} names no model", hint=hint))
    return models_dir / path


def _base(adapter: Adapter, models_dir: Path) -> Path:
    """Return the folder of the model that an adapter is for. Where it was trained the model may
    have had another place, or come from a hub as ``organisation/name``."""
    if not adapter.base:
        reason = "does not say which model it is for"
        raise load_failed(adapter.path, ADAPTER_CONFIG, reason, _NAME_BASE)
    given = expanded(adapter.base)
    if given.is_absolute():
        return given
    places = [models_dir / given.name]
    if ".." not in given.parts:
        places.insert(0, models_dir / given)
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        reason = f"is for the model {adapter.base!r}, of which {models_dir} has no folder"
        raise load_failed(adapter.path, ADAPTER_CONFIG, reason, _NAME_BASE)
    return found


def check_folder(
    folder: Path, *, chats: bool = True, adapter: Adapter | None = None
) -> ModelFolder:
    """Return what is in `folder`, for use with `adapter` or the one that its profile names; a model
    that never `chats` needs no chat template. Raises `PunieError` with `ModelLoadFailed` that names
    the first file at fault."""
    check_is_folder(folder, "model folder")
    config = read_object(folder, "config.json")
    _check_model_type(folder, config)
    _check_tokenizer(folder)
    packing = packing_of(folder, config)
    weight_bytes = _check_weights(folder)
    named = adapter.path if adapter else folder
    profile = _profile(folder, config, adapter, _template(folder) if chats else "")
    if adapter is None and profile.adapter is not None:
        adapter = check_adapter(folder / expanded(profile.adapter))
    return ModelFolder(
        path=folder,
        named=named,
        config=config,
        profile=profile,
        packing=packing,
        adapter=adapter,
        weight_bytes=weight_bytes + (adapter.weight_bytes if adapter else 0),
        chats=chats,
    )


def _profile(
    folder: Path, config: dict[str, Any], adapter: Adapter | None, template: str
) -> Profile:
    has_generation = (folder / "generation_config.json").exists()
    generation = read_object(folder, "generation_config.json") if has_generation else {}
    return load_profile(folder, config, generation, template, adapter.path if adapter else None)


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
            read_object(folder, name)


def _template(folder: Path) -> str:
    """Return the chat template's text, all of them when there are several."""
    config = folder / "tokenizer_config.json"
    settings = read_object(folder, config.name) if config.exists() else {}
    for name in ("chat_template.jinja", "chat_template.json"):
        if (folder / name).exists():
            return read_text(folder, name)
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
    there = {path.name for path in folder.iterdir() if _is_weights(path.name)}
    files = sorted(there | set(index))
    if not files:
        raise load_failed(folder, "model.safetensors", "is missing: no weights in this folder")
    total = 0
    for file in files:
        found = check_safetensors(folder, file)
        if missing := index.get(file, set()) - found.names:
            reason = f"lacks {min(missing)} and {len(missing) - 1} more that {INDEX} names"
            raise load_failed(folder, file, reason)
        total += found.nbytes
    return total


def _is_weights(name: str) -> bool:
    return name.startswith("model") and name.endswith(".safetensors")


def _index(folder: Path) -> dict[str, set[str]]:
    """Return the tensors that each file should have, by file."""
    weight_map = read_object(folder, INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise load_failed(folder, INDEX, "has no weight_map")
    files: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or "/" in file or not _is_weights(file):
            raise load_failed(folder, INDEX, f"names {file!r}, no model*.safetensors file")
        files.setdefault(file, set()).add(tensor)
    return files
