"""The engine: requests in, token events out, one `step` at a time. No sockets, no threads; all of
it belongs to the one thread that calls it, because MLX's arrays do.

A step begins a few chunks of prompts and one token of every row that is decoded, then takes the
tokens of the step before: a GPU always has its next piece of work when it ends one. On a CPU there
is nothing to run ahead of, MLX computes while it is told to: tokens are taken at once.
"""

import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, assert_never

import mlx.core as mx

from punie_model_host import draft_loading
from punie_model_host.compilation import Compilation
from punie_model_host.draft_model import DraftModel
from punie_model_host.engine_messages import (
    Cancel,
    Command,
    Emission,
    Key,
    LoadCommand,
    Quit,
    Refused,
    StatusIs,
    Submit,
    ToClient,
)
from punie_model_host.loading import LoadedModel
from punie_model_host.log import event
from punie_model_host.metrics import End, Gauges, Metrics, Ran
from punie_model_host.model_switch import ModelSwitch
from punie_model_host.prepare import Prepared
from punie_model_host.prompts import PromptError
from punie_model_host.request import Phase, Produced, Request
from punie_model_host.sampling import UNSOUND, RowError
from punie_model_host.serving import Serving
from punie_model_host.speculation import Drafts
from punie_model_host.world import world
from punie_protocol.engine import DraftModelStatus, EngineSettings, KVStatus
from punie_protocol.errors import Cancelled, ModelFault, PunieError, WireError, kind_of
from punie_protocol.messages.common import Usage
from punie_protocol.messages.to_model_client import Failed, Finished

REPORT_INTERVAL: Final = 1.0
"""Seconds between two reports while there is work."""
_LAST_REPORT: Final = 0.1
"""The same when the work is done."""
_RETRIES: Final = 3
"""Failed forwards that one request may outlive, until it got `_FORGIVEN` tokens more."""
_FORGIVEN: Final = 64
_SAVE_S: Final = 10.0
"""Seconds in which the prefix cache is saved before another model is read."""
_READ_S: Final = 0.1
"""Seconds of a step in which requests that waited for a model are read, the last of them apart."""
_CLEAR_EVERY: Final = 256
"""Steps after which MLX's pool of freed buffers is emptied, as mlx-lm does."""

type Tokens = Sequence[tuple[Key, int]]
"""What rows said, in order: several of one row, if a draft was right."""

_CANCELLED: Final = str(Cancelled.__struct_config__.tag)

_log = logging.getLogger(__name__)


