"""A loaded model at work: its batch, its scheduler, its prefix cache, its share of memory."""

import copy
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
from mlx_lm.utils import can_run_metal

from punie_model_host.batch import RaggedBatch, Row
from punie_model_host.desk import MAX_LIVE, MAX_OF_CLIENT
from punie_model_host.draft_model import DraftModel
from punie_model_host.engine_messages import Key, Submit
from punie_model_host.kv_tier import KVTier, fingerprint
from punie_model_host.loading import LoadedModel
from punie_model_host.log import event
from punie_model_host.memory import (
    SCRATCH,
    KVBudget,
    kv_bytes_per_token,
    machine_budget,
    score_bytes,
)
from punie_model_host.pace import Pace
from punie_model_host.prefix_cache import PrefixCache
from punie_model_host.prepare import Prepared, Reader
from punie_model_host.probe import make_batch
from punie_model_host.prompts import Prompts
from punie_model_host.request import Request
from punie_model_host.sampling import RowSampler
from punie_model_host.scheduler import ScheduleLimits, Scheduler
from punie_model_host.speculation import Speculator
from punie_model_host.world import world
from punie_protocol.engine import DraftModelStatus, EngineSettings, KVStatus, Speculation
from punie_protocol.errors import ContextOverflow, PunieError

_MB: Final = 1024 * 1024
_FIRST_CHUNK: Final = 128
"""Tokens of the first prompt's chunks; how long they take says how many the next have."""

_log = logging.getLogger(__name__)


class Serving:
    """What belongs to one loaded model, from its load to its end. For the engine's thread."""

    def __init__(
        self,
        loaded: LoadedModel,
        settings: EngineSettings,
        cache_dir: Path | None,
        choose_draft: Callable[[], tuple[DraftModel | None, DraftModelStatus]],
        clock: Callable[[], float],
    ) -> None:
        """`choose_draft` returns the draft model, loaded. Raises what that raises."""
        self._loaded = loaded
        self._reader = Reader(loaded.facts, loaded.tokenizer)
        self.batch = make_batch(loaded.model, loaded.info.name, loaded.profile.kv_quantization)
        world().alike("the batch", type(self.batch).__name__)
        sliceable = isinstance(self.batch, RaggedBatch)
        self._draft, self._draft_status = choose_draft() if sliceable else _no_drafts(settings)
        self._kv = _kv_budget(loaded, settings, self._draft)
        _bound_freed()
        self._settings = settings
        self._pace = Pace(_FIRST_CHUNK)
        self.scheduler = Scheduler(
            ScheduleLimits(
                max_batch=settings.max_batch,
                step_tokens=self._step_tokens,
                solo_tokens=2 * self._step_tokens,
                whole_prompts=settings.step_tokens is None,
                max_queued=MAX_LIVE,
                max_queued_client=MAX_OF_CLIENT,
            ),
            self._kv.fits,
        )
        self._cache = PrefixCache(
            self._kv.total,
            tier=_tier(loaded, settings, cache_dir) if sliceable else None,
            sliceable=sliceable,
        )
        self.prompts = Prompts(
            loaded.model,
            self.batch,
            self._cache,
            self.scheduler,
            score_bytes=_score_bytes(loaded),
        )
        self.speculator = Speculator(
            settings.speculation if sliceable else Speculation.OFF,
            settings.num_draft_tokens,
            self._draft,
            clock,
        )

    @property
    def models(self) -> list[Any]:
        """The model itself, and the one that drafts for it."""
        return [self._loaded.model, *([self._draft.model] if self._draft else [])]

    @property
    def draft_status(self) -> DraftModelStatus:
        """What is to be said of the draft model."""
        failed = self._draft is not None and self._draft.error
        return DraftModelStatus(error=failed) if failed else self._draft_status

    # a request's way

    def admit(
        self,
        submit: Submit,
        new_call_id: Callable[[], str],
        read: Callable[[Callable[[], Prepared]], Prepared],
    ) -> Request:
        """Queue a request; `read` is as for `Engine`. Raises `PunieError` when it cannot be
        answered, or not now."""
        prepared = submit.prepared
        if prepared is None or prepared.folder != str(self._loaded.facts.named):
            prepared = read(lambda: self._reader.prepare(submit.request))
        request = Request(submit, self._within_memory(prepared), self._loaded, new_call_id)
        self.prompts.add(request)
        return request

    def arrange(self, requests: Sequence[Request], everybody: Callable[[Key], Request]) -> None:
        """Make the batch hold exactly `requests`; who leaves keeps its row. `everybody` gives the
        request of a key."""
        wanted = {request.key for request in requests}
        for key in [key for key in self.batch.keys if key not in wanted]:
            row = self.batch.leave(key)
            row.detach()
            everybody(key).row = row
        for request in requests:
            if request.row is not None:
                self.batch.join(request.row)
                request.row = None

    def release(self, request: Request, *, intact: bool) -> None:
        """A request is over: keep its keys and values if they are `intact`, and forget it."""
        self.speculator.forget(request.key)
        caches, length = self.prompts.forget(request)  # whatever fails below, nobody plans it again
        self.batch.forget(request.key)
        row, request.row = request.row, None
        if request.key in self.batch:
            row = self.batch.leave(request.key)
        if row is not None:
            caches, length = row.caches, min(row.length, len(request.tokens))
        if intact and caches and length:
            self.prompts.keep(request.tokens[:length], caches)

    def rebuild(self, request: Request, progress: Callable[[], None]) -> None:
        """Compute a row again from its tokens, alone, and one token more to see that it can go on;
        `progress` is called after each chunk. Raises what the model raises."""
        tokens = request.tokens
        caches, done = self.prompts.lease(tokens)
        step = self._step_tokens
        for start in range(done, len(tokens) - 1, step):
            self.prompts.forward(tokens[start : min(start + step, len(tokens) - 1)], caches)
            mx.eval([cache.state for cache in caches])
            progress()
        trial = copy.deepcopy(caches)
        mx.eval(self.prompts.forward(tokens[-1:], trial))
        sampler = RowSampler(request.sampler.plan, self._loaded.facts.vocabulary, tokens)
        sampler.position = request.dispatched = len(request.generated)
        request.sampler = sampler
        request.row = Row(
            key=request.key,
            caches=caches,
            length=len(tokens) - 1,
            token=mx.array(tokens[-1:], dtype=mx.uint32),
            sampler=sampler,
        )

    def keep_pace(self, seconds: float, *, rows: int, prefilled: int) -> None:
        """A step took `seconds`: let prompts have as much of the next as streams can bear."""
        self._pace.step(seconds, rows=rows, prefilled=prefilled)
        self.scheduler.pace(self._step_tokens)

    @property
    def _step_tokens(self) -> int:
        return self._settings.step_tokens or self._pace.tokens + self._settings.max_batch

    # memory and disk

    def keep_to_budget(self, requests: Iterable[Request]) -> None:
        """Let the prefix cache have what the requests under way do not need."""
        self._cache.resize(max(0, self._kv.total - self._running(requests)))

    def kv_status(self, requests: Iterable[Request]) -> KVStatus:
        """Return the bytes of keys and values."""
        requests = list(requests)
        return KVStatus(
            running=self._running(requests) + (self._draft.nbytes if self._draft else 0),
            reserved=self._kv.predicted(self.scheduler.totals),
            cache=self._cache.nbytes,
            budget=self._kv.total,
            disk=self._cache.disk_bytes,
        )

    @property
    def has_chores(self) -> bool:
        """Whether a quiet moment can be used, now or later."""
        return self._cache.unsaved

    def save_one(self, now: float) -> bool:
        """Write one piece of the prefix cache to disk, if the moment is quiet enough; True while
        there is more to write at once."""
        return self._cache.idle(now)

    def save_all(self, deadline: Callable[[], bool]) -> None:
        """Write what is not on disk, until `deadline` says that there is no more time."""
        self._cache.flush(deadline)

    # inside

    def _within_memory(self, prepared: Prepared) -> Prepared:
        most, tokens = self._kv.most_tokens, len(prepared.tokens)
        if tokens >= most:
            message = (
                f"the conversation has {tokens} tokens, the memory for keys and values holds {most}"
            )
            hint = "raise memory_mb of [engine] in the config file, or use a smaller model"
            raise PunieError(ContextOverflow(message=message, hint=hint, tokens=tokens, limit=most))
        return prepared.limited_to(most - tokens)

    def _running(self, requests: Iterable[Request]) -> int:
        return self.batch.nbytes + sum(request.nbytes for request in requests)


