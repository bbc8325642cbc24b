"""Which model answers: the checks, the load, the way back to the one before when a load fails."""

import gc
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from punie_model_host import draft_loading
from punie_model_host.engine_messages import LoadCommand, ModelIs
from punie_model_host.folder import ModelFolder, find_model
from punie_model_host.loading import LoadedModel, build, display_name, read_weights
from punie_model_host.log import event
from punie_model_host.request import PROGRESS_INTERVAL
from punie_model_host.world import world
from punie_protocol.engine import EngineSettings
from punie_protocol.errors import (
    Cancelled,
    Internal,
    ModelUnavailable,
    PunieError,
    WireError,
)
from punie_protocol.messages.to_supervisor import Load, ModelState

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Wanted:
    request_id: int
    model: str
    folder: ModelFolder
    settings: EngineSettings


class ModelSwitch:
    """Owns the loaded model, and the `settings` it was loaded with. `take_up` is called with both
    when the weights are read, `give_up` before they go; `look_up` between the tensors of a load,
    and may call `ask`. For the engine's thread.

    There is no deadline for the requests that a switch waits for: each has a bound of its own, its
    tokens, and a newer `ask` that passes the checks takes the place of one that waits.
    """

    def __init__(
        self,
        models_dir: Path,
        settings: EngineSettings,
        emit: Callable[[ModelIs], None],
        *,
        take_up: Callable[[LoadedModel, EngineSettings], None],
        give_up: Callable[[], None],
        look_up: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._models_dir = models_dir
        self._settings = settings
        self._emit = emit
        self._take_up = take_up
        self._before_going = give_up
        self._look_up = look_up
        self._clock = clock
        self.loaded: LoadedModel | None = None
        self._wanted: _Wanted | None = None
        self._loads = False
        self._error: WireError | None = None

    @property
    def waits(self) -> bool:
        """Whether another model is asked for, which `perform` loads, or is being loaded now."""
        return self._loads or self._wanted is not None

    def ask(self, command: LoadCommand) -> None:
        """Check the files now, those of a draft model that is needed too; `perform` reads them."""
        settings = command.settings or self._settings
        try:
            folder = world().together(lambda: self._check(command.model, settings))
        except Exception as error:  # noqa: BLE001  the wall round a load
            self._failed(command.request_id, command.model, _blame(command.model, error))
            return
        if self._wanted is not None:
            message = f"another model was asked for: {command.model}"
            self._failed(self._wanted.request_id, self._wanted.model, Cancelled(message=message))
        self._wanted = _Wanted(command.request_id, command.model, folder, settings)
        self._report_loading(self._wanted, 0)

    def _check(self, model: str, settings: EngineSettings) -> ModelFolder:
        folder = find_model(model, self._models_dir)
        draft_loading.check(settings, self._models_dir, self._settings)
        return folder

    def _build(self, wanted: _Wanted) -> LoadedModel:
        new = build(wanted.folder)
        draft_loading.check_tokenizer(wanted.settings, self._models_dir, new, self._settings)
        return new

    def perform(self) -> bool:
        """Build the new model, and only then give up the present one: two may not fit. Return
        whether the new one answers; else the one before does, if there was one."""
        assert self._wanted is not None
        wanted, self._wanted, self._loads = self._wanted, None, True
        started = self._clock()
        try:
            self._load(wanted)
        except Exception as error:  # noqa: BLE001  the wall round a load
            self._failed(wanted.request_id, wanted.model, _blame(wanted.model, error))
            return False
        finally:
            self._loads = False
            gc.collect()  # a model that was not read to its end holds its files open
        assert self.loaded is not None
        self._error = None
        info, seconds = self.loaded.info, self._clock() - started
        event(_log, logging.INFO, "model-ready", name=info.name, seconds=f"{seconds:.2f}")
        self._report(wanted.request_id, Load.READY, info.name)
        return True

    def unavailable(self) -> WireError:
        """Return why no model answers."""
        cause = self._error
        return ModelUnavailable(
            message=f"no model is loaded: {cause.message}" if cause else "no model is loaded",
            hint=cause.hint if cause else "",
        )

    def _load(self, wanted: _Wanted) -> None:
        before = self._as_it_is(wanted.request_id)
        new = world().together(lambda: self._build(wanted))
        self._give_up()
        try:
            self._begin(wanted, new)
        except Exception as error:
            del new
            _forget_frames(error)
            self._restore(before)
            raise

    def _begin(self, wanted: _Wanted, new: LoadedModel) -> None:
        self._read(wanted, new)
        self._take_up(new, wanted.settings)
        self.loaded, self._settings = new, wanted.settings

    def _as_it_is(self, request_id: int) -> _Wanted | None:
        if self.loaded is None:
            return None
        folder = self.loaded.folder
        return _Wanted(request_id, str(folder.named), folder, self._settings)

    def _restore(self, before: _Wanted | None) -> None:
        """A disk or memory failure that no check foresaw: go back to the model that worked."""
        if before is None:
            return
        self._give_up()
        try:
            self._begin(before, world().together(lambda: build(before.folder)))
        except Exception as error:  # noqa: BLE001  the wall round a load
            event(_log, logging.ERROR, "model-not-restored", folder=before.model, error=error)

    def _give_up(self) -> None:
        self._before_going()
        self.loaded = None
        gc.collect()
        mx.clear_cache()

    def _read(self, wanted: _Wanted, new: LoadedModel) -> None:
        reported = float("-inf")

        def progress(done: int, _total: int) -> None:
            nonlocal reported
            now = self._clock()
            if now - reported >= PROGRESS_INTERVAL:
                reported = now
                self._report_loading(wanted, done)
            self._look_up()

        read_weights(new, progress)

    def _failed(self, request_id: int, model: str, error: WireError) -> None:
        if self.loaded is None:
            self._error = error
        event(_log, logging.ERROR, "model-failed", model=model, error=error.message)
        self._report(request_id, Load.FAILED, display_name(model), error=error)

    def _report_loading(self, wanted: _Wanted, done: int) -> None:
        total = wanted.folder.weight_bytes
        name = display_name(wanted.model)
        self._report(wanted.request_id, Load.LOADING, name, done_bytes=done, total_bytes=total)

    def _report(
        self,
        request_id: int,
        state: Load,
        name: str,
        *,
        done_bytes: int = 0,
        total_bytes: int = 0,
        error: WireError | None = None,
    ) -> None:
        message = ModelState(
            request_id=request_id,
            state=state,
            name=name,
            done_bytes=done_bytes,
            total_bytes=total_bytes,
            model=self.loaded.info if self.loaded else None,
            error=error,
        )
        self._emit(ModelIs(message, self.loaded.facts if self.loaded else None))


def _forget_frames(error: BaseException | None) -> None:
    """Drop the weights that the calls which ended in `error` still hold."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _blame(model: str, error: Exception) -> WireError:
    if isinstance(error, PunieError):
        return error.error
    _log.error("load-failed model=%s", model, exc_info=error)
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return Internal(message=f"{model} cannot be loaded: {text[:300]}", hint="see punie logs")
