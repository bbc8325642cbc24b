"""An engine on a small model, driven step by step, and what each request must get: its answer as
mlx-lm's forward and caches give it, alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Final

import mlx.core as mx

from punie_model_host.engine import Engine
from punie_model_host.engine_messages import Cancel, Emission, Key, LoadCommand, Submit, ToClient
from punie_model_host.folder import check_folder
from punie_model_host.loading import LoadedModel, build, read_weights
from punie_model_host.prepare import Prepared, Reader
from punie_model_host.sampling import RowSampler, sample
from punie_model_host.sampling_plan import SamplingPlan
from punie_protocol import errors
from punie_protocol.engine import EngineSettings
from punie_protocol.messages.common import Priority
from punie_protocol.messages.to_model_client import Failed, Finished, TextDelta, ToModelClient
from punie_protocol.messages.to_model_host import (
    AnyChatMessage,
    AssistantMessage,
    Generate,
    Sampling,
    UserMessage,
)
from tests.support.exactness import NEAR_TIE, PACKED_TIE, caches_alone

_NOISE: Final = NEAR_TIE / 2
"""What the order of additions may change in a logit."""
_PACKED_NOISE: Final = PACKED_TIE / 2
_CHUNK: Final = 512
_PATIENCE: Final = 20_000


class Oracle:
    """What a model answers alone. Texts are ASCII, a token a character: see `small_models`."""

    def __init__(self, folder: Path) -> None:
        self.loaded: LoadedModel = build(check_folder(folder))
        read_weights(self.loaded, lambda _done, _total: None)
        self.reader = Reader(self.loaded.facts, self.loaded.tokenizer)
        self.answer = cache(self._answer)

    def expect(self, request: Generate) -> Answer:
        """Return what `request` must get."""
        prepared = self.reader.prepare(request)
        return self.answer(_Hashed(prepared, str(request)))

    def _answer(self, asked: _Hashed) -> Answer:
        prepared, model = asked.prepared, self.loaded.model
        caches = caches_alone(model, self.loaded.profile.kv_quantization)
        body = prepared.tokens[:-1]
        for start in range(0, len(body), _CHUNK):
            model(mx.array([body[start : start + _CHUNK]]), cache=caches)
        row = self.sampler(prepared)
        answer = Answer(self, prepared)
        last = prepared.tokens[-1]
        for _ in range(prepared.max_tokens):
            logits = model(mx.array([[last]]), cache=caches)[:, -1, :]
            last = sample(logits, [row]).read()[0]
            answer.logits.append(logits)
            answer.tokens.append(last)
        return answer

    def sampler(self, prepared: Prepared, answered: Sequence[int] = ()) -> RowSampler:
        """Return the sampler of a request that has got so many tokens."""
        plan: SamplingPlan = prepared.plan
        tokens = [*prepared.tokens, *answered]
        row = RowSampler(plan, self.loaded.facts.vocabulary, tokens)
        row.position = len(answered)
        return row


class _Hashed:
    """A prepared request by what was asked."""

    def __init__(self, prepared: Prepared, text: str) -> None:
        self.prepared, self.text = prepared, text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


@dataclass
class Answer:
    """An answer alone, and the logits of each of its tokens."""

    oracle: Oracle
    prepared: Prepared
    tokens: list[int] = field(default_factory=list)
    logits: list[mx.array] = field(default_factory=list)

    def __repr__(self) -> str:
        return repr(self.text)

    @property
    def text(self) -> str:
        """The answer as its client sees it."""
        return self.oracle.loaded.tokenizer.decode(self.tokens)

    def near_ties(self, got: str) -> int:
        """Return 0 when `got` is this answer or the beginning of it, 1 when it leaves it at a
        near-tie; fails for any other difference."""
        want = self.text
        if want.startswith(got):
            return 0
        pairs = enumerate(zip(want, got, strict=False))
        place = next((n for n, (a, b) in pairs if a != b), min(len(want), len(got)))
        where = f"prompt of {len(self.prepared.tokens)}, from token {place}"
        assert place < min(len(want), len(got)), f"{where}: {got!r} is longer than {want!r}"
        assert self._may_be(place, got[place]), f"{where}: {got!r} in place of {want!r}"
        return 1

    def _may_be(self, place: int, char: str) -> bool:
        """Whether noise as small as a rounding error's makes `char` the choice at that place."""
        tokens, logits = self.tokens[:place], self.logits[place]
        size = _PACKED_NOISE if self.oracle.loaded.profile.kv_quantization else _NOISE
        for seed in range(64):
            noise = mx.random.uniform(-size, size, logits.shape, key=mx.random.key(seed))
            row = self.oracle.sampler(self.prepared, tokens)
            (token,) = sample(logits + noise, [row]).read()
            if self.oracle.loaded.tokenizer.decode([token]) == char:
                return True
        return False


