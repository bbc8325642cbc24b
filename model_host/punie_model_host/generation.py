"""One request being answered: prompt chunks, then a token a step.

Each `step` does one bounded piece of work and returns the messages it produced, so that the
engine can look up for cancels and other work in between.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

import mlx.core as mx

from punie_model_host.chat import properties, render
from punie_model_host.loading import LoadedModel
from punie_model_host.output import Delta, Output
from punie_model_host.profile import ToolCallFormat
from punie_model_host.prompt_cache import PromptCache
from punie_model_host.sampling import PENALTY_CONTEXT, SamplingPlan, chooser, plan_sampling
from punie_model_host.toolcalls import AnswerParser, Schemas
from punie_protocol.errors import ContextOverflow, ModelFault, PunieError
from punie_protocol.messages.common import Usage
from punie_protocol.messages.to_model_client import (
    Failed,
    Finished,
    PrefillProgress,
    StepTimings,
    StopReason,
)
from punie_protocol.messages.to_model_host import Generate

PROGRESS_INTERVAL: Final = 0.1
_CLEAR_EVERY: Final = 256
"""Tokens after which MLX's pool of freed buffers is emptied, as mlx-lm does."""

type Produced = Delta | PrefillProgress | Finished | Failed


class Phase(Enum):
    """`Generation`'s progress; only forward."""

    PREFILL = "prefill"
    DECODE = "decode"
    DONE = "done"