class Engine:
    """Owns the requests; what belongs to the loaded model is its `Serving`. `emit` is called in
    the engine's thread; `look_up` is called between the tensors of a load and may call `handle`.
    `cache_dir` keeps the prefix cache between two starts; `ahead` is how many steps may be begun
    before the tokens of one are taken, 0 or 1, None for what suits the device. `read` is called
    with what reads a request that nobody read for this model, and returns what comes of it."""

    def __init__(
        self,
        models_dir: Path,
        settings: EngineSettings,
        emit: Callable[[Emission], None],
        *,
        cache_dir: Path | None = None,
        look_up: Callable[[], None] = lambda: None,
        new_call_id: Callable[[], str] = lambda: f"call_{secrets.token_hex(8)}",
        clock: Callable[[], float] = time.perf_counter,
        read: Callable[[Callable[[], Prepared]], Prepared] = lambda prepare: prepare(),
        ahead: int | None = None,
    ) -> None:
        self._ahead = (mx.default_device() != mx.cpu) if ahead is None else ahead
        self._cache_dir = cache_dir
        self._emit = emit
        self._new_call_id = new_call_id
        self._clock = clock
        self._read_here = read
        self._compilation = Compilation(settings.cpu_kernels)
        self._metrics = Metrics()
        self._requests: dict[Key, Request] = {}
        self._before: list[Submit] = []
        self._serving: Serving | None = None
        self._switch = ModelSwitch(
            models_dir,
            settings,
            emit,
            take_up=self._take_up,
            give_up=self._give_up,
            look_up=look_up,
            clock=clock,
        )
        self._models_dir, self._look_up = models_dir, look_up
        self._steps = self._taken = 0
        self._rows_before: Collection[Key] = ()
        self.beats = 0
        """Counts up within a step that takes long and gets on."""
        self._reported = float("-inf")
        self._unreported = False

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._requests or self._before or self._switch.waits)

    @property
    def is_answering(self) -> bool:
        """Whether the next `step` works on a request; else it loads a model or does nothing."""
        return bool(self._requests or (self._before and not self._switch.waits))

    @property
    def has_chores(self) -> bool:
        """Whether `do_chore` may have something to do, now or in a while."""
        serving = self._serving
        waits = serving is not None and (serving.has_chores or self._compilation.waits)
        return self._unreported or waits

    def handle(self, command: Command) -> None:
        """Take in a command; returns soon, except for the file checks of a `LoadCommand`."""
        match command:
            case Submit():
                self._submit(command)
            case Cancel(key):
                self._cancel(key)
            case Refused():
                self._refused(command)
            case LoadCommand():
                self._switch.ask(command)
            case Quit():
                pass
            case _:
                assert_never(command)

    def step(self) -> None:
        """Do one bounded piece of work: a token of each row and a chunk of a prompt, or the load
        of a model."""
        self._compilation.work()
        if not self._switch.waits:
            self._begin_waiting()
        if self._requests and self._serving is not None:
            self._advance(self._serving)
        elif self._switch.waits:
            self._switch.perform()
            self._compilation.resume()
        self._report()

    def do_chore(self) -> bool:
        """In a quiet moment: one bounded piece of work that no request waits for; True while there
        is more to do at once."""
        self._report()
        if self._serving is None:
            return False
        now = self._clock()
        self._compilation.chore(self._serving.models, now)
        return self._serving.save_one(now)

    def close(self, deadline: float) -> None:
        """Save what a next start can use, until the clock says `deadline`."""
        if self._serving is not None:
            self._serving.save_all(lambda: self._clock() >= deadline)

    # requests

    def _submit(self, submit: Submit) -> None:
        self._metrics.arrived(submit.request.client_id)
        self._unreported = True
        if self._switch.waits or self._before:
            self._before.append(submit)  # for the model that is asked for; the desk bounds them
        else:
            self._begin(submit)

    def _begin_waiting(self) -> None:
        """Begin who waited for the model, for a moment only: they may have to be read here."""
        until = self._clock() + _READ_S if self._before else 0.0
        while self._before:
            self._begin(self._before.pop(0))
            if self._clock() >= until:
                return

    def _begin(self, submit: Submit) -> None:
        client_id = submit.request.client_id
        try:
            if self._serving is None:
                raise PunieError(self._switch.unavailable())
            request = self._serving.admit(submit, self._new_call_id, self._read_here)
        except Exception as error:  # noqa: BLE001  the wall round a request
            blame = _blame(submit.key, error)
            self._metrics.rejected(client_id, kind_of(blame))
            self._fail(submit.key, blame)
            return
        self._requests[submit.key] = request

    def _refused(self, refused: Refused) -> None:
        self._metrics.arrived(refused.client_id)
        self._unreported = True
        if refused.kind == _CANCELLED:
            self._metrics.ended(refused.client_id, End.CANCELLED, Usage())
        else:
            self._metrics.rejected(refused.client_id, refused.kind)

    def _cancel(self, key: Key) -> None:
        error = Cancelled(message=f"request {key.request_id} was cancelled")
        if (request := self._requests.get(key)) is not None:
            self._end(request, End.CANCELLED)
            self._fail(key, error, request.usage)
        for submit in [submit for submit in self._before if submit.key == key]:
            self._before.remove(submit)
            self._metrics.ended(submit.request.client_id, End.CANCELLED, Usage())
            self._fail(key, error)

    def _advance(self, serving: Serving) -> None:
        began, before = self._clock(), self._taken
        plan = serving.scheduler.plan(began)
        prefilled = self._prefill(serving, (*self._unbegun(plan.decode), *plan.prefill))
        keys = serving.scheduler.rows() if plan.prefill else plan.decode
        rows, tokens = self._decode(serving, keys, alone=not prefilled)
        self._take_all(tokens)
        self._wait(serving)
        serving.keep_to_budget(self._requests.values())
        seconds = self._clock() - began
        serving.keep_pace(seconds, rows=rows, prefilled=prefilled)
        self._learn(serving, seconds, tokens, alone=not prefilled)
        self._metrics.step(
            began + seconds,
            seconds=seconds,
            rows=rows,
            decoded=self._taken - before,
            prefilled=prefilled,
        )
        self._tidy()

    def _decode(self, serving: Serving, keys: Sequence[Key], *, alone: bool) -> tuple[int, Tokens]:
        """Begin the next token of each row of `keys`, or show the rows drafts; return how many rows
        that are, and the tokens that are there now. `alone`: the step does nothing else."""
        wanted = [self._requests[key] for key in keys if key in self._requests]
        try:
            serving.arrange(
                [request for request in wanted if request.wants_step], self._requests.__getitem__
            )
            drafts = self._drafts(serving, alone=alone)
            while len(serving.batch):
                try:
                    return self._forward(serving, drafts)
                except RowError as error:
                    self._fault(self._requests[serving.batch.keys[error.index]], error.cause)
        except Exception as error:  # noqa: BLE001  the wall round the rows
            world().end_if_shared(error)
            self._retry_alone(serving, error, self._read(serving, ahead=0))
            return 0, []
        return 0, self._read(serving, ahead=0)

    def _drafts(self, serving: Serving, *, alone: bool) -> Drafts:
        """Return what to show the rows. Tokens that are under way are waited for when drafts are
        likely to pay: what follows them is what is shown."""
        speculator = serving.speculator
        if not speculator.is_on:
            return {}
        if serving.batch.in_flight:
            if not speculator.promises(self._in_batch(serving), alone=alone):
                return {}
            self._take_all(self._read(serving, ahead=0))
        return speculator.propose(self._in_batch(serving), alone=alone)

    def _in_batch(self, serving: Serving) -> list[Request]:
        return [self._requests[key] for key in serving.batch.keys]

    def _forward(self, serving: Serving, drafts: Drafts) -> tuple[int, Tokens]:
        batch = serving.batch
        rows = len(batch)
        if drafts:
            taken = batch.verify(drafts)
            for key, tokens in taken.items():
                self._requests[key].dispatched += len(tokens)
            return rows, [(key, token) for key, tokens in taken.items() for token in tokens]
        batch.dispatch()
        for key in batch.keys:
            self._requests[key].dispatched += 1
        return rows, self._read(serving, ahead=self._ahead)

    def _learn(self, serving: Serving, seconds: float, tokens: Tokens, *, alone: bool) -> None:
        """Tell what became of drafts; `alone` says that the step did nothing but decode."""
        if not serving.speculator.is_on:
            return
        taken: dict[Key, list[int]] = {}
        for key, token in tokens:
            taken.setdefault(key, []).append(token)
        steady, self._rows_before = taken.keys() == self._rows_before, taken.keys()
        outcome = serving.speculator.stepped(seconds, taken, alone=alone and steady)
        for source, counts in outcome.items():
            self._metrics.drafted(source, counts)

    def _unbegun(self, keys: Iterable[Key]) -> list[tuple[Key, int]]:
        """Rows of prompts with one token: no chunk of theirs is ever planned, they begin so."""
        requests = [request for key in keys if (request := self._requests.get(key)) is not None]
        return [(request.key, 0) for request in requests if request.phase is Phase.QUEUED]

    def _read(self, serving: Serving, ahead: int) -> list[tuple[Key, int]]:
        """Wait for the tokens of all dispatched steps but the last `ahead`."""
        try:
            return serving.batch.read(ahead=ahead)
        except Exception as error:  # noqa: BLE001  the wall round the rows
            world().end_if_shared(error)
            self._retry_alone(serving, error)
            return []

    def _retry_alone(
        self, serving: Serving, error: Exception, begun: Sequence[tuple[Key, int]] = ()
    ) -> None:
        """A forward of all rows failed: whoever fails alone is at fault, the others go on. Tokens
        that were `begun` before and read now are taken first: nobody loses one, and who failed
        because of his has it when he is tried alone."""
        event(_log, logging.ERROR, "forward-failed", rows=len(serving.batch), error=error)
        serving.batch.drop()
        self._take_all(begun)
        for request in list(self._requests.values()):
            lost = request.phase is Phase.DECODE and request.row is None
            if lost or request.dispatched > len(request.generated):
                self._retry(serving, request)

    def _retry(self, serving: Serving, request: Request) -> None:
        try:
            request.retries += 1
            if request.retries > _RETRIES:
                raise PunieError(_never_together(request))
            serving.rebuild(request, self._beat)
        except Exception as fault:  # noqa: BLE001  the wall round a request
            self._fault(request, fault)

    def _beat(self) -> None:
        self.beats += 1

    def _prefill(self, serving: Serving, chunks: Iterable[tuple[Key, int]]) -> int:
        """Begin chunks of prompts; return their tokens."""
        total = 0
        for key, tokens in chunks:
            request = self._requests.get(key)
            if request is None:
                continue  # a fault ended it since the plan was made
            try:
                total += serving.prompts.compute(request, tokens, self._clock())
            except PromptError as error:
                self._prompt_fault(error)
            else:
                self._send(key, request.progress(self._clock()))
        return total

    def _wait(self, serving: Serving) -> None:
        try:
            serving.prompts.wait(ahead=self._ahead)
        except PromptError as error:
            self._prompt_fault(error)

    def _prompt_fault(self, error: PromptError) -> None:
        world().end_if_shared(error.cause)
        if (request := self._requests.get(error.key)) is not None:
            self._fault(request, error.cause)

    def _take_all(self, tokens: Tokens) -> None:
        """Take the tokens of requests that are not over: one may end within its draft."""
        now = self._clock()
        for key, token in tokens:
            if key in self._requests:
                self._take(key, token, now)

    def _take(self, key: Key, token: int, now: float) -> None:
        request = self._requests[key]
        last = request.times.last
        self._taken += 1
        try:
            if token == UNSOUND:
                raise PunieError(_unsound(request))
            produced = request.take(token, now)
            if len(request.generated) % _FORGIVEN == 0:
                request.retries = 0
        except Exception as error:  # noqa: BLE001  the wall round a request
            self._fault(request, error)
            return
        if len(request.generated) == 1:
            self._metrics.first_token(request.client_id, now - request.times.received)
        else:
            self._metrics.gap(now - last)
        if request.phase is Phase.DONE:
            self._end(request, _end_of(produced))
        else:
            self._begun(request)
        self._send(key, produced)

    def _begun(self, request: Request) -> None:
        assert self._serving is not None
        self._serving.scheduler.decoded(request.key)
        if len(request.generated) > 1:
            return
        try:
            self._serving.prompts.pin(request)
        except Exception as error:  # noqa: BLE001  the wall round a request
            event(_log, logging.ERROR, "cache-dropped", error=error)

    def _fault(self, request: Request, error: Exception) -> None:
        self._end(request, End.FAILED, intact=False)
        self._fail(request.key, _blame(request.key, error), request.usage)

    def _end(self, request: Request, how: Ran, *, intact: bool = True) -> None:
        assert self._serving is not None
        del self._requests[request.key]
        if request.phase is not Phase.DONE:
            request.go(Phase.DONE)
        try:
            self._serving.release(request, intact=intact)
        except Exception as error:  # noqa: BLE001  the wall round a request
            event(_log, logging.ERROR, "cache-dropped", error=error)
        self._metrics.ended(request.client_id, how, request.usage)
        self._unreported = True

    def _send(self, key: Key, messages: Sequence[Produced]) -> None:
        for message in messages:
            self._emit(ToClient(key, message))

    def _fail(self, key: Key, error: WireError, usage: Usage | None = None) -> None:
        failed = Failed(request_id=key.request_id, error=error, usage=usage or Usage())
        self._emit(ToClient(key, failed))

    def _tidy(self) -> None:
        self._steps += 1
        if self._steps % _CLEAR_EVERY == 0:
            mx.clear_cache()

    # models and figures

    def _take_up(self, loaded: LoadedModel, settings: EngineSettings) -> None:
        self._compilation = Compilation(settings.cpu_kernels)
        choose = partial(self._choose_draft, settings, loaded)
        self._serving = Serving(loaded, settings, self._cache_dir, choose, self._clock)
        self._compilation.loaded(self._serving.models)
        # Before the model is READY: whoever asked for it then knows of its draft model, too.
        self._emit(StatusIs(self._metrics.snapshot(self._gauges())))

    def _choose_draft(
        self, settings: EngineSettings, loaded: LoadedModel
    ) -> tuple[DraftModel | None, DraftModelStatus]:
        return draft_loading.choose(
            settings, self._models_dir, loaded, lambda _done, _total: self._look_up()
        )

    def _give_up(self) -> None:
        if self._serving is not None:
            deadline = self._clock() + _SAVE_S
            self._serving.save_all(lambda: self._clock() >= deadline)
            self._serving = None

    def _report(self) -> None:
        self._unreported = self._unreported or bool(self._requests)
        now = self._clock()
        interval = REPORT_INTERVAL if self._requests else _LAST_REPORT
        if self._unreported and now - self._reported >= interval:
            self._reported, self._unreported = now, False
            self._emit(StatusIs(self._metrics.snapshot(self._gauges())))

    def _gauges(self) -> Gauges:
        serving = self._serving
        if serving is None:
            return Gauges(kv=KVStatus())
        return Gauges(
            queued=serving.scheduler.queued,
            prefilling=serving.scheduler.prefilling,
            running=serving.scheduler.decoding,
            batch=len(serving.batch),
            kv=serving.kv_status(self._requests.values()),
            per_client=serving.scheduler.per_client(),
            draft_model=serving.draft_status,
        )


def _end_of(produced: Sequence[Produced]) -> Ran:
    return End.FINISHED if isinstance(produced[-1], Finished) else End.FAILED


def _never_together(request: Request) -> WireError:
    message = (
        f"request {request.key.request_id}: computed alone, but {_RETRIES} times not beside others"
    )
    return ModelFault(message=message, hint="less memory_mb or max_batch of [engine] may do")


def _unsound(request: Request) -> WireError:
    message = f"request {request.key.request_id}: the model's logits are no numbers"
    return ModelFault(message=message, hint="the weights may be damaged; load the model again")


def _blame(key: Key, error: Exception) -> WireError:
    """The wall round a request: whatever went wrong ends that one alone."""
    if isinstance(error, PunieError):
        return error.error
    _log.error("request-failed link=%d request=%d", *key, exc_info=error)
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    hint = "see punie logs; a shorter conversation or a smaller model may do"
    return ModelFault(message=f"request {key.request_id}: {text[:300]}", hint=hint)
