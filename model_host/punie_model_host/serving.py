"""A loaded model at work: its batch, its scheduler, its prefix cache, its share of memory."""

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import can_run_metal

from punie_model_host.batch import LayerCaches, RaggedBatch, Row
from punie_model_host.desk import MAX_LIVE, MAX_OF_CLIENT
from punie_model_host.engine_messages import Key, Submit
from punie_model_host.jobs import Ticket
from punie_model_host.kv_tier import KVTier, fingerprint
from punie_model_host.loading import LoadedModel
from punie_model_host.memory import KVBudget, kv_bytes_per_token, machine_budget
from punie_model_host.prefix_cache import PrefixCache
from punie_model_host.prepare import Prepared, Reader
from punie_model_host.probe import make_batch
from punie_model_host.ragged import LayerKV, sequence_cache
from punie_model_host.request import Phase, Request
from punie_model_host.sampling import RowSampler
from punie_model_host.scheduler import ScheduleLimits, Scheduler
from punie_model_host.token_trie import TOKEN_BYTES, common_prefix, encode
from punie_protocol.engine import EngineSettings, KVStatus
from punie_protocol.errors import ContextOverflow, PunieError

_WARM_BYTES: Final = 64 * 1024 * 1024
"""What one step reads of the prefix cache on disk."""
_PINNED_FROM: Final = 64
"""Tokens of instructions that are worth to be kept whatever else is used."""
_WORTH_A_COPY: Final = 64
"""Tokens from which it is better to begin again with copied keys and values than to compute on."""
_MB: Final = 1024 * 1024
_CPU_STEP: Final = 128
_METAL_STEP: Final = 256
_SOLO: Final = 2
"""How many times more tokens of prompts a step has while nobody decodes."""


