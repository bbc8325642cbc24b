"""Which draft model there is: its folder checked as the model's own, its tokenizer compared with
the model's token by token. Runs in the engine's thread."""

import gc
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mlx_lm.tokenizer_utils import TokenizerWrapper

from punie_model_host.draft_model import DraftModel
from punie_model_host.failures import load_failed
from punie_model_host.folder import ModelFolder, find_model
from punie_model_host.loading import (
    LoadedModel,
    Progress,
    build,
    display_name,
    load_tokenizer_of,
    read_weights,
)
from punie_model_host.log import event
from punie_model_host.probe import why_not_ragged
from punie_protocol.engine import DraftModelStatus, EngineSettings, Speculation
from punie_protocol.errors import Internal, InvalidRequest, PunieError, WireError

_SAME_FAMILY: Final = "use a draft model of the model's own family, with the same tokenizer"
_RULES: Final = ("type", "merges", "vocab")
"""What of a tokenizer's model says which tokens a text is."""

_log = logging.getLogger(__name__)


def check(
    settings: EngineSettings, models_dir: Path, before: EngineSettings | None = None
) -> ModelFolder | None:
    """Return the folder of the draft model that `settings` need: with ``draft``, and with ``auto``
    when it is another than `before`, which somebody asked for just now. Raises `PunieError` when
    files alone say that it cannot be loaded."""
    named, is_needed = settings.draft_model, settings.speculation is Speculation.DRAFT
    if is_needed and named is None:
        hint = "set draft_model of [engine] in the config file, or speculation to auto"
        raise PunieError(InvalidRequest(message="speculation is draft, of no model", hint=hint))
    if before is not None and settings.speculation is Speculation.AUTO:
        is_needed = named != before.draft_model
    return find_model(named, models_dir, chats=False) if is_needed and named else None


def check_tokenizer(
    settings: EngineSettings, models_dir: Path, model: LoadedModel, before: EngineSettings
) -> None:
    """Raise `PunieError` when the draft model that `settings` need, as for `check`, has another
    tokenizer than `model`, whose weights need not be there yet."""
    if (folder := check(settings, models_dir, before)) is not None:
        _check_tokenizer(folder.path, model)


def choose(
    settings: EngineSettings, models_dir: Path, loaded: LoadedModel, progress: Progress
) -> tuple[DraftModel | None, DraftModelStatus]:
    """Return the draft model of `settings` for the model `loaded`, and what is to be said of it;
    `progress` is called between its tensors. None when none is wanted; with speculation ``auto``
    also when it cannot be loaded, and the log says why. With ``draft`` that raises `PunieError`."""
    match settings.speculation:
        case Speculation.OFF | Speculation.NGRAM:
            return None, DraftModelStatus()
        case Speculation.AUTO if settings.draft_model is None:
            return None, DraftModelStatus()
        case Speculation.AUTO | Speculation.DRAFT:
            check(settings, models_dir)
            model = settings.draft_model or ""
            is_needed = settings.speculation is Speculation.DRAFT
            return _load(model, models_dir, loaded, progress, is_needed=is_needed)


def _load(
    model: str, models_dir: Path, loaded: LoadedModel, progress: Progress, *, is_needed: bool
) -> tuple[DraftModel | None, DraftModelStatus]:
    try:
        draft = load_draft(model, models_dir, loaded, progress)
    except Exception as error:
        blame = _blame(model, error)
        if is_needed:
            raise PunieError(blame) from error
    else:
        event(_log, logging.INFO, "draft-model-ready", name=draft.name)
        return draft, DraftModelStatus(name=draft.name)
    gc.collect()  # a model that was not read to its end holds its files open
    event(_log, logging.WARNING, "draft-model-not-used", model=model, error=blame.message)
    return None, DraftModelStatus(error=blame.message)


def _blame(model: str, error: Exception) -> WireError:
    if isinstance(error, PunieError):
        return error.error
    _log.error("draft-model-failed model=%s", model, exc_info=error)
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    message = f"the draft model {display_name(model)} cannot be loaded: {text[:300]}"
    return Internal(message=message, hint="see punie logs")


def load_draft(model: str, models_dir: Path, loaded: LoadedModel, progress: Progress) -> DraftModel:
    """Return `model`, a name or an absolute path as for the model itself, as the draft model of
    `loaded`. It needs no chat template. Raises `PunieError` that names the file at fault, and both
    folders when they do not go together."""
    folder = find_model(model, models_dir, chats=False)
    path, target = folder.path, loaded.folder.path
    _check_tokenizer(path, loaded)
    draft = build(folder)
    read_weights(draft, progress)
    if fault := why_not_ragged(draft.model):
        reason = f"cannot draft for {target}, it cannot take tokens back: {fault}"
        hint = "use a draft model that keeps all keys and values (no sliding window, no state)"
        raise load_failed(path, "config.json", reason, hint)
    return DraftModel(draft, loaded.facts.vocabulary, loaded.stop_ids)


def _check_tokenizer(path: Path, model: LoadedModel) -> None:
    if difference := tokenizer_difference(model.tokenizer, load_tokenizer_of(path)):
        reason = f"is not the tokenizer of {model.folder.path}: {difference}"
        raise load_failed(path, "tokenizer.json", reason, _SAME_FAMILY)


def tokenizer_difference(ours: TokenizerWrapper, theirs: TokenizerWrapper) -> str:
    """Return the first thing in which the tokens differ, in words; empty if they are the same:
    every id, special ones too, is the same text, and a text is the same tokens."""
    mine, its = ours.get_vocab(), theirs.get_vocab()
    if mine != its:
        return _differs(mine, its)
    rules, others = _rules(ours), _rules(theirs)
    return next((f"they differ in {name}" for name in _RULES if rules[name] != others[name]), "")


def _differs(ours: Mapping[str, int], theirs: Mapping[str, int]) -> str:
    changed = {text for text in ours.keys() | theirs.keys() if ours.get(text) != theirs.get(text)}
    nowhere = len(ours) + len(theirs)
    first = min(
        changed, key=lambda text: (min(ours.get(text, nowhere), theirs.get(text, nowhere)), text)
    )
    return (
        f"{len(changed)} tokens differ, as {first!r}, which is {_number(ours.get(first))} there "
        f"and {_number(theirs.get(first))} here"
    )


def _number(token: int | None) -> str:
    return "no token" if token is None else f"number {token}"


def _rules(tokenizer: TokenizerWrapper) -> dict[str, Any]:
    """Return the rules of a tokenizer of the usual kind; of others only the vocabulary is known."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if backend is not None else {}
    return {name: model.get(name) for name in _RULES}
