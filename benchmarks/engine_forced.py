"""An engine whose answers are set beforehand: the model computes every token of them, sampling
chooses among all tokens, and a bias of that position makes the recorded one the best.

What the engine does is what it does with a model that answers so: no part of it knows. That exactly
the recorded tokens come out is checked of every answer, and that its calls are parsed from it.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import msgspec

from benchmarks.edit_answers import TOOLS
from benchmarks.edit_tasks import Task
from punie_model_host.engine import Engine
from punie_model_host.engine_messages import (
    Emission,
    Key,
    LoadCommand,
    StatusIs,
    Submit,
    ToClient,
)
from punie_model_host.prepare import Prepared
from punie_model_host.request import Request
from punie_model_host.sampling import RowSampler
from punie_model_host.sampling_plan import SamplingPlan
from punie_protocol.engine import DraftCounts, EngineSettings
from punie_protocol.messages.common import Priority
from punie_protocol.messages.to_model_client import Failed, Finished, ToolCall
from punie_protocol.messages.to_model_host import Generate, Sampling, UserMessage
from punie_protocol.messages.to_supervisor import Load

_SURE: Final = 1e4
"""What is added to a token's logit so that no other is chosen; logits here are below 200."""


class Forced(RowSampler):
    """A row whose tokens are known. `ramp` is `ramp_of` the vocabulary."""

    def __init__(
        self, plan: SamplingPlan, prompt: Sequence[int], target: Sequence[int], ramp: mx.array
    ) -> None:
        self._size = ramp.size // 2
        super().__init__(replace(plan, bias={0: 0.0}), self._size, prompt)
        self._target = target
        self._ramp = ramp

    def bias_at(self, position: int) -> mx.array:
        """Return a slice: nothing is written for it, so it costs both sides next to nothing."""
        token = self._target[min(position, len(self._target) - 1)]
        return self._ramp[self._size - token : 2 * self._size - token]


def ramp_of(vocabulary: int) -> mx.array:
    """Return ``(2 * vocabulary,)`` of which every bias is a slice."""
    return mx.zeros((2 * vocabulary,)).at[vocabulary].add(_SURE)


@dataclass(slots=True)
class _Asked:
    """A request under way. It is known to the engine alone once it has ended."""

    request: Request
    target: list[int]
    calls: list[tuple[str, dict[str, str]]] | None


@dataclass(frozen=True, slots=True)
class Sample:
    """What answering some tasks at once took. `decoded` tokens came in `decode_s`, which begins
    when every answer has begun; `seconds` is all of it. `steps` are those of the decoding."""

    tokens: int
    seconds: float
    decoded: int
    decode_s: float
    steps: int
    drafts: Mapping[str, DraftCounts]

    @property
    def tok_s(self) -> float:
        """Tokens a second while all answers run, or those that are left of them."""
        return self.decoded / self.decode_s

    def __add__(self, other: Sample) -> Sample:
        """Return what both took, one after the other."""
        return Sample(
            tokens=self.tokens + other.tokens,
            seconds=self.seconds + other.seconds,
            decoded=self.decoded + other.decoded,
            decode_s=self.decode_s + other.decode_s,
            steps=self.steps + other.steps,
            drafts=_combined(self.drafts, other.drafts, 1),
        )

    def figures(self) -> dict[str, Any]:
        """Return it as it is printed."""
        return {
            "tok_s": round(self.tok_s, 2),
            "whole_tok_s": round(self.tokens / self.seconds, 2),
            "tokens": self.tokens,
            "tokens_a_step": round(self.decoded / self.steps, 3),
            "drafts": {name: msgspec.to_builtins(one) for name, one in self.drafts.items()},
        }


