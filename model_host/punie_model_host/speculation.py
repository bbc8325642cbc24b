"""Which tokens the model is shown before it has made them, and whether that pays.

Any row of a batch may be shown a draft: one forward then computes several tokens of it, and as many
are kept as are what the model says itself. A draft is never wrong, only a waste of time: so each
step is decided by what forwards were measured to take, by how often drafts of that kind were right,
in that request above all, and by a ledger that bounds what drafts may have cost altogether.

For the engine's thread. Pure but for the draft model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from punie_model_host import ngram
from punie_model_host.draft_model import DraftModel, Wish
from punie_model_host.engine_messages import Key
from punie_model_host.ledger import Ledger
from punie_model_host.request import Request
from punie_model_host.step_costs import STALE, StepCosts
from punie_protocol.engine import DraftCounts, Speculation

WIDTHS: Final = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
"""Tokens of a row in one forward that are considered: few, so that each is soon measured."""
MOST_PLACES: Final = 64
"""Tokens of all rows in one forward: each has logits of the whole vocabulary, more than once."""
DRAFT_ROWS: Final = 2
"""Rows up to which a draft model is asked: beside more, a forward of one token each is cheap."""
MOST_OF_MODEL: Final = 8
"""Tokens of a row that a draft model is asked for at most."""
_GAIN: Final = 1.02
"""Times as many tokens a second as without drafts, that a step must promise."""
_LOOK_AGAIN: Final = 32
"""Forwards after which one without drafts is due, to see what that takes by now."""
_PRIORS: Final = {2: 0.6, 3: 0.75, 5: 0.85, 9: 0.9}
"""How likely the next token is right after a match of at least so many tokens, at first."""
_MODEL_PRIOR: Final = 0.7
_MODEL_SHARE: Final = 0.25
"""Of a forward of the model, that a token of the draft model takes, at first."""

_CATCH_UP_START: Final = 32.0
_CATCH_UP_MOST: Final = 256.0
"""Forwards' time, as of a `Ledger`, that prompts may take which the draft model has to compute."""

type Drafts = Mapping[Key, Sequence[int]]


class Source(StrEnum):
    """Where a draft comes from."""

    NGRAM = "ngram"
    DRAFT = "draft"


class Hits:
    """How often drafts were right, token by token; the last comparisons count most."""

    _KEEP: Final = 0.97
    _PRIOR_WEIGHT: Final = 4.0
    _SURE: Final = 0.99

    def __init__(self) -> None:
        self._right = self._seen = 0.0

    def add(self, right: int, seen: int) -> None:
        """Of `seen` tokens that were compared, `right` were right."""
        keep = self._KEEP**seen
        self._right, self._seen = self._right * keep + right, self._seen * keep + seen

    def fade(self) -> None:
        """A step went by without a comparison: what is known is a little less sure."""
        self._right, self._seen = self._right * self._KEEP, self._seen * self._KEEP

    def share(self, prior: float) -> float:
        """Return how likely the next one is right, if it were `prior` without this knowledge."""
        right, seen = self._right + prior * self._PRIOR_WEIGHT, self._seen + self._PRIOR_WEIGHT
        return min(self._SURE, right / seen)


@dataclass(slots=True, kw_only=True)
class Candidate:
    """What may be shown to a row: `chance` is how likely each token is right if those before it
    were. `hits` are to learn what became of it. `shown` of the tokens are in the forward."""

    request: Request
    source: Source
    tokens: Sequence[int]
    chance: float
    hits: Sequence[Hits]
    shown: int = 0

    def expected(self, width: int) -> float:
        """Return how many tokens come out of a forward of that width."""
        count = min(width - 1, len(self.tokens))
        return (1 - self.chance ** (count + 1)) / (1 - self.chance)

    def judge(self, taken: Sequence[int]) -> None:
        """Learn from what the model said, also by a draft that it was not shown."""
        pairs = list(zip(self.tokens, taken, strict=False))
        right = next((n for n, (ours, its) in enumerate(pairs) if ours != its), len(pairs))
        for hits in self.hits:
            hits.add(right, min(right + 1, len(pairs)))


@dataclass(frozen=True, slots=True)
class _Offer:
    """Drafts for a forward of `width`, by the tokens a second that they promise."""

    rate: float
    width: int = 1
    candidates: Sequence[Candidate] = ()


