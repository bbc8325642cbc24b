"""The group of ranks that compute one model: what they exchange through MLX, and how the model is
divided. For the engine's thread. One a process, as MLX's own: alone, until `join`.

Only what takes part in a forward goes this way, and what is exchanged while all ranks load: who
waits in one of MLX's collectives looks all the time whether something has come, at the cost of a
core. What ranks wait for in between is a `Script`'s.
"""

import logging
import os
import signal
from collections.abc import Callable
from typing import Any, Final

import mlx.core as mx

from punie_model_host.log import event
from punie_model_host.ranks import Sharding
from punie_protocol.errors import Internal, InvalidRequest, ModelLoadFailed, PunieError

JOIN_DEADLINE: Final = 120
"""Seconds in which all ranks have to be started."""
_TEXT: Final = 400
"""Bytes of a reason that ranks tell one another."""

_log = logging.getLogger(__name__)


class RanksFault(BaseException):
    """The ranks cannot go on together. No fault of a request's: it passes the walls round them."""


class World:
    """`size` ranks, of which this is `rank`; one that is alone computes as if there were none."""

    def __init__(
        self, group: mx.distributed.Group | None = None, sharding: Sharding = Sharding.AUTO
    ) -> None:
        self._group = group
        self._wanted = sharding
        self._part = 1.0

    @property
    def rank(self) -> int:
        """The number of this rank."""
        return self._group.rank() if self._group else 0

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self._group.size() if self._group else 1

    # what is the same everywhere

    def agreed(self, tokens: mx.array, sound: mx.array) -> tuple[mx.array, mx.array]:
        """Return rank 0's `tokens`, uint32, and which are `sound` on all ranks, lazily. Logits may
        differ in their last bits between machines, so that near-ties go either way: what was
        chosen must not."""
        if self._group is None:
            return tokens, sound
        ours = tokens.astype(mx.uint32) * (self.rank == 0)
        sums = self._sum(mx.concatenate([ours, (~sound).astype(mx.uint32)]))
        return sums[: tokens.shape[0]], sums[tokens.shape[0] :] == 0

    def from_leader(self, data: bytes, size: int) -> bytes:
        """Return rank 0's `data`, which has `size` bytes; what others give does not matter."""
        ours = data if self.rank == 0 else bytes(size)
        return bytes(memoryview(_now(self._sum(mx.array(list(ours), dtype=mx.uint32)))).tolist())

    def least(self, number: int) -> int:
        """Return the smallest that any rank has."""
        return min(self._all(number)) if self._group else number

    def alike(self, what: str, ours: str) -> None:
        """Raise `PunieError` on all ranks unless `ours` is the same on all of them."""
        texts = self._texts(ours)
        if len(set(texts)) > 1:
            told = ", ".join(f"rank {rank}: {text}" for rank, text in enumerate(texts))
            error = Internal(message=f"{what} differs between ranks: {told}", hint=_SAME)
            raise PunieError(error)

    def together[T](self, do: Callable[[], T]) -> T:
        """Return what `do` returns; when it fails on any rank it fails on all, there with
        `PunieError` that says where and why. `do` exchanges nothing itself."""
        if self._group is None:
            return do()
        try:
            result = do()
        except Exception as error:
            self._texts(str(error) or type(error).__name__)
            raise
        for rank, reason in enumerate(self._texts("")):
            if reason:
                raise PunieError(_elsewhere(rank, reason))
        return result

    def end_if_shared(self, error: Exception) -> None:
        """A forward failed here. Raise `RanksFault` if other ranks take part in it: what they send
        would be taken for what another forward waits for."""
        if self._group is not None:
            reason = f"a forward failed on rank {self.rank}: {type(error).__name__}: {error}"
            raise RanksFault(reason) from error

    # the model

    def divide(self, model: Any, config: dict[str, Any]) -> None:
        """Leave of `model`, whose weights are not read yet, what this rank computes. Raises
        `PunieError` for one that cannot be divided so."""
        if self._group is None:
            return
        how = self._choose(model, config)
        event(_log, logging.INFO, "divided", how=how, rank=self.rank, size=self.size)
        if how is Sharding.TENSOR:
            model.shard(self._group)
            self._part = 1 / self.size
        else:
            layers = len(model.model.layers)
            model.model.pipeline(self._group)
            model.model.__class__ = _in_order(type(model.model))
            self._part = -(-layers // self.size) / layers

    def part(self, nbytes: int) -> int:
        """Return how much of `nbytes` of the whole model this rank has."""
        return int(nbytes * self._part)

    def _choose(self, model: Any, config: dict[str, Any]) -> Sharding:
        faults = {
            Sharding.TENSOR: self._why_no_tensors(model, config),
            Sharding.PIPELINE: self._why_no_layers(model),
        }
        order = list(faults) if self._wanted is Sharding.AUTO else [self._wanted]
        for how in order:
            if not faults[how]:
                return how
        reasons = "; ".join(f"{how}: {faults[how]}" for how in order)
        message = f"the model cannot be divided among {self.size} ranks: {reasons}"
        hint = "take another number of ranks, --sharding auto, or another model"
        raise PunieError(InvalidRequest(message=message, hint=hint))

    def _why_no_tensors(self, model: Any, config: dict[str, Any]) -> str:
        if not hasattr(model, "shard"):
            return "mlx-lm cannot divide its tensors"
        text = config.get("text_config") or config
        for name in ("num_attention_heads", "num_key_value_heads"):
            heads = text.get(name)
            if isinstance(heads, int) and heads % self.size:
                return f"{name} is {heads}"
        return ""

    def _why_no_layers(self, model: Any) -> str:
        if not hasattr(getattr(model, "model", None), "pipeline"):
            return "mlx-lm cannot divide its layers"
        layers = len(model.model.layers)
        return f"it has {layers} layers" if layers % self.size else ""

    # inside

    def _sum(self, array: mx.array) -> mx.array:
        return mx.distributed.all_sum(array, group=self._group, stream=mx.cpu)

    def _all(self, number: int) -> list[int]:
        ours = mx.array([number], dtype=mx.int64)
        gathered = mx.distributed.all_gather(ours, group=self._group, stream=mx.cpu)
        return memoryview(_now(gathered)).tolist()

    def _texts(self, ours: str) -> list[str]:
        data = ours.encode()[:_TEXT].ljust(_TEXT, b"\0")
        mine = mx.array(list(data), dtype=mx.uint8)[None]
        gathered = mx.distributed.all_gather(mine, group=self._group, stream=mx.cpu)
        flat = bytes(memoryview(_now(gathered.reshape(-1))))
        texts = [flat[start : start + _TEXT] for start in range(0, len(flat), _TEXT)]
        return [text.rstrip(b"\0").decode(errors="replace") for text in texts]


_SAME: Final = "all ranks need the same model folder and the same versions of everything"
_world = World()


def world() -> World:
    """Return this process's."""
    return _world


def join(sharding: Sharding) -> World:
    """Connect to the other ranks, as the environment says, and return them. Raises `PunieError`
    when they cannot be reached.

    MLX keeps all threads of Python from running meanwhile, and rank 0 waits without end: SIGALRM
    ends the process after `JOIN_DEADLINE`. Whoever handles signals in Python does so afterwards.
    """
    global _world  # noqa: PLW0603  a process has one group, as MLX has
    event(_log, logging.INFO, "joining", within_s=JOIN_DEADLINE)
    signal.alarm(JOIN_DEADLINE)
    try:
        group = mx.distributed.init(strict=True)
    except RuntimeError as error:
        hint = "see that all ranks run, and reach one another at the hostfile's addresses"
        raise PunieError(InvalidRequest(message=f"no group of ranks: {error}", hint=hint)) from None
    finally:
        signal.alarm(0)
    if group.size() > 1:
        _world = World(group, sharding)
    event(_log, logging.INFO, "joined", rank=group.rank(), size=group.size(), pid=os.getpid())
    return _world


def _elsewhere(rank: int, reason: str) -> ModelLoadFailed:
    return ModelLoadFailed(message=f"rank {rank}: {reason}", hint=_SAME, folder="", file="")


def _now(array: mx.array) -> mx.array:
    mx.eval(array)
    return array


def _in_order(kind: Any) -> type:
    """Return the same model, whose forwards are begun one by one. In MLX's graph of several, what
    is sent would go in another order than what is received: ranks have different layers."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> mx.array:
        hidden = kind.__call__(self, *args, **kwargs)
        mx.async_eval(hidden)
        return hidden

    return type(kind.__name__, (kind,), {"__call__": forward})