class ForcedEngine:
    """An engine with the model of `folder`, asked in this thread. All times are `clock`'s."""

    def __init__(
        self,
        folder: Path,
        settings: EngineSettings,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self.engine = Engine(folder.parent, settings, self._emit, clock=clock)
        self._status: StatusIs | None = None
        self._calls: dict[Key, list[tuple[str, dict[str, str]]]] = {}
        self._ended: set[Key] = set()
        self._number = 0
        self.engine.handle(LoadCommand(-1, str(folder)))
        self._run()
        assert self.engine._serving is not None, "the model was not loaded"
        self._loaded = self.engine._serving._loaded
        self.vocabulary = self._loaded.facts.vocabulary
        self._ramp = ramp_of(self.vocabulary)

    def _emit(self, emission: Emission) -> None:
        match emission:
            case ToClient(key, Failed(error=error)):
                raise RuntimeError(f"request {key.request_id} failed: {error}")
            case ToClient(key, ToolCall(name=name, arguments=arguments)):
                self._calls.setdefault(key, []).append((name, json.loads(arguments)))
            case ToClient(key, Finished()):
                self._ended.add(key)
            case StatusIs():
                self._status = emission
            case _:
                state = getattr(emission, "state", None)
                if state is Load.FAILED:
                    raise RuntimeError(f"the model was not loaded: {emission}")

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return self._loaded.tokenizer.encode(text, add_special_tokens=False)

    def answer(self, tasks: Sequence[Task], sampling: Sampling | None = None) -> Sample:
        """Answer them all at once, greedily unless `sampling` says otherwise. Raises
        `RuntimeError` when an answer is not the recorded one."""
        return self._measured([self._ask(task, sampling) for task in tasks])

    def answer_tokens(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Sample:
        """Answer prompts of tokens with answers of tokens."""
        return self._measured([self._ask_tokens(*pair) for pair in pairs])

    def _ask(self, task: Task, sampling: Sampling | None) -> _Asked:
        target = self.encode(task.answer)
        wish = sampling or Sampling(temperature=0.0)
        key, request = self._request(msgspec.structs.replace(wish, max_tokens=len(target)))
        asked = msgspec.structs.replace(request, messages=[*task.messages], tools=[*TOOLS])
        self.engine.handle(Submit(key, asked, self._clock()))
        return self._force(key, target, list(task.calls))

    def _ask_tokens(self, prompt: list[int], target: list[int]) -> _Asked:
        key, request = self._request(Sampling(temperature=0.0, max_tokens=len(target)))
        text = msgspec.structs.replace(request, messages=[UserMessage(text="x")])
        serving = self.engine._serving
        assert serving is not None
        prepared = replace(serving._reader.prepare(text), tokens=prompt, opening=0)
        self._submit_prepared(key, text, prepared)
        return self._force(key, target, None)

    def _submit_prepared(self, key: Key, request: Generate, prepared: Prepared) -> None:
        self.engine.handle(Submit(key, request, self._clock(), prepared))

    def _request(self, sampling: Sampling) -> tuple[Key, Generate]:
        self._number += 1
        request = Generate(
            request_id=self._number,
            client_id=f"client{self._number}",
            conversation_id="",
            priority=Priority.INTERACTIVE,
            messages=[],
            sampling=sampling,
        )
        return Key(1, self._number), request

    def _force(
        self, key: Key, target: list[int], calls: list[tuple[str, dict[str, str]]] | None
    ) -> _Asked:
        request = self.engine._requests[key]
        if request.max_tokens < len(target):
            raise RuntimeError(f"an answer of {len(target)} tokens does not fit the window")
        request.sampler = Forced(request.sampler.plan, request.prompt, target, self._ramp)
        return _Asked(request, target, calls)

    def _measured(self, asked: Sequence[_Asked]) -> Sample:
        requests = [one.request for one in asked]
        before, started = self._drafts(), self._clock()
        while not all(request.generated for request in requests):
            self.engine.step()
        first, begun = sum(len(request.generated) for request in requests), self._clock()
        steps = self._run()
        ended = self._clock()
        for one in asked:
            self._check(one)
        tokens = sum(len(one.target) for one in asked)
        return Sample(
            tokens=tokens,
            seconds=ended - started,
            decoded=tokens - first,
            decode_s=ended - begun,
            steps=steps,
            drafts=_combined(self._drafts(), before, -1),
        )

    def _run(self) -> int:
        steps = 0
        while self.engine.has_work:
            self.engine.step()
            steps += 1
        return steps

    def _check(self, asked: _Asked) -> None:
        """Fail unless the answer is the recorded one, token for token, and its calls are."""
        key, got = asked.request.key, asked.request.generated
        if got != asked.target:
            at = next(
                (n for n, (a, b) in enumerate(zip(got, asked.target, strict=False)) if a != b), -1
            )
            raise RuntimeError(
                f"request {key.request_id}: {len(got)} tokens in place of {len(asked.target)}, "
                f"different from token {at}"
            )
        calls = self._calls.pop(key, [])
        if key not in self._ended or (asked.calls is not None and calls != asked.calls):
            raise RuntimeError(f"request {key.request_id}: {calls} in place of {asked.calls}")

    def _drafts(self) -> Mapping[str, DraftCounts]:
        return dict(self.engine._metrics.snapshot(self.engine._gauges()).drafts)


def _combined(
    one: Mapping[str, DraftCounts], other: Mapping[str, DraftCounts], sign: int
) -> dict[str, DraftCounts]:
    """Return the counts of `one` and, `sign` times, of `other`."""
    none = DraftCounts()
    names = {*one, *other}
    pairs = {name: (one.get(name, none), other.get(name, none)) for name in sorted(names)}
    return {
        name: DraftCounts(
            proposed=a.proposed + sign * b.proposed,
            accepted=a.accepted + sign * b.accepted,
            emitted=a.emitted + sign * b.emitted,
        )
        for name, (a, b) in pairs.items()
    }
