"""What requests of OpenAI's two APIs for text have in common, decoded strictly. Pure.

Fields that are not known are ignored, as OpenAI's servers do. What is known and cannot be done is
refused by name: nobody takes an answer for what it is not.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from punie_model_host.door.faults import Refusal, invalid, undecodable
from punie_model_host.door.limits import MAX_CHOICES, MAX_USER
from punie_protocol.messages.common import ModelInfo, Priority
from punie_protocol.messages.to_model_host import Generate, Sampling

CLIENT: Final = "http"
"""Fairness key of requests that name no user."""
_ANY_MODEL: Final = ("", "default")


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`include_usage`: an event with the usage comes last."""

    include_usage: bool | None = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request's body. What is ``None`` is as the model's profile says; `top_k` to
    `xtc_threshold` are named as mlx_lm.server does."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    n: int | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def client_id(self) -> str:
        """The fairness key."""
        user = self.user or self.safety_identifier or self.prompt_cache_key
        return f"{CLIENT}:{user[:MAX_USER]}" if user else CLIENT

    @property
    def priority(self) -> Priority:
        """``flex`` is what nobody waits for."""
        flex = self.service_tier == "flex"
        return Priority.BACKGROUND if flex else Priority.INTERACTIVE

    @property
    def answers(self) -> int:
        """How many answers each prompt gets."""
        return 1 if self.n is None else self.n

    def sampling(self, max_tokens: int | None) -> Sampling:
        """Return how to sample, for answers of so many tokens."""
        stop = self.stop or []
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            xtc_probability=self.xtc_probability,
            xtc_threshold=self.xtc_threshold,
            logit_bias=self.logit_bias or {},
            seed=self.seed,
            max_tokens=max_tokens,
            stop=[stop] if isinstance(stop, str) else stop,
        )


def decode[A: Asked](decoder: msgspec.json.Decoder[A], body: bytes) -> A:
    """Return the request. Raises `Refusal`."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise undecodable(error) from None


def check_model(name: str | None, model: ModelInfo) -> None:
    """Raise `Refusal` when a request asks for another model than the one that is loaded; its name,
    its folder and ``default`` are that one."""
    if name is None or name in _ANY_MODEL or name in (model.name, model.folder):
        return
    text = f"there is no model {name[:200]!r} here; the one that is loaded is {model.name!r}"
    raise Refusal(404, "invalid_request_error", text, param="model", code="model_not_found")


def choices(prompts: Sequence[Generate], answers: int) -> list[Generate]:
    """Return a request for each choice, in the order that OpenAI has them: `answers` of the first
    prompt, and so on. Their ids are 1, 2, ... Of a prompt with a seed each answer has its own, one
    more than the one before. Raises `Refusal`."""
    if answers < 1 or answers * len(prompts) > MAX_CHOICES:
        text = f"n is {answers}, for {len(prompts)} prompts: 1 to {MAX_CHOICES} answers are made"
        raise invalid(text, "n")
    every = [(prompt, number) for prompt in prompts for number in range(answers)]
    return [_choice(prompt, number, id) for id, (prompt, number) in enumerate(every, 1)]


def _choice(prompt: Generate, number: int, id: int) -> Generate:
    seed = prompt.sampling.seed
    if seed is None or not number:
        return replace(prompt, request_id=id)
    return replace(prompt, request_id=id, sampling=replace(prompt.sampling, seed=seed + number))