class Serving:
    """What belongs to one loaded model, from its load to its end. For the engine's thread."""

    def __init__(
        self, loaded: LoadedModel, settings: EngineSettings, cache_dir: Path | None
    ) -> None:
        self._loaded = loaded
        self._reader = Reader(loaded.facts, loaded.tokenizer)
        self.batch = make_batch(loaded.model, loaded.info.name)
        self._kv = _kv_budget(loaded, settings)
        self._step_tokens = settings.step_tokens or (_METAL_STEP if can_run_metal() else _CPU_STEP)
        self.scheduler = Scheduler(
            ScheduleLimits(
                max_batch=settings.max_batch,
                step_tokens=self._step_tokens,
                solo_tokens=_SOLO * self._step_tokens,
                max_queued=MAX_LIVE,
                max_queued_client=MAX_OF_CLIENT,
            ),
            self._kv.fits,
        )
        self._sliceable = isinstance(self.batch, RaggedBatch)
        self._cache = PrefixCache(
            self._kv.total,
            tier=_tier(loaded, settings, cache_dir) if self._sliceable else None,
            sliceable=self._sliceable,
        )
        self._begun: dict[Key, Request] = {}
        self._marks: list[mx.array] = []
        self._chunks: deque[list[mx.array]] = deque()

    # a request's way

    def admit(self, submit: Submit, new_call_id: Callable[[], str]) -> Request:
        """Queue a request. Raises `PunieError` when it cannot be answered, or not now."""
        prepared = submit.prepared
        if prepared is None or prepared.folder != str(self._loaded.facts.path):
            prepared = self._reader.prepare(submit.request)
        request = Request(submit, self._within_memory(prepared), self._loaded, new_call_id)
        self.scheduler.add(_ticket(request))
        # All but one token at most, so that its first chunk is planned: the caches come with it.
        request.promised = max(0, min(self._cache.match(request.prompt), len(request.prompt) - 2))
        self.scheduler.cached(request.key, request.promised)
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

    def prefill(self, request: Request, tokens: int, now: float) -> int:
        """Begin to compute at most `tokens` of a prompt; return how many that are. The first time,
        what the prefix cache has is taken from there, reading a bounded part of it from disk. What
        another request is about to compute as well is computed once, there."""
        if request.phase is Phase.QUEUED and not self._begin(request, now):
            return 0
        request = self._leader(request) or request
        count = min(tokens, request.to_compute)
        if count:
            self._chunk(request, count)
        self.scheduler.prefilled(request.key, count)
        if not request.to_compute and request.phase is Phase.PREFILL:
            self._make_row(request)
        return count

    def wait(self, *, ahead: int) -> None:
        """End of a step: wait for the prompt chunks of all steps but the last `ahead`."""
        self._chunks.append(self._marks)
        self._marks = []
        while len(self._chunks) > ahead:
            mx.eval(self._chunks.popleft())

    def remember_prompt(self, request: Request) -> None:
        """Keep the prompt's keys and values for whoever begins alike; its first token is there."""
        self._begun.pop(request.key, None)
        caches, request.caches = request.caches, None
        if caches is None or not self._sliceable:
            return
        read = _reader(caches)
        self._cache.put(request.prompt[:-1], read)
        if request.opening >= _PINNED_FROM:
            opening = min(request.opening, len(request.prompt) - 1)
            self._cache.put(request.prompt[:opening], read, pinned=True)

    def release(self, request: Request, *, intact: bool) -> None:
        """A request is over: keep its keys and values if they are `intact`, and forget it."""
        self.scheduler.remove(request.key)
        self._begun.pop(request.key, None)
        self.batch.forget(request.key)
        if request.key in self.batch:
            row: Row | None = self.batch.leave(request.key)
        else:
            row = request.row
        caches, length = request.caches, request.computed
        request.caches = request.row = None
        if row is not None:
            caches, length = row.caches, row.length
        if intact and caches and length:
            self._keep(request.tokens[:length], caches)

    def rebuild(self, request: Request) -> None:
        """Compute a row again from its tokens, alone, and one token more to see that it can go on.
        Raises what the model raises."""
        tokens = request.tokens
        caches = make_prompt_cache(self._loaded.model)
        step = self._step_tokens
        for start in range(0, len(tokens) - 1, step):
            self._forward(tokens[start : min(start + step, len(tokens) - 1)], caches)
            mx.eval([cache.state for cache in caches])
        trial = copy.deepcopy(caches)
        mx.eval(self._forward(tokens[-1:], trial))
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

    # memory and disk

    def keep_to_budget(self, requests: Iterable[Request]) -> None:
        """Let the prefix cache have what the requests under way do not need."""
        self._cache.resize(max(0, self._kv.total - self._running(requests)))

    def kv_status(self, requests: Iterable[Request]) -> KVStatus:
        """Return the bytes of keys and values."""
        requests = list(requests)
        return KVStatus(
            running=self._running(requests),
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

    def _begin(self, request: Request, now: float) -> bool:
        """Give a request its first caches; False while the disk has more of them."""
        if self._cache.warm(request.prompt, _WARM_BYTES):
            return False
        caches, cached = self._lease(request)
        request.begin(now, caches, cached)
        if cached < request.promised:  # dropped since, or damaged on disk: more to plan for
            self.scheduler.remove(request.key)
            self.scheduler.add(_ticket(request))
        self.scheduler.cached(request.key, cached)
        request.leader = self._find_leader(request)
        self._begun[request.key] = request
        return cached >= request.promised

    def _find_leader(self, request: Request) -> tuple[Key, int] | None:
        """Return who began before and shares most of what is to compute, and how many tokens."""
        if not self._sliceable:
            return None
        ends = {key: _common(other.prompt, request.prompt) for key, other in self._begun.items()}
        key = max(ends, key=ends.__getitem__, default=None)
        worth = key is not None and ends[key] - request.computed >= _WORTH_A_COPY
        return (key, ends[key]) if key is not None and worth else None

    def _leader(self, request: Request) -> Request | None:
        """Return who is to be computed first, because `request` goes on from there."""
        if request.leader is None:
            return None
        key, shared = request.leader
        leader = self._begun.get(key)
        if leader is not None and leader.computed < shared:
            return self._leader(leader) or leader
        request.leader = None
        if leader is not None and leader.caches is not None:
            self._cache.put(leader.prompt[:shared], _reader(leader.caches))
        caches, cached = self._lease(request)
        if cached > request.computed:
            request.skip(caches, cached)
            self.scheduler.cached(request.key, cached)
        return None

    def _lease(self, request: Request) -> tuple[LayerCaches, int]:
        if not self._sliceable:
            length, states = self._cache.lease_state(request.prompt)
            return states or make_prompt_cache(self._loaded.model), length
        lease = self._cache.lease(request.prompt)
        if not lease.length or lease.layers is None:
            return make_prompt_cache(self._loaded.model), 0
        return [sequence_cache(*layer) for layer in lease.layers], lease.length

    def _chunk(self, request: Request, count: int) -> None:
        caches = request.caches
        assert caches is not None
        self._forward(request.prompt[request.computed : request.computed + count], caches)
        done = _marker(caches)
        mx.async_eval([cache.state for cache in caches], done)
        self._marks.append(done)
        request.computed += count

    def _forward(self, tokens: Sequence[int], caches: LayerCaches) -> mx.array:
        return self._loaded.model(mx.array([tokens]), cache=caches)

    def _make_row(self, request: Request) -> None:
        caches = request.caches
        assert caches is not None
        request.go(Phase.DECODE)
        if not self._sliceable:
            self._keep(request.prompt[:-1], caches)
            request.caches = None  # the row's own from now on
        request.row = Row(
            key=request.key,
            caches=caches,
            length=len(request.prompt) - 1,
            token=mx.array(request.prompt[-1:], dtype=mx.uint32),
            sampler=request.sampler,
        )

    def _keep(self, tokens: Sequence[int], caches: LayerCaches) -> None:
        if self._sliceable:
            self._cache.put(tokens, _reader(caches))
        else:
            mx.eval([cache.state for cache in caches])
            self._cache.put_state(tokens, caches)

    def _running(self, requests: Iterable[Request]) -> int:
        return self.batch.nbytes + sum(request.nbytes for request in requests)


def _common(some: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens both begin with; the last of each is never counted."""
    return common_prefix(encode(some[:-1]), encode(other[:-1])) // TOKEN_BYTES


def _ticket(request: Request) -> Ticket:
    return Ticket(
        key=request.key,
        client_id=request.client_id,
        priority=request.priority,
        prompt=len(request.prompt),
        total=request.total,
        arrived=request.times.received,
    )


def _reader(caches: LayerCaches) -> Callable[[int, int], list[LayerKV]]:
    def read(start: int, stop: int) -> list[LayerKV]:
        return [(c.keys[..., start:stop, :], c.values[..., start:stop, :]) for c in caches]

    return read


def _marker(caches: LayerCaches) -> mx.array:
    """Return a number that is there when the last layer's state is. It does not hold the state: a
    buffer that somebody holds cannot be written in place."""
    arrays = [a for _, a in tree_flatten(caches[-1].state) if isinstance(a, mx.array)]
    return arrays[0][(slice(0, 1),) * arrays[0].ndim] + 0


def _itemsize(model: Any) -> int:
    """Bytes of a key's number: that of the weights that are no packed integers."""
    arrays = (a for _, a in tree_flatten(model.parameters()) if isinstance(a, mx.array))
    return max((a.itemsize for a in arrays if mx.issubdtype(a.dtype, mx.floating)), default=4)


def _kv_budget(loaded: LoadedModel, settings: EngineSettings) -> KVBudget:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    metal = int(mx.device_info()["max_recommended_working_set_size"]) if can_run_metal() else None
    total = machine_budget(settings, loaded.folder.weight_bytes, memory, metal)
    return KVBudget(total, kv_bytes_per_token(loaded.folder.config, _itemsize(loaded.model)))


def _tier(loaded: LoadedModel, settings: EngineSettings, cache_dir: Path | None) -> KVTier | None:
    if cache_dir is None or not settings.disk_mb:
        return None
    kind = str(_itemsize(loaded.model))
    return KVTier(
        cache_dir,
        fingerprint(loaded.folder.path, kind),
        settings.disk_mb * _MB,
        settings.disk_write_mb_per_hour * _MB,
    )