class EngineBench:
    """An engine with a clock of its own, and what came out of it. `ahead` is how many steps are
    begun before one is waited for: 0 as on a CPU, 1 as on a device."""

    def __init__(
        self,
        folder: Path,
        settings: EngineSettings,
        *,
        ahead: int = 1,
        cache_dir: Path | None = None,
    ) -> None:
        self.emissions: list[Emission] = []
        self.now = 1000.0
        self.requests: dict[Key, Generate] = {}
        self._ids = count(1)
        self.engine = Engine(
            folder.parent,
            settings,
            self.emissions.append,
            cache_dir=cache_dir,
            clock=lambda: self.now,
            ahead=ahead,
        )
        self.engine.handle(LoadCommand(-1, str(folder)))
        self.run()

    @property
    def model(self) -> Any:
        """The model that the engine computes with."""
        assert self.engine._serving is not None
        return self.engine._serving._loaded.model

    def submit(
        self,
        messages: Sequence[AnyChatMessage],
        sampling: Sampling,
        *,
        client: int = 1,
        priority: Priority = Priority.INTERACTIVE,
    ) -> Key:
        """Submit a request for an answer of a set length."""
        key = Key(client, next(self._ids))
        request = Generate(
            request_id=key.request_id,
            client_id=f"client {client}",
            conversation_id="v",
            priority=priority,
            messages=list(messages),
            sampling=sampling,
            tools=[],
        )
        self.requests[key] = request
        self.engine.handle(Submit(key, request, self.now))
        return key

    def cancel(self, key: Key) -> None:
        """End a request."""
        self.engine.handle(Cancel(key))

    def squeeze(self, budget: int) -> None:
        """Let the prefix cache shrink to so many bytes, until the next step."""
        assert self.engine._serving is not None
        self.engine._serving._cache.resize(budget)

    def step(self) -> None:
        """One step, which takes 10 ms on the bench's clock."""
        self.now += 0.01
        self.engine.step()

    def run(self) -> None:
        """Step until all is done."""
        for _ in range(_PATIENCE):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError(f"no end after {_PATIENCE} steps")

    def of(self, key: Key) -> list[ToModelClient]:
        """Return what `key`'s client got."""
        return [e.message for e in self.emissions if isinstance(e, ToClient) and e.key == key]

    def text(self, key: Key) -> str:
        """Return the answer of `key` as far as it is."""
        return "".join(m.text for m in self.of(key) if isinstance(m, TextDelta))

    def end(self, key: Key) -> Finished | Failed | None:
        """Return how `key` ended, None when it did not. Fails when it ended twice, or went on."""
        messages = self.of(key)
        ends = [m for m in messages if isinstance(m, Finished | Failed)]
        assert len(ends) <= 1
        assert not ends or messages[-1] is ends[0]
        return ends[0] if ends else None

    def check(self, oracle: Oracle) -> tuple[int, int]:
        """Every request ended as it must, with the answer it has alone. Returns how many tokens
        were compared and how many answers left the reference at a near-tie."""
        compared = ties = 0
        for key, request in self.requests.items():
            end, text, answer = self.end(key), self.text(key), oracle.expect(request)
            ties += answer.near_ties(text)
            compared += len(text)
            if isinstance(end, Finished):
                assert len(text) == end.usage.output_tokens == len(answer.tokens)
                assert end.usage.input_tokens == len(answer.prepared.tokens)
            else:
                assert isinstance(end, Failed), f"{key} has no end"
                assert isinstance(end.error, errors.Cancelled), end.error
        return compared, ties


def turn(*texts: str) -> list[AnyChatMessage]:
    """Return a conversation: a user's message, an answer, and so on."""
    return [
        AssistantMessage(text=text) if place % 2 else UserMessage(text=text)
        for place, text in enumerate(texts)
    ]
