"""A speculator without a policy, for the engine's tests: every step rows are shown what a test
likes, and what came of it is counted beside the engine's own counters."""

import random
from collections.abc import Callable, Mapping, Sequence

from punie_model_host.engine import Engine
from punie_model_host.engine_messages import Key
from punie_model_host.request import Request
from punie_model_host.serving import Serving
from punie_model_host.speculation import Candidate, Drafts, Hits, Source, Speculator
from punie_protocol.engine import DraftCounts, Speculation

type MakeDraft = Callable[[Request, int], list[int]]
"""Returns at most so many tokens for a request."""


class Daring(Speculator):
    """Shows each row what `make` says, `most` tokens at most, now and then none to anybody."""

    def __init__(self, make: MakeDraft, seed: int = 0, most: int = 31) -> None:
        super().__init__(Speculation.NGRAM, None, None, lambda: 0.0)
        self._make = make
        self._rng = random.Random(seed)
        self._widest = most

    def promises(self, requests: Sequence[Request], *, alone: bool = True) -> bool:
        self._candidates = {}
        return self._rng.random() < 0.7

    def propose(self, requests: Sequence[Request], *, alone: bool = True) -> Drafts:
        most = self._rng.choice([0, 1, 2, 5, self._widest])
        drafts: dict[Key, list[int]] = {}
        self._candidates = {}
        for request in requests:
            count = max(0, min(most, request.left - 1, self._rng.choice([0, most, most])))
            if draft := self._make(request, count):
                drafts[request.key] = draft
                self._candidates[request.key] = Candidate(
                    request=request,
                    source=Source.DRAFT,
                    tokens=draft,
                    chance=0.5,
                    hits=(Hits(),),
                    shown=len(draft),
                )
        return drafts


class Counted:
    """Counts what the batch of `engine` is shown and what it says. `faults` are what is wrong with
    it: raised there it would be a fault of the forward's, which the engine outlives."""

    def __init__(self, engine: Engine) -> None:
        self.proposed = self.emitted = self.shown = self.widest = 0
        self.faults: list[str] = []
        self._engine = engine
        self._verify = serving_of(engine).batch.verify
        serving_of(engine).batch.verify = self._count

    @property
    def counts(self) -> DraftCounts:
        """What the engine must have counted."""
        accepted = self.emitted - self.shown
        return DraftCounts(proposed=self.proposed, accepted=accepted, emitted=self.emitted)

    def _count(self, drafts: Mapping[Key, Sequence[int]]) -> dict[Key, list[int]]:
        self._look(drafts)
        taken = self._verify(drafts)
        for key in drafts.keys() & taken.keys():
            self.proposed += len(drafts[key])
            self.emitted += len(taken[key])
            self.shown += 1
        self.widest = max(self.widest, *map(len, drafts.values()))
        return taken

    def _look(self, drafts: Mapping[Key, Sequence[int]]) -> None:
        for key in serving_of(self._engine).batch.keys:
            request, draft = self._engine._requests[key], drafts.get(key, ())
            had = request.sampler.position
            if len(request.generated) != had or request.dispatched != had:
                self.faults.append(f"{had} tokens were sampled, {request.dispatched} dispatched")
            if had + len(draft) >= request.max_tokens:
                self.faults.append(f"{len(draft)} drafts after {had} of {request.max_tokens}")
        if not all(drafts.values()):
            self.faults.append("an empty draft was proposed")


def serving_of(engine: Engine) -> Serving:
    """Return what belongs to the engine's model."""
    assert engine._serving is not None
    return engine._serving