class Speculator:
    """Proposes drafts for the rows of a forward, and learns from what became of them. `most` bounds
    the tokens of a draft. `clock` says how long the draft model takes."""

    def __init__(
        self,
        mode: Speculation,
        most: int | None,
        draft_model: DraftModel | None,
        clock: Callable[[], float],
    ) -> None:
        self._ngrams = mode in (Speculation.NGRAM, Speculation.AUTO)
        self._model = draft_model if mode in (Speculation.DRAFT, Speculation.AUTO) else None
        self._most = min(most or WIDTHS[-1], WIDTHS[-1] - 1)
        self._clock = clock
        self._costs = StepCosts()
        self._ledgers = {source: Ledger() for source in Source}
        self._catching_up = Ledger(_CATCH_UP_START, _CATCH_UP_MOST)
        self._caught_up: set[Key] = set()
        self._general = {kind: Hits() for kind in (*_PRIORS, 0)}
        self._own: dict[tuple[Key, Source], Hits] = {}
        self._candidates: dict[Key, Candidate] = {}
        self._drafting = 0.0
        self._drafting_each: float | None = None

    @property
    def is_on(self) -> bool:
        """Whether there may be drafts at all."""
        return self._ngrams or self._model is not None

    def forget(self, key: Key) -> None:
        """A request is over."""
        for source in Source:
            self._own.pop((key, source), None)
        self._caught_up.discard(key)
        if self._model is not None:
            self._model.forget(key)

    # before a forward

    def promises(self, requests: Sequence[Request], *, alone: bool = True) -> bool:
        """Return whether drafts would pay, as far as their tokens are known; see `propose`."""
        return bool(self._best(requests, alone=alone).candidates)

    def propose(self, requests: Sequence[Request], *, alone: bool = True) -> Drafts:
        """Return what to show the rows of a forward of `requests`, empty when it would not pay.
        Beside other work, not `alone`, nothing can be learned of what a forward takes: then only
        shapes that were measured are used."""
        return self._shown(self._best(requests, alone=alone))

    def _best(self, requests: Sequence[Request], *, alone: bool) -> _Offer:
        rows, matches = len(requests), list(self._matches(requests))
        self._candidates = {one.request.key: one for one in matches}
        plain = self._costs.plain(rows, _LOOK_AGAIN if alone else STALE) if rows else None
        if plain is None:
            return _Offer(0.0)
        offers = [_Offer(_GAIN * rows / plain)]
        if matches and self._ledgers[Source.NGRAM].allows:
            offers += self._offers(matches, rows, 0.0, alone=alone)
        if self._asks_model(rows):
            each = self._drafting_each or _MODEL_SHARE * plain
            offers += self._offers(self._hopes(requests), rows, each, alone=alone)
        return max(offers, key=lambda offer: offer.rate)

    def _matches(self, requests: Sequence[Request]) -> Iterator[Candidate]:
        """Yield what the requests' own tokens say."""
        for request in requests if self._ngrams else ():
            tokens = request.history.tokens
            start, length = ngram.find(tokens)
            kind = max((least for least in _PRIORS if least <= length), default=0)
            count = min(self._most, request.left - 1)
            if kind and count > 0:
                drafts = np.resize(tokens[start:], count).tolist()  # it may go on in itself
                general = self._general[kind]
                prior = general.share(_PRIORS[kind])
                yield self._candidate(request, Source.NGRAM, drafts, general, prior)

    def _hopes(self, requests: Sequence[Request]) -> list[Candidate]:
        """Return what the draft model may say, or the own tokens where they are more certain."""
        general = self._general[0]
        hopes: list[Candidate] = []
        for request in requests:
            may = request.key in self._caught_up or self._catching_up.allows
            count = max(0, min(self._most, MOST_OF_MODEL, request.left - 1)) if may else 0
            prior = general.share(_MODEL_PRIOR)
            hope = self._candidate(request, Source.DRAFT, [-1] * count, general, prior)
            match = self._candidates.get(request.key)
            hopes.append(match if match and match.chance >= hope.chance else hope)
        return hopes

    def _candidate(
        self, request: Request, source: Source, tokens: list[int], general: Hits, prior: float
    ) -> Candidate:
        own = self._own.setdefault((request.key, source), Hits())
        return Candidate(
            request=request,
            source=source,
            tokens=tokens,
            chance=own.share(prior),
            hits=(general, own),
        )

    def _asks_model(self, rows: int) -> bool:
        return self._model is not None and rows <= DRAFT_ROWS and self._ledgers[Source.DRAFT].allows

    def _offers(
        self, some: Sequence[Candidate], rows: int, each: float, *, alone: bool
    ) -> Iterator[_Offer]:
        """Yield what is promised by each width; `each` token of the draft model takes so long."""
        longest = max(len(one.tokens) for one in some)
        asked = max((len(one.tokens) for one in some if one.source is Source.DRAFT), default=0)
        widest = min(longest + 1, self._costs.widest(rows, guess=alone), MOST_PLACES // rows)
        for width in WIDTHS:
            if width > widest:
                return
            tokens = rows - len(some) + sum(one.expected(width) for one in some)
            seconds = self._costs.seconds(rows, width) + each * min(width - 1, asked)
            yield _Offer(tokens / seconds, width, some)

    def _shown(self, offer: _Offer) -> Drafts:
        """Return the drafts of an offer; the draft model is asked for its own now."""
        self._ask([c for c in offer.candidates if c.source is Source.DRAFT], offer.width - 1)
        for one in offer.candidates:
            one.shown = min(offer.width - 1, len(one.tokens))
            self._candidates[one.request.key] = one
        return {c.request.key: c.tokens[: c.shown] for c in offer.candidates if c.shown}

    def _ask(self, hopes: Sequence[Candidate], count: int) -> None:
        if not hopes:
            self._general[0].fade()
            return
        assert self._model is not None
        began = self._clock()
        drafts = self._model.propose([_wish(hope, min(count, len(hope.tokens))) for hope in hopes])
        self._drafting = self._clock() - began
        for hope in hopes:
            hope.tokens = drafts.get(hope.request.key, [])
        self._caught_up |= {hope.request.key for hope in hopes if hope.tokens}
        if longest := max(len(hope.tokens) for hope in hopes):
            self._timed((self._drafting - self._model.catching_up) / longest)

    def _timed(self, each: float) -> None:
        before = self._drafting_each
        self._drafting_each = each if before is None else before + 0.25 * (each - before)

    # after it

    def stepped(
        self, seconds: float, taken: Mapping[Key, Sequence[int]], *, alone: bool
    ) -> dict[Source, DraftCounts]:
        """A step brought `taken`, some of each row; in its `seconds` nothing but the forward of
        those rows was done if `alone`. Return what became of drafts that were shown."""
        self._costs.tick()
        candidates, self._candidates = self._candidates, {}
        drafting, self._drafting = self._drafting, 0.0
        for key, tokens in taken.items():
            if (candidate := candidates.get(key)) is not None:
                candidate.judge(tokens)
        shown = [one for key, one in candidates.items() if one.shown and key in taken]
        width = 1 + max((one.shown for one in shown), default=0)
        if taken and alone:
            self._costs.add(len(taken), width, seconds - drafting)
        plain = self._costs.plain(len(taken), STALE)
        if plain is not None:
            self._book(seconds, plain)
            self._book_drafts(taken, shown, width, plain, drafting)
        return {
            source: _counts([one for one in shown if one.source is source], taken)
            for source in {one.source for one in shown}
        }

    def _book(self, seconds: float, plain: float) -> None:
        for ledger in (*self._ledgers.values(), self._catching_up):
            ledger.worked(seconds, plain)

    def _book_drafts(
        self,
        taken: Mapping[Key, Sequence[int]],
        shown: Sequence[Candidate],
        width: int,
        plain: float,
        drafting: float,
    ) -> None:
        """Book what a forward with drafts won over as many tokens without, by what such forwards
        take: one may have been slow for reasons of its own."""
        asked = any(one.source is Source.DRAFT for one in shown)
        late = self._model.catching_up if self._model is not None and drafting else 0.0
        won = -(drafting - late)
        if shown:
            each = sum(map(len, taken.values())) / len(taken)
            won += plain * each - self._costs.seconds(len(taken), width)
        if shown or drafting:
            self._ledgers[Source.DRAFT if asked or drafting else Source.NGRAM].book(won, plain)
        if asked or drafting:
            self._catching_up.book(won - late, plain)


def _wish(hope: Candidate, count: int) -> Wish:
    request = hope.request
    return Wish(key=request.key, tokens=request.history.tokens, count=count, row=request.sampler)


def _counts(shown: Sequence[Candidate], taken: Mapping[Key, Sequence[int]]) -> DraftCounts:
    emitted = [len(taken.get(one.request.key, ())) for one in shown]
    return DraftCounts(
        proposed=sum(one.shown for one in shown),
        accepted=sum(max(0, count - 1) for count in emitted),
        emitted=sum(emitted),
    )
