"""One request in the engine: its prompt on the way into a cache, its answer on the way out."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Final

from punie_model_host.batch import LayerCaches, Row
from punie_model_host.engine_messages import Key, Submit
from punie_model_host.loading import LoadedModel
from punie_model_host.ngram import History
from punie_model_host.output import Delta, Output
from punie_model_host.parsers import OneCall, Parser, Verbatim
from punie_model_host.prepare import Prepared
from punie_model_host.sampling import RowSampler
from punie_model_host.token_trie import encode
from punie_model_host.toolcalls import AnswerParser
from punie_protocol.errors import ModelFault
from punie_protocol.messages.common import Usage
from punie_protocol.messages.to_model_client import (
    Failed,
    Finished,
    PrefillProgress,
    StepTimings,
    StopReason,
)

PROGRESS_INTERVAL: Final = 0.1

type Produced = Delta | PrefillProgress | Finished | Failed


class Phase(Enum):
    """A request's progress; only forward."""

    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    DONE = "done"


TRANSITIONS: Final = {
    Phase.QUEUED: {Phase.PREFILL, Phase.DONE},
    Phase.PREFILL: {Phase.DECODE, Phase.DONE},
    Phase.DECODE: {Phase.DONE},
    Phase.DONE: set(),
}


@dataclass(slots=True)
class Clocked:
    """When what happened, seconds on the engine's clock."""

    received: float
    started: float = 0.0
    first: float = 0.0
    last: float = 0.0


class Request:
    """Owned by the engine. `caches` hold the first `computed` tokens of the prompt while it is
    prefilled; then `row` is the sequence whenever no batch has it. `promised` tokens of the prompt
    were in the prefix cache when it came, `kept` are known to be in it since; `leader` computes
    as many tokens that both begin with."""

    def __init__(
        self,
        submit: Submit,
        prepared: Prepared,
        loaded: LoadedModel,
        new_call_id: Callable[[], str],
    ) -> None:
        self.key: Key = submit.key
        self.client_id = submit.request.client_id
        self.priority = submit.request.priority
        self.prompt = prepared.tokens
        self.opening = prepared.opening
        self.max_tokens = prepared.max_tokens
        self.generated: list[int] = []
        self.sampler = RowSampler(prepared.plan, loaded.facts.vocabulary, prepared.tokens)
        self.phase = Phase.QUEUED
        self.caches: LayerCaches | None = None
        self.cached = self.computed = self.kept = self.promised = 0
        self.row: Row | None = None
        self.leader: tuple[Request, int] | None = None
        self.dispatched = self.retries = 0
        self.times = Clocked(submit.received)
        self._reported = float("-inf")
        self._stop_ids = loaded.stop_ids
        self._output = _output(submit, prepared, loaded, new_call_id)
        self._one_call = submit.request.one_call

    @cached_property
    def encoded(self) -> bytes:
        """The prompt less its last token, as prompts are compared."""
        return encode(self.prompt[:-1])

    @cached_property
    def history(self) -> History:
        """Prompt and answer so far, as drafts are found in them."""
        return History(self.tokens)

    @property
    def left(self) -> int:
        """Tokens that may still be dispatched."""
        return self.max_tokens - self.dispatched

    @property
    def total(self) -> int:
        """Tokens that it may have in the end."""
        return len(self.prompt) + self.max_tokens

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer so far."""
        return self.prompt + self.generated

    @property
    def to_compute(self) -> int:
        """Tokens of the prompt before its last that no cache holds yet."""
        return len(self.prompt) - 1 - self.computed

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values that are its own, apart from a batch's."""
        caches = [*(self.caches or ()), *(self.row.caches if self.row else ())]
        return sum(cache.nbytes for cache in caches)

    @property
    def wants_step(self) -> bool:
        """Whether another token may be dispatched."""
        return self.dispatched < self.max_tokens

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            input_tokens=len(self.prompt),
            cached_tokens=self.cached,
            output_tokens=len(self.generated),
        )

    def go(self, phase: Phase) -> None:
        """Enter the next phase."""
        assert phase in TRANSITIONS[self.phase], f"{self.phase} -> {phase}"
        self.phase = phase

    def begin(self, now: float, caches: LayerCaches, cached: int) -> None:
        """Its prompt is computed from now on; `caches` hold the first `cached` tokens."""
        self.go(Phase.PREFILL)
        self.times.started = now
        self.caches = caches
        self.cached = self.computed = self.kept = cached

    def skip(self, caches: LayerCaches, computed: int) -> None:
        """Go on with `caches`, which hold more of the prompt: somebody else computed it."""
        self.cached += computed - self.computed
        self.caches = caches
        self.computed = self.kept = computed

    def progress(self, now: float) -> list[Produced]:
        """Return how far the prompt is, unless that was said a moment ago."""
        if now - self._reported < PROGRESS_INTERVAL:
            return []
        self._reported = now
        done, total = self.computed - self.cached, len(self.prompt) - self.cached
        return [PrefillProgress(request_id=self.key.request_id, done=done, total=total)]

    def take(self, token: int, now: float) -> list[Produced]:
        """Take the next token of the answer, return what the client is to see; the last of it is
        `Finished`, or `Failed` for an answer that cannot be used, and the phase DONE then."""
        self.generated.append(token)
        if "history" in self.__dict__:
            self.history.append(token)
        if len(self.generated) == 1:
            self.times.first = now
        self.times.last = now
        if token in self._stop_ids:
            return self._finish(cut=False)
        produced: list[Produced] = [*self._output.add(token)]
        if self._output.fault is not None:
            return produced + self._fail(self._output.fault)
        if self._output.is_complete or (self._one_call and self._output.calls):
            return produced + self._finish(cut=False)
        more = len(self.generated) < self.max_tokens
        return produced if more else produced + self._finish(cut=True)

    def _finish(self, *, cut: bool) -> list[Produced]:
        produced: list[Produced] = [*self._output.finish(cut=cut)]
        if self._output.fault is not None:
            return produced + self._fail(self._output.fault)
        self.go(Phase.DONE)
        reason = StopReason.LENGTH if cut else StopReason.STOP
        if self._output.calls and not self._output.is_cut:
            reason = StopReason.TOOL_CALLS
        finished = Finished(
            request_id=self.key.request_id,
            stop_reason=reason,
            usage=self.usage,
            timings=self._timings(),
        )
        return [*produced, finished]

    def _timings(self) -> StepTimings:
        times = self.times
        return StepTimings(
            queue=_ms(times.started - times.received),
            prefill=_ms(times.first - times.started),
            decode=_ms(times.last - times.first),
        )

    def _fail(self, fault: ModelFault) -> list[Produced]:
        self.go(Phase.DONE)
        return [Failed(request_id=self.key.request_id, error=fault, usage=self.usage)]


def _output(
    submit: Submit, prepared: Prepared, loaded: LoadedModel, new_call_id: Callable[[], str]
) -> Output:
    return Output(
        submit.key.request_id,
        loaded.tokenizer,
        _parser(submit, prepared, loaded),
        (*prepared.plan.stop, *loaded.stop_texts),
        new_call_id,
        continues=submit.request.prompt is not None,
    )


def _parser(submit: Submit, prepared: Prepared, loaded: LoadedModel) -> Parser:
    if submit.request.prompt is not None:
        return Verbatim()
    format = loaded.profile.tool_call_format
    parser = AnswerParser(prepared.schemas, format, thinking=prepared.thinking)
    parser.feed(prepared.begun)  # the beginning of a call is no piece yet
    return OneCall(parser) if submit.request.one_call else parser


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 3)