TRANSITIONS: Final = {
    Phase.PREFILL: {Phase.DECODE},
    Phase.DECODE: {Phase.DONE},
    Phase.DONE: set(),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for all requests. `prefill_chunk` is in tokens."""

    prefill_chunk: int
    new_call_id: Callable[[], str]
    clock: Callable[[], float] = time.perf_counter


class Generation:
    """Answers `request` with `loaded`. The constructor raises `PunieError` for a request that
    cannot be answered. `release` gives the keys and values back, whatever happened."""

    def __init__(
        self,
        request: Generate,
        loaded: LoadedModel,
        cache: PromptCache,
        settings: Settings,
        submitted: float,
    ) -> None:
        self._request = request
        self._loaded = loaded
        self._cache = cache
        self._settings = settings
        plan = plan_sampling(request.sampling, loaded.profile.sampling)
        schemas = properties(request.tools)
        prompt = render(
            loaded.tokenizer,
            request.messages,
            request.tools,
            loaded.profile.prompt_style,
            loaded.controls,
        )
        self._prompt = prompt.tokens
        self._max_tokens = min(plan.profile.max_tokens, self._room())
        self._output = self._new_output(schemas, plan, thinking=prompt.thinking)
        self._choose = chooser(plan, loaded.vocabulary)
        self._recent = mx.array(self._prompt[-PENALTY_CONTEXT:]) if plan.penalizes else None
        self._next: mx.array | None = None
        self._sampled = 0
        self.phase = Phase.PREFILL
        self._submitted, self._started = submitted, settings.clock()
        self._first = self._last = self._started
        self._reported = float("-inf")
        self._lease = cache.take(loaded.model, self._prompt, request.conversation_id)
        self._fed = self._prompt[: self._lease.cached]

    def _new_output(self, schemas: Schemas, plan: SamplingPlan, *, thinking: bool) -> Output:
        loaded = self._loaded
        bare = loaded.profile.tool_call_format is ToolCallFormat.QWEN3_CODER
        return Output(
            self._request.request_id,
            loaded.tokenizer,
            AnswerParser(schemas, bare_functions=bare, thinking=thinking),
            (*plan.stop, *loaded.stop_texts),
            self._settings.new_call_id,
        )

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            input_tokens=len(self._prompt),
            cached_tokens=self._lease.cached,
            output_tokens=self._sampled,
        )

    def step(self) -> list[Produced]:
        """Do one piece of work; its last messages carry `Finished`, or `Failed` for an answer
        that cannot be used. Raises what MLX raises; the request is over then."""
        if self.phase is Phase.PREFILL:
            return self._prefill()
        return self._decode()

    def release(self, *, intact: bool) -> None:
        """Hand the keys and values back to the cache, or drop them when they are not `intact`."""
        if intact:
            mx.eval([layer.state for layer in self._lease.layers])
            self._cache.put(self._fed, self._lease.layers, self._request.conversation_id)

    def _room(self) -> int:
        window = self._loaded.profile.context_window
        if len(self._prompt) >= window:
            raise PunieError(
                ContextOverflow(
                    message=f"the conversation has {len(self._prompt)} tokens, "
                    f"the model's window {window}",
                    hint="start a new session, or use a model with a larger context window",
                    tokens=len(self._prompt),
                    limit=window,
                )
            )
        return window - len(self._prompt)

    def _go(self, phase: Phase) -> None:
        assert phase in TRANSITIONS[self.phase], f"{self.phase} -> {phase}"
        self.phase = phase

    def _prefill(self) -> list[Produced]:
        rest = self._prompt[len(self._fed) :]
        if len(rest) > 1:
            chunk = rest[: min(self._settings.prefill_chunk, len(rest) - 1)]
            self._loaded.model(mx.array(chunk)[None], cache=self._lease.layers)
            mx.eval([layer.state for layer in self._lease.layers])
            mx.clear_cache()
            self._fed += chunk
        else:
            self._next = self._dispatch(mx.array(rest))
            self._fed += rest
            mx.eval(self._next)
            self._go(Phase.DECODE)
        return self.progress()

    def progress(self) -> list[Produced]:
        """Return how far the prompt is, unless that was said a moment ago."""
        now = self._settings.clock()
        total = len(self._prompt) - self._lease.cached
        if now - self._reported < PROGRESS_INTERVAL:
            return []
        self._reported = now
        done = len(self._fed) - self._lease.cached
        return [PrefillProgress(request_id=self._request.request_id, done=done, total=total)]

    def _dispatch(self, tokens: mx.array) -> mx.array:
        """Begin to compute the token after `tokens`; nothing waits for it here."""
        logits = self._loaded.model(tokens[None], cache=self._lease.layers)[:, -1, :]
        token = self._choose(logits, self._recent)
        mx.async_eval(token)
        return token

    def _decode(self) -> list[Produced]:
        assert self._next is not None
        coming, more = self._next, self._sampled + 1 < self._max_tokens
        if self._recent is not None:
            self._recent = mx.concatenate([self._recent, coming])[-PENALTY_CONTEXT:]
        self._next = self._dispatch(coming) if more else None
        (token,) = _token_ids(coming)
        self._take(token, fed=more)
        if token in self._loaded.stop_ids:
            return self._finish(cut=False)
        produced: list[Produced] = [*self._output.add(token)]
        if self._output.fault is not None:
            return produced + self._fail(self._output.fault)
        if self._output.is_complete:
            return produced + self._finish(cut=False)
        return produced if more else produced + self._finish(cut=True)

    def _take(self, token: int, *, fed: bool) -> None:
        self._sampled += 1
        self._last = self._settings.clock()
        if self._sampled == 1:
            self._first = self._last
        if fed:
            self._fed.append(token)
        if self._sampled % _CLEAR_EVERY == 0:
            mx.clear_cache()

    def _finish(self, *, cut: bool) -> list[Produced]:
        produced: list[Produced] = [*self._output.finish(cut=cut)]
        if self._output.fault is not None:
            return produced + self._fail(self._output.fault)
        self._go(Phase.DONE)
        reason = StopReason.LENGTH if cut else StopReason.STOP
        if self._output.calls:
            reason = StopReason.TOOL_CALLS
        finished = Finished(
            request_id=self._request.request_id,
            stop_reason=reason,
            usage=self.usage,
            timings=StepTimings(
                queue=_ms(self._started - self._submitted),
                prefill=_ms(self._first - self._started),
                decode=_ms(self._last - self._first),
            ),
        )
        return [*produced, finished]

    def _fail(self, fault: ModelFault) -> list[Produced]:
        self._go(Phase.DONE)
        return [Failed(request_id=self._request.request_id, error=fault, usage=self.usage)]


def _token_ids(tokens: mx.array) -> list[int]:
    """Wait for `tokens` and return them; MLX's own type of `tolist` knows no shapes."""
    return [int(token) for token in memoryview(tokens.astype(mx.uint32))]


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 3)
