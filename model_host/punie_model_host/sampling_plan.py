"""How one request samples: its own wishes over the model's profile, checked. No MLX here: a
request is refused before anything is computed."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from punie_model_host.profile import MAX_TOKENS, MAX_TOP_K, SamplingProfile
from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.messages.to_model_host import Sampling

MAX_STOPS: Final = 16
MAX_STOP_LENGTH: Final = 256
MAX_BIASES: Final = 1024
MAX_BIAS: Final = 100.0
_GREEDY_BELOW: Final = 1e-5
"""Below this temperature a token that is 0.001 less likely (in logits) is never drawn."""
_SHOWN: Final = 60
"""Characters of a wrong value that an error shows."""


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """Sampling of one request, complete and valid: every number is finite and in its range, ids
    of `bias` are in the vocabulary, `profile.top_k` is 0 where it would keep every token."""

    profile: SamplingProfile
    seed: int
    stop: tuple[str, ...] = ()
    bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def draws(self) -> bool:
        """Whether chance decides; else the likeliest token is taken."""
        return self.profile.temperature >= _GREEDY_BELOW

    @property
    def penalizes(self) -> bool:
        """Whether recent tokens matter."""
        values = self.profile
        return bool(
            values.repetition_penalty != 1.0 or values.presence_penalty or values.frequency_penalty
        )


def plan_sampling(wish: Sampling, profile: SamplingProfile, vocabulary: int) -> SamplingPlan:
    """Return `wish` completed from `profile`, for a model of `vocabulary` tokens.

    A `top_k` that keeps every token is off, and a seed is taken modulo 2**64; `max_tokens` may be
    larger than any window. Raises `PunieError` with `InvalidRequest` that names the field, what
    was given and the limit.
    """
    values = {**msgspec.structs.asdict(profile), **_given(wish)}
    if values["top_k"] >= vocabulary:
        values["top_k"] = 0
    seed = secrets.randbits(64) if wish.seed is None else wish.seed % 2**64
    return SamplingPlan(
        profile=msgspec.convert(values, SamplingProfile),
        seed=seed,
        stop=check_stop(wish.stop),
        bias=_check_bias(wish.logit_bias, vocabulary),
    )


def check_stop(value: object) -> tuple[str, ...]:
    """Return the stop strings of `value`: None, a string, or a list of strings. Raises
    `PunieError` with `InvalidRequest`."""
    stops = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(stops, list | tuple):
        raise _invalid("stop", value, "expected a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise _refused(f"stop has {len(stops)} strings, at most {MAX_STOPS} are allowed")
    return tuple(_check_stop(f"stop[{n}]", stop) for n, stop in enumerate(stops))


def _check_stop(name: str, stop: object) -> str:
    if not isinstance(stop, str):
        raise _invalid(name, stop, "expected a string")
    if not 0 < len(stop) <= MAX_STOP_LENGTH:
        limit = f"1 to {MAX_STOP_LENGTH} are allowed"
        raise _refused(f"{name} has {len(stop)} characters, {limit}")
    return stop


def _given(wish: Sampling) -> dict[str, Any]:
    """The fields of a profile that `wish` says something about, each checked."""
    values: dict[str, Any] = {}
    for name in SamplingProfile.__struct_fields__:
        if (value := getattr(wish, name)) is not None:
            values[name] = _check(name, value)
    return values


def _check(name: str, value: float) -> float:
    if isinstance(value, float) and not math.isfinite(value):
        raise _invalid(name, value, "expected a finite number")
    limit = {"top_k": MAX_TOP_K, "max_tokens": MAX_TOKENS}.get(name)
    if limit is not None:
        value = min(value, limit)  # as good as any larger one
    try:
        msgspec.convert({name: value}, SamplingProfile)
    except (msgspec.ValidationError, OverflowError) as error:
        reason = str(error).partition(" - at ")[0].replace("`", "")
        raise _invalid(name, value, reason[:1].lower() + reason[1:]) from None
    return value


def _check_bias(bias: Mapping[int, float], vocabulary: int) -> Mapping[int, float]:
    if len(bias) > MAX_BIASES:
        raise _refused(f"logit_bias has {len(bias)} tokens, at most {MAX_BIASES} are allowed")
    for token, value in bias.items():
        if not 0 <= token < vocabulary:
            raise _invalid("logit_bias", token, f"the model's tokens are 0 to {vocabulary - 1}")
        if not -MAX_BIAS <= value <= MAX_BIAS:
            raise _invalid(f"logit_bias[{token}]", value, f"expected -{MAX_BIAS} to {MAX_BIAS}")
    return bias


def _invalid(name: str, value: object, reason: str) -> PunieError:
    return _refused(f"{name} is {_shown(value)}: {reason}")


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _refused(reason: str) -> PunieError:
    return PunieError(
        InvalidRequest(message=f"sampling: {reason}", hint="correct the request and send it again")
    )
