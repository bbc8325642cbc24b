"""``punie model list``: the models that can be named, and which of them are in use."""

import asyncio
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from punie_protocol import client as punie
from punie_supervisor.cli import output
from punie_supervisor.cli.daemon import read_status
from punie_supervisor.cli.exit_codes import ExitCode
from punie_supervisor.cli.tables import size, table
from punie_supervisor.clients.errors import DaemonUnreachable
from punie_supervisor.config import EMBEDDED, Config
from punie_supervisor.paths import Paths

IN_USE: Final = "in use"
DRAFTS: Final = "drafts"
"""It is the draft model."""
DEFAULT: Final = "default"
"""Not in use, but the daemon begins with it."""

_HEAD: Final = ("model", "weights", "size", "context", "type", "")
_MODEL: Final = ("config.json", "model*.safetensors")
_ADAPTER: Final = ("adapter_config.json", "adapters.safetensors")
_DEPTH: Final = 2
"""Folders below the models directory: ``name`` or ``organisation/name``."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model folder. `bits` and `group_size` are of packed weights, 0 for others, whose type is
    `dtype`; `base` is the model that an adapter is for, as its file names it, empty for others;
    `state` is one of the words above, or empty; `problem` is why it cannot be read."""

    name: str
    path: str
    type: str = ""
    bytes: int = 0
    bits: int = 0
    group_size: int = 0
    dtype: str = ""
    context_window: int = 0
    base: str = ""
    state: str = ""
    problem: str = ""


def show(*, as_json: bool) -> ExitCode:
    """Print them. Needs no daemon; raises `PunieError` when the config file cannot be used."""
    paths = Paths.from_environment()
    default = Config.load(paths).model
    try:
        status = asyncio.run(read_status(paths)).model
    except DaemonUnreachable:
        status = None
    found = [with_state(model, status, default) for model in _all(paths.models_dir, status)]
    if as_json:
        output.print_json({"models_dir": str(paths.models_dir), "models": found})
    else:
        sys.stdout.write("".join(f"{line}\n" for line in render(found, paths.models_dir)))
    return ExitCode.OK


def render(models: Iterable[Model], folder: Path) -> Iterator[str]:
    """Yield the table, and where models are looked for."""
    yield from table(_HEAD, [_row(model) for model in models], words={0, 1, 4, 5})
    yield ""
    yield f"names are folders of {output.printable(str(folder))}; any other folder by its path"


def with_state(model: Model, status: punie.ModelStatus | None, default: str) -> Model:
    """Return it with what it is used for. Pure."""
    names = (model.name, model.path)
    if status is not None and status.folder == model.path:
        state = IN_USE
    elif status is not None and status.settings and status.settings.draft_model in names:
        state = DRAFTS if status.engine and status.engine.draft_model.name else ""
    else:
        state = DEFAULT if default in names else ""
    return msgspec.structs.replace(model, state=state)


def read(name: str, folder: Path) -> Model:
    """Return what the files of a folder say; faults become its `problem`."""
    is_adapter = _is_adapter(folder)
    file, tensors = _ADAPTER if is_adapter else _MODEL
    try:
        config = json.loads((folder / file).read_bytes())
        weights = sum(file.stat().st_size for file in folder.glob(tensors))
    except (OSError, ValueError, RecursionError) as error:
        text = (error.strerror or "") if isinstance(error, OSError) else str(error)
        return Model(name=name, path=str(folder), problem=f"{file}: {text}"[:200])
    if not isinstance(config, dict):
        return Model(name=name, path=str(folder), problem=f"{file}: it is no object")
    problem = "" if weights else f"it has no {tensors}"
    if is_adapter:
        base = str(config.get("model") or "-")
        return Model(name=name, path=str(folder), bytes=weights, base=base, problem=problem)
    packed = config.get("quantization") or config.get("quantization_config")
    packed = packed if isinstance(packed, dict) else {}
    return Model(
        name=name,
        path=str(folder),
        type=str(config.get("model_type", "")),
        bytes=weights,
        bits=_number(packed.get("bits")),
        group_size=_number(packed.get("group_size")),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or ""),
        context_window=_number(config.get("max_position_embeddings")),
        problem=problem,
    )


def _all(models_dir: Path, status: punie.ModelStatus | None) -> list[Model]:
    """Return the embedded one, those of the directory, and the one in use if it is elsewhere."""
    found = [*_embedded(), *(read(_name(one, models_dir), one) for one in _folders(models_dir))]
    if status is not None and status.folder and status.folder not in {m.path for m in found}:
        found.append(read(status.folder, Path(status.folder)))
    return found


def _embedded() -> Iterator[Model]:
    # It comes with the model host, which is never imported here: found, as a file.
    spec = importlib.util.find_spec("punie_model_host")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        yield read(EMBEDDED, Path(place) / EMBEDDED)


def _folders(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Yield the folders of models and adapters, in order of their names."""
    try:
        inside = sorted(one for one in folder.iterdir() if one.is_dir())
    except OSError:  # there is no such directory yet, or it is not ours to read
        return
    for one in inside:
        if (one / _MODEL[0]).is_file() or _is_adapter(one):
            yield one
        elif depth > 1 and not one.name.startswith("."):
            yield from _folders(one, depth - 1)


def _is_adapter(folder: Path) -> bool:
    return (folder / _ADAPTER[0]).is_file() and not (folder / _MODEL[0]).exists()


def _name(folder: Path, models_dir: Path) -> str:
    return folder.relative_to(models_dir).as_posix()


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _row(model: Model) -> tuple[str, ...]:
    name = output.printable(model.name)
    if model.problem:
        return (name, "-", "-", "-", "-", output.printable(model.problem))
    packed = f"{model.bits}-bit, group {model.group_size}" if model.bits else ""
    window = str(model.context_window or "-")
    held = ("adapter", f"of {model.base}") if model.base else (packed or model.dtype, model.type)
    kinds = (output.printable(text) or "-" for text in held)
    weights, kind = kinds
    return (name, weights, size(model.bytes), window, kind, model.state)
