"""Prompts on their way into keys and values: taken from the prefix cache, computed in chunks, kept
for whoever begins alike."""

from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from typing import Any, Final

import mlx.core as mx
from mlx.utils import tree_flatten

from punie_model_host.batch import Batch, LayerCaches, RaggedBatch, Row
from punie_model_host.engine_messages import Key
from punie_model_host.jobs import Ticket
from punie_model_host.kv_arrays import LayerKV
from punie_model_host.memory import at_once
from punie_model_host.prefix_cache import PrefixCache, Read
from punie_model_host.request import Phase, Request
from punie_model_host.scheduler import Scheduler
from punie_model_host.sequences import span_of
from punie_model_host.token_trie import TOKEN_BYTES, common_prefix

_WARM_BYTES: Final = 64 * 1024 * 1024
"""What one step reads of the prefix cache on disk."""
_PINNED_FROM: Final = 64
"""Tokens of instructions that are worth to be kept whatever else is used."""
_WORTH_A_COPY: Final = 64
"""Tokens from which it is better to begin again with copied keys and values than to compute on."""

_PIECE: Final = 1024
"""Tokens of a prompt that are kept at once."""


class PromptError(Exception):
    """The prompt of request `key` cannot be computed, because of `cause`."""

    def __init__(self, key: Key, cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.key = key
        self.cause = cause


class Prompts:
    """Computes prompts with `model` for rows of the `batch`, and tells the `scheduler` how far they
    are. Of a ragged batch any tokens can be kept, of others whole caches. For the engine's
    thread."""

    def __init__(
        self,
        model: Any,
        batch: Batch,
        cache: PrefixCache,
        scheduler: Scheduler,
        *,
        score_bytes: int = 0,
    ) -> None:
        """`score_bytes` are those of one token's scores for one other, where packed keys have
        attention keep all scores of a forward."""
        self._model = model
        self._score_bytes = score_bytes
        self._batch = batch
        self._ragged = batch if isinstance(batch, RaggedBatch) else None
        self._cache = cache
        self._scheduler = scheduler
        self._begun: dict[Key, Request] = {}
        self._marks: list[tuple[Key, mx.array]] = []
        self._chunks: deque[list[tuple[Key, mx.array]]] = deque()

    def add(self, request: Request) -> None:
        """Queue a request. Raises `PunieError` when the queue is full."""
        # All but one token at most, so that its first chunk is planned: the caches come with it.
        request.promised = max(0, min(self._cache.match(request.prompt), len(request.prompt) - 2))
        self._scheduler.add(_ticket(request))
        self._scheduler.cached(request.key, request.promised)

    def compute(self, request: Request, tokens: int, now: float) -> int:
        """Begin to compute at most `tokens` of a prompt; return how many that are. The first time,
        what the prefix cache has is taken from there, reading a bounded part of it from disk. What
        another request is about to compute as well is computed once, there. Raises
        `PromptError`."""
        try:
            if request.phase is Phase.QUEUED and not self._begin(request, now):
                return 0
            request = self._leader(request) or request
            self._keep_piece(request)
            count = min(tokens, request.to_compute)
            if count:
                self._chunk(request, count)
            self._scheduler.prefilled(request.key, count)
            if not request.to_compute and request.phase is Phase.PREFILL:
                self._make_row(request)
        except Exception as error:
            raise PromptError(request.key, error) from error
        return count

    def wait(self, *, ahead: int) -> None:
        """End of a step: wait for the chunks of all steps but the last `ahead`. Raises
        `PromptError`."""
        self._chunks.append(self._marks)
        self._marks = []
        while len(self._chunks) > ahead:
            for key, mark in self._chunks.popleft():
                try:
                    mx.eval(mark)
                except Exception as error:
                    raise PromptError(key, error) from error

    def pin(self, request: Request) -> None:
        """Pin what its instructions and tools are; its prompt is computed. The rest is kept when
        the request ends, or when another begins alike."""
        if request.opening >= _PINNED_FROM and (read := self._read(request)) is not None:
            opening = min(request.opening, len(request.prompt) - 1)
            self._cache.put(request.prompt[:opening], read, pinned=True)

    def forget(self, request: Request) -> tuple[LayerCaches | None, int]:
        """A request is over; return the caches of its prompt if it is still being computed, and
        the tokens in them."""
        self._scheduler.remove(request.key)
        self._begun.pop(request.key, None)
        caches, request.caches = request.caches, None
        return caches, request.computed

    def keep(self, tokens: Sequence[int], caches: LayerCaches) -> None:
        """Keep the keys and values of `tokens`, which are what the caches hold."""
        if self._ragged is not None:
            self._cache.put(tokens, _reader(caches))
        else:
            mx.eval([cache.state for cache in caches])
            self._cache.put_state(tokens, caches)

    def lease(self, tokens: Sequence[int]) -> tuple[LayerCaches, int]:
        """Return caches that hold as many of `tokens` as the prefix cache has, and how many."""
        if self._ragged is None:
            length, states = self._cache.lease_state(tokens)
            return states or self._batch.new_caches(), length
        lease = self._cache.lease(tokens)
        if not lease.length or lease.layers is None:
            return self._batch.new_caches(), 0
        return self._ragged.caches_of(lease.layers), lease.length

    def forward(self, tokens: Sequence[int], caches: LayerCaches) -> mx.array:
        """Return the logits of `tokens` after what is in the caches, lazily; those of the last ones
        where not all can be computed at once."""
        while self._score_bytes and len(tokens) > (
            most := at_once(caches[0].offset, self._score_bytes)
        ):
            self._model(mx.array([list(tokens[:most])]), cache=caches)
            mx.async_eval([cache.state for cache in caches])
            tokens = tokens[most:]
        return self._model(mx.array([list(tokens)]), cache=caches)

    def _begin(self, request: Request, now: float) -> bool:
        """Give a request its first caches; False while the disk has more of them."""
        if self._cache.warm(request.prompt, _WARM_BYTES):
            return False
        caches, cached = self.lease(request.prompt)
        request.begin(now, caches, cached)
        if cached < request.promised:  # dropped since, or damaged on disk: more to plan for
            self._scheduler.remove(request.key)
            self._scheduler.add(_ticket(request))
        self._scheduler.cached(request.key, cached)
        request.leader = self._find_leader(request)
        self._begun[request.key] = request
        return cached >= request.promised

    def _find_leader(self, request: Request) -> tuple[Request, int] | None:
        """Return who began before, is still here, and shares most of what is to compute; and how
        many tokens."""
        if self._ragged is None:
            return None
        before = takewhile(lambda one: one is not request, self._begun.values())
        ends = [(_common(one, request), one) for one in before]
        shared, leader = max(ends, key=lambda end: end[0], default=(0, None))
        worth = leader is not None and shared - request.computed >= _WORTH_A_COPY
        return (leader, shared) if worth else None

    def _leader(self, request: Request) -> Request | None:
        """Return who is to be computed first, because `request` goes on from there."""
        if request.leader is None:
            return None
        leader, shared = request.leader
        is_here = self._begun.get(leader.key) is leader  # not another one of the same id
        if is_here and leader.computed < shared:
            return self._leader(leader) or leader
        request.leader = None
        if is_here and (read := self._read(leader)) is not None:
            self._cache.put(leader.prompt[:shared], read)
        caches, cached = self.lease(request.prompt)
        if cached > request.computed:
            request.skip(caches, cached)
            self._scheduler.cached(request.key, cached)
        if not is_here:
            request.leader = self._find_leader(request)
        return self._leader(request)

    def _keep_piece(self, request: Request) -> None:
        """Keep a long prompt bit by bit: all of it at once would hold up the streams."""
        if request.caches is None or request.computed - request.kept < _PIECE:
            return
        if (read := self._read(request)) is not None:
            self._cache.put(request.prompt[: request.computed], read)
            request.kept = request.computed

    def _chunk(self, request: Request, count: int) -> None:
        caches = request.caches
        assert caches is not None
        self.forward(request.prompt[request.computed : request.computed + count], caches)
        done = _marker(caches)
        mx.async_eval([cache.state for cache in caches], done)
        self._marks.append((request.key, done))
        request.computed += count

    def _read(self, request: Request) -> Read | None:
        """Return how the keys and values of its prompt are read, wherever they are; None when a
        fault took them, or they cannot be sliced."""
        if self._ragged is None:
            return None
        if request.caches is not None:
            return _reader(request.caches)
        if request.row is not None:
            return _reader(request.row.caches)
        in_batch = request.key in self._ragged
        return partial(self._ragged.read_row, request.key) if in_batch else None

    def _make_row(self, request: Request) -> None:
        caches = request.caches
        assert caches is not None
        request.go(Phase.DECODE)
        if self._ragged is None:
            self.keep(request.prompt[:-1], caches)
        request.caches = None  # the row's own from now on
        request.row = Row(
            key=request.key,
            caches=caches,
            length=len(request.prompt) - 1,
            token=mx.array(request.prompt[-1:], dtype=mx.uint32),
            sampler=request.sampler,
        )


def _common(some: Request, other: Request) -> int:
    """Return how many tokens both prompts begin with; the last of each is never counted."""
    return common_prefix(some.encoded, other.encoded) // TOKEN_BYTES


def _ticket(request: Request) -> Ticket:
    return Ticket(
        key=request.key,
        client_id=request.client_id,
        priority=request.priority,
        prompt=len(request.prompt),
        total=request.total,
        arrived=request.times.received,
    )


def _reader(caches: LayerCaches) -> Read:
    def read(start: int, stop: int) -> list[LayerKV]:
        return [span_of(cache, start, stop) for cache in caches]

    return read


def _marker(caches: LayerCaches) -> mx.array:
    """Return a number that is there when the last layer's state is. It does not hold the state: a
    buffer that somebody holds cannot be written in place."""
    arrays = [a for _, a in tree_flatten(caches[-1].state) if isinstance(a, mx.array)]
    return arrays[0][(slice(0, 1),) * arrays[0].ndim] + 0
