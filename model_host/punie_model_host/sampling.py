"""How one request samples: its own wishes over the model's profile, checked."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import mlx.core as mx
import msgspec
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from punie_model_host.profile import SamplingProfile
from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.messages.to_model_host import Sampling

_MAX_STOPS: Final = 16
_MAX_STOP_LENGTH: Final = 256
PENALTY_CONTEXT: Final = 20
"""Tokens that the repetition penalty looks back on."""

type Choose = Callable[[mx.array, mx.array | None], mx.array]
"""Logits of the last position and recent tokens (None at first) to the next token, lazily."""


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """Sampling of one request, complete and valid."""

    profile: SamplingProfile
    seed: int
    stop: tuple[str, ...]

    @property
    def penalizes(self) -> bool:
        """Whether recent tokens matter."""
        return self.profile.repetition_penalty != 1.0


def plan_sampling(wish: Sampling, profile: SamplingProfile) -> SamplingPlan:
    """Return `wish` completed from `profile`. Raises `PunieError` that names the field."""
    values = msgspec.structs.asdict(profile)
    given = {key: getattr(wish, key) for key in values}
    values |= {key: value for key, value in given.items() if value is not None}
    try:
        merged = msgspec.convert(values, SamplingProfile)
    except msgspec.ValidationError as error:
        raise PunieError(InvalidRequest(message=f"sampling: {error}")) from None
    _check_stops(wish.stop)
    seed = secrets.randbits(32) if wish.seed is None else wish.seed & 0xFFFF_FFFF_FFFF_FFFF
    return SamplingPlan(merged, seed, tuple(wish.stop))


def _check_stops(stops: Sequence[str]) -> None:
    if len(stops) > _MAX_STOPS or not all(0 < len(stop) <= _MAX_STOP_LENGTH for stop in stops):
        message = (
            f"sampling: at most {_MAX_STOPS} stop strings of 1 to {_MAX_STOP_LENGTH} characters"
        )
        raise PunieError(InvalidRequest(message=message))


def chooser(plan: SamplingPlan, vocabulary: int) -> Choose:
    """Return the function that picks tokens. Reseeds MLX's generator, which is the thread's."""
    mx.random.seed(plan.seed)
    profile = plan.profile
    sampler = make_sampler(
        temp=profile.temperature,
        top_p=profile.top_p,
        min_p=profile.min_p,
        top_k=profile.top_k if profile.top_k < vocabulary else 0,
    )
    processors = make_logits_processors(
        repetition_penalty=profile.repetition_penalty if plan.penalizes else None,
        repetition_context_size=PENALTY_CONTEXT,
    )

    def choose(logits: mx.array, recent: mx.array | None) -> mx.array:
        if recent is not None:
            for processor in processors:
                logits = processor(recent, logits)
        return sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True))

    return choose