def _kv_kind(loaded: LoadedModel) -> mx.Dtype:
    """Return the type of a key's numbers: that of the weights that are no packed integers."""
    kinds = [a.dtype for a in loaded.arrays if mx.issubdtype(a.dtype, mx.floating)]
    return max(kinds, key=lambda kind: kind.size, default=mx.float32)


def _no_drafts(settings: EngineSettings) -> tuple[None, DraftModelStatus]:
    """Return what is said of a draft model where rows are computed one by one."""
    error = "this model's caches cannot take tokens back: it has no drafts"
    return None, DraftModelStatus(error=error if settings.draft_model else "")


def _kv_budget(loaded: LoadedModel, settings: EngineSettings, draft: DraftModel | None) -> KVBudget:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    metal = int(mx.device_info()["max_recommended_working_set_size"]) if can_run_metal() else None
    weights = loaded.nbytes + (draft.weight_bytes if draft else 0)
    total = world().least(machine_budget(settings, weights, memory, metal))
    itemsize, quantization = _kv_kind(loaded).size, loaded.profile.kv_quantization
    per_token = kv_bytes_per_token(loaded.folder.config, itemsize, quantization)
    budget = KVBudget(total, world().part(per_token))
    return draft.share(budget) if draft else budget


def _score_bytes(loaded: LoadedModel) -> int:
    if loaded.profile.kv_quantization is None:
        return 0
    return score_bytes(loaded.folder.config, _kv_kind(loaded).size)


def _bound_freed() -> None:
    """Let MLX keep only so many freed buffers for the next step: on a GPU it keeps what the machine
    holds, and a prompt that grows chunk by chunk frees many times its own size."""
    mx.set_cache_limit(min(SCRATCH, mx.set_cache_limit(SCRATCH)))


def _tier(loaded: LoadedModel, settings: EngineSettings, cache_dir: Path | None) -> KVTier | None:
    """Return what is kept on disk; with a budget of 0 what was kept before is deleted."""
    if cache_dir is None:
        return None
    adapter = loaded.folder.adapter
    try:
        its = fingerprint(
            loaded.folder.path,
            str(_kv_kind(loaded)),
            quantization=loaded.profile.kv_quantization,
            adapter=adapter.path if adapter else None,
        )
    except OSError as error:  # the folder is gone since it was read
        event(_log, logging.WARNING, "kv-tier-not-used", model=loaded.info.name, error=error)
        return None
    return KVTier(
        cache_dir,
        its,
        settings.disk_mb * _MB,
        settings.disk_write_mb_per_hour * _MB,
    )
