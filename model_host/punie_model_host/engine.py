"""The engine: requests in, token events out, one `step` at a time. No sockets, no threads; all of
it belongs to the one thread that calls it, because MLX's arrays do."""

import gc
import logging
import secrets
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, assert_never

import mlx.core as mx
from mlx_lm.utils import can_run_metal

from punie_model_host.engine_messages import (
    Cancel,
    Command,
    Emission,
    Key,
    LoadCommand,
    ModelIs,
    Quit,
    Submit,
    ToClient,
)
from punie_model_host.folder import ModelFolder, check_folder, resolve
from punie_model_host.generation import PROGRESS_INTERVAL, Generation, Phase, Produced, Settings
from punie_model_host.loading import LoadedModel, build, display_name, read_weights
from punie_model_host.log import event
from punie_model_host.prompt_cache import PromptCache
from punie_model_host.scheduler import Scheduler
from punie_protocol.errors import (
    Cancelled,
    Internal,
    ModelFault,
    ModelUnavailable,
    Overloaded,
    PunieError,
    WireError,
)
from punie_protocol.messages.common import Usage
from punie_protocol.messages.to_model_client import Failed
from punie_protocol.messages.to_supervisor import Load, ModelState

MAX_QUEUED: Final = 64
_CPU_CHUNK: Final = 128
_METAL_CHUNK: Final = 512

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Active:
    key: Key
    generation: Generation


@dataclass(frozen=True, slots=True)
class _Switch:
    request_id: int
    model: str
    folder: ModelFolder


