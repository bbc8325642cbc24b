"""Requests of OpenAI's completions API: a text that is gone on with. Pure."""

from collections.abc import Sequence
from typing import Final

import msgspec

from punie_model_host.door import wire
from punie_model_host.door.faults import invalid
from punie_model_host.door.limits import MAX_CHOICES, MAX_IDS
from punie_model_host.door.wire import Asked
from punie_protocol.messages.to_model_host import Generate

MAX_TOKENS: Final = 16
"""Of an answer to a request that says nothing of it, as at OpenAI: a raw text has no end at which
a model stops by itself."""

type Prompt = str | list[int]


class CompletionRequest(Asked, frozen=True, kw_only=True):
    """Body of ``POST /v1/completions``. `prompt` is a text, a list of token ids, or a list of one
    of these."""

    prompt: str | list[str | int | list[int]]
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None
    logprobs: bool | int | None = None


_decoder: Final = msgspec.json.Decoder(CompletionRequest)


def decode(body: bytes) -> CompletionRequest:
    """Return the request. Raises `Refusal`."""
    return wire.decode(_decoder, body)


def generates(request: CompletionRequest, conversation_id: str) -> list[Generate]:
    """Return what the engine is to go on with, one for each choice. Raises `Refusal`."""
    _check_possible(request)
    most = request.max_tokens
    prompts = [
        Generate(
            request_id=1,
            client_id=request.client_id,
            conversation_id=request.prompt_cache_key or conversation_id,
            priority=request.priority,
            messages=[],
            sampling=request.sampling(MAX_TOKENS if most is None else most),
            prompt=prompt,
        )
        for prompt in _prompts(request.prompt)
    ]
    return wire.choices(prompts, request.answers)


def _check_possible(request: CompletionRequest) -> None:
    if request.suffix:
        raise invalid("suffix: a text is gone on with, not filled in", "suffix")
    if request.echo:
        raise invalid("echo: the prompt is not repeated", "echo")
    if request.logprobs is not None and request.logprobs is not False:
        raise invalid("logprobs: log probabilities are not given", "logprobs")
    if request.best_of is not None and request.best_of != request.answers:
        raise invalid("best_of: all answers that are made are given; see n", "best_of")


def _prompts(prompt: str | list[str | int | list[int]]) -> Sequence[Prompt]:
    if isinstance(prompt, str):
        return [prompt]
    longest = max([len(prompt), *(len(one) for one in prompt if isinstance(one, list))])
    if longest > MAX_IDS:
        raise invalid(f"prompt: {longest} token ids, at most {MAX_IDS} are read", "prompt")
    ids = [one for one in prompt if isinstance(one, int)]
    prompts = [one for one in prompt if not isinstance(one, int)]
    if ids and prompts:
        raise invalid("prompt: a list of token ids has nothing else in it", "prompt")
    if len(prompts) > MAX_CHOICES:
        text = f"prompt: {len(prompts)} prompts, at most {MAX_CHOICES} are answered at a time"
        raise invalid(text, "prompt")
    if not prompt:
        raise invalid("prompt: it is empty", "prompt")
    return [ids] if ids else prompts