class Engine:
    """Owns model, tokenizer, caches and the queue. `emit` is called in the engine's thread;
    `look_up` is called between the tensors of a load and may call `handle`."""

    def __init__(
        self,
        models_dir: Path,
        cache_budget: int,
        emit: Callable[[Emission], None],
        *,
        look_up: Callable[[], None] = lambda: None,
        new_call_id: Callable[[], str] = lambda: f"call_{secrets.token_hex(8)}",
        clock: Callable[[], float] = time.perf_counter,
        prefill_chunk: int | None = None,
    ) -> None:
        self._models_dir = models_dir
        self._emit = emit
        self._look_up = look_up
        chunk = prefill_chunk or (_METAL_CHUNK if can_run_metal() else _CPU_CHUNK)
        self._settings = Settings(chunk, new_call_id, clock)
        self._queue: Scheduler[Submit] = Scheduler(MAX_QUEUED)
        self._cache = PromptCache(cache_budget)
        self._active: _Active | None = None
        self._loaded: LoadedModel | None = None
        self._switch: _Switch | None = None
        self._load_error: WireError | None = None

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._active or self._switch or len(self._queue))

    @property
    def is_answering(self) -> bool:
        """Whether the next `step` works on a request; else it loads a model or does nothing."""
        return bool(self._active or (len(self._queue) and not self._switch))

    def handle(self, command: Command) -> None:
        """Take in a command; returns soon, except for the file checks of a `LoadCommand`."""
        match command:
            case Submit():
                self._submit(command)
            case Cancel(key):
                self._cancel(key)
            case LoadCommand(request_id, model):
                self._prepare_switch(request_id, model)
            case Quit():
                pass
            case _:
                assert_never(command)

    def step(self) -> None:
        """Do one bounded piece of work: a chunk of a prompt, a token, or the load of a model."""
        if self._active is not None:
            self._advance(self._active)
        elif self._switch is not None:
            self._perform(self._switch)
        elif (submit := self._queue.pop()) is not None:
            self._begin(submit)

    # requests

    def _submit(self, submit: Submit) -> None:
        request = submit.request
        if not self._queue.push(submit, request.client_id, request.priority):
            message = f"the model host's queue is full: {MAX_QUEUED} requests wait"
            self._fail(submit.key, Overloaded(message=message, hint="try again in a moment"))

    def _cancel(self, key: Key) -> None:
        error = Cancelled(message=f"request {key.request_id} was cancelled")
        if self._active is not None and self._active.key == key:
            usage = self._active.generation.usage
            self._end(self._active, intact=True)
            self._fail(key, error, usage)
        for submit in self._queue.remove(lambda waiting: waiting.key == key):
            self._fail(submit.key, error)

    def _begin(self, submit: Submit) -> None:
        if self._loaded is None:
            self._fail(submit.key, self._unavailable())
            return
        try:
            generation = Generation(
                submit.request, self._loaded, self._cache, self._settings, submit.received
            )
        except Exception as error:  # noqa: BLE001  the wall round a request or a load
            self._fail(submit.key, _blame(submit.key, error))
            return
        self._active = _Active(submit.key, generation)
        self._send(submit.key, generation.progress())

    def _advance(self, active: _Active) -> None:
        try:
            produced = active.generation.step()
        except Exception as error:  # noqa: BLE001  the wall round a request or a load
            usage = active.generation.usage
            self._end(active, intact=False)
            self._fail(active.key, _blame(active.key, error), usage)
            return
        if active.generation.phase is Phase.DONE:
            self._end(active, intact=True)
        self._send(active.key, produced)

    def _end(self, active: _Active, *, intact: bool) -> None:
        self._active = None
        try:
            active.generation.release(intact=intact)
        except Exception as error:  # noqa: BLE001  the wall round a request or a load
            event(_log, logging.ERROR, "cache-dropped", error=error)

    def _send(self, key: Key, messages: Sequence[Produced]) -> None:
        for message in messages:
            self._emit(ToClient(key, message))

    def _fail(self, key: Key, error: WireError, usage: Usage | None = None) -> None:
        failed = Failed(request_id=key.request_id, error=error, usage=usage or Usage())
        self._emit(ToClient(key, failed))

    def _unavailable(self) -> WireError:
        cause = self._load_error
        return ModelUnavailable(
            message=f"no model is loaded: {cause.message}" if cause else "no model is loaded",
            hint=cause.hint if cause else "",
        )

    # models

    def _prepare_switch(self, request_id: int, model: str) -> None:
        """Check the files now; read them when the request under way is done."""
        if self._switch is not None:
            message = f"another model was asked for: {model}"
            waiting, self._switch = self._switch, None
            self._load_failed(waiting.request_id, waiting.model, Cancelled(message=message))
        try:
            folder = check_folder(resolve(model, self._models_dir))
        except Exception as error:  # noqa: BLE001  the wall round a request or a load
            self._load_failed(request_id, model, _load_blame(model, error))
            return
        self._switch = _Switch(request_id, model, folder)
        self._report_loading(self._switch, 0)

    def _perform(self, switch: _Switch) -> None:
        """Build the new model, and only then give up the present one: two may not fit."""
        self._switch = None
        started = self._settings.clock()
        before = self._loaded.folder if self._loaded else None
        try:
            self._loaded = self._load(switch, before)
        except Exception as error:  # noqa: BLE001  the wall round a request or a load
            self._load_failed(switch.request_id, switch.model, _load_blame(switch.model, error))
        else:
            self._load_error = None
            self._report_ready(switch, started)
        gc.collect()  # a model that was not read to its end holds its files open

    def _report_ready(self, switch: _Switch, started: float) -> None:
        assert self._loaded is not None
        info, seconds = self._loaded.info, self._settings.clock() - started
        event(_log, logging.INFO, "model-ready", name=info.name, seconds=f"{seconds:.2f}")
        self._report(switch.request_id, Load.READY, info.name)

    def _load(self, switch: _Switch, before: ModelFolder | None) -> LoadedModel:
        new = build(switch.folder)
        self._give_up()
        try:
            self._read(switch, new)
        except Exception as error:
            del new
            _forget_frames(error)
            self._restore(before)
            raise
        return new

    def _restore(self, before: ModelFolder | None) -> None:
        """A disk or memory failure that no check foresaw: go back to the model that worked."""
        if before is None:
            return
        self._give_up()
        try:
            old = build(before)
            read_weights(old, lambda _done, _total: self._look_up())
            self._loaded = old
        except Exception as error:  # noqa: BLE001  the wall round a request or a load
            event(_log, logging.ERROR, "model-not-restored", folder=before.path, error=error)

    def _give_up(self) -> None:
        self._loaded = None
        self._cache.clear()
        gc.collect()
        mx.clear_cache()

    def _read(self, switch: _Switch, new: LoadedModel) -> None:
        reported = float("-inf")

        def progress(done: int, _total: int) -> None:
            nonlocal reported
            now = self._settings.clock()
            if now - reported >= PROGRESS_INTERVAL:
                reported = now
                self._report_loading(switch, done)
            self._look_up()

        read_weights(new, progress)

    def _load_failed(self, request_id: int, model: str, error: WireError) -> None:
        if self._loaded is None:
            self._load_error = error
        event(_log, logging.ERROR, "model-failed", model=model, error=error.message)
        self._report(request_id, Load.FAILED, display_name(model), error=error)

    def _report_loading(self, switch: _Switch, done: int) -> None:
        total = switch.folder.weight_bytes
        name = display_name(switch.model)
        self._report(switch.request_id, Load.LOADING, name, done_bytes=done, total_bytes=total)

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
        current = self._loaded.info if self._loaded else None
        message = ModelState(
            request_id=request_id,
            state=state,
            name=name,
            done_bytes=done_bytes,
            total_bytes=total_bytes,
            model=current,
            error=error,
        )
        self._emit(ModelIs(message))


def _blame(key: Key, error: Exception) -> WireError:
    """The wall round a request: whatever went wrong ends that one alone."""
    if isinstance(error, PunieError):
        return error.error
    _log.error("request-failed link=%d request=%d", *key, exc_info=error)
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    hint = "see punie logs; a shorter conversation or a smaller model may do"
    return ModelFault(message=f"request {key.request_id}: {text[:300]}", hint=hint)


def _forget_frames(error: BaseException | None) -> None:
    """Drop the weights that the calls which ended in `error` still hold."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _load_blame(model: str, error: Exception) -> WireError:
    if isinstance(error, PunieError):
        return error.error
    _log.error("load-failed model=%s", model, exc_info=error)
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return Internal(message=f"{model} cannot be loaded: {text[:300]}", hint="see punie logs")
