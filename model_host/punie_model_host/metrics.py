"""What the engine counts of itself: since the host started, and over the last seconds with work.

Pure: no clock, no thread of its own. Everything is called in the engine's thread; a snapshot shares
nothing with the counters and may go anywhere.
"""

from bisect import bisect_left
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

from punie_protocol.engine import (
    ClientUsage,
    DraftCounts,
    DraftModelStatus,
    EngineStatus,
    Histogram,
    KVStatus,
)
from punie_protocol.messages.common import Usage

TTFT_BOUNDS: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0),
)
"""Seconds; whole milliseconds, since ``punie status --json`` rounds to them."""
GAP_BOUNDS: Final = (
    *(0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
)
"""Seconds, as `TTFT_BOUNDS`; close together where a person begins to see single tokens."""
BATCH_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 64)
"""Rows."""
WINDOW: Final = 10
"""Seconds with work that the rates are of."""
MAX_CLIENTS: Final = 256
"""Clients that are told apart."""
MAX_NAME: Final = 128
"""Characters of a client's id."""
OTHER: Final = "other"
"""Stands for all clients beyond `MAX_CLIENTS`, those that were active longest ago, and for those
with a longer id than `MAX_NAME`: a report stays a small message, whatever clients send."""


class End(StrEnum):
    """How a request ended."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"
    REJECTED = "rejected"


type Ran = Literal[End.FINISHED, End.CANCELLED, End.FAILED]
"""Ends of a request that was accepted; one that was not ends with `Metrics.rejected`."""


@dataclass(frozen=True, slots=True)
class Gauges:
    """The engine at the moment of a snapshot: `EngineStatus` says what each is. `per_client` has
    the requests that wait and those that do not (prefilling too) of each client with any."""

    queued: int = 0
    prefilling: int = 0
    running: int = 0
    batch: int = 0
    kv: KVStatus = field(default_factory=KVStatus)
    per_client: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    draft_model: DraftModelStatus = field(default_factory=DraftModelStatus)


class Tally:
    """A histogram that grows. `bounds` ascend; a value on a bound counts as below it."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def histogram(self) -> Histogram:
        """Return a copy."""
        return Histogram(bounds=list(self._bounds), counts=self._counts.copy(), sum=self._sum)


@dataclass(slots=True)
class _Work:
    """The steps of one second. The seconds of a step count for both kinds if it did both: what a
    prompt got beside running streams is its rate."""

    second: int
    prefilled: int = 0
    prefill_s: float = 0.0
    decoded: int = 0
    decode_s: float = 0.0


@dataclass(slots=True)
class _Client:
    """What one client's requests took."""

    requests: int = 0
    rejected: int = 0
    usage: Usage = field(default_factory=Usage)

    def absorb(self, other: _Client) -> None:
        self.requests += other.requests
        self.rejected += other.rejected
        self.usage += other.usage


class _Clients:
    """What each client's requests took. The most recently active are kept apart, the others are
    one; a client that comes back from there begins anew. No client is called `OTHER`: who says so
    is counted there."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Client] = OrderedDict()
        self._other: _Client | None = None

    def __getitem__(self, client_id: str) -> _Client:
        if client_id == OTHER or len(client_id) > MAX_NAME:
            return self._others()
        client = self._known.setdefault(client_id, _Client())
        self._known.move_to_end(client_id)
        if len(self._known) > MAX_CLIENTS:
            self._others().absorb(self._known.popitem(last=False)[1])
        return client

    def _others(self) -> _Client:
        if self._other is None:
            self._other = _Client()
        return self._other

    def status(self, now: Mapping[str, tuple[int, int]]) -> list[ClientUsage]:
        """Return each client with what it has under way, the most recently active first, `OTHER`
        at the end."""
        listed = [_usage(id, it, *now.get(id, (0, 0))) for id, it in self._known.items()][::-1]
        rest = [counts for id, counts in now.items() if id not in self._known]
        if self._other is not None or rest:
            queued, running = (sum(column) for column in zip((0, 0), *rest, strict=True))
            listed.append(_usage(OTHER, self._other or _Client(), queued, running))
        return listed


class Metrics:
    """The counters. Seconds are lengths, but for `now`, a clock's that never goes back."""

    def __init__(self) -> None:
        self._steps = 0
        self._ends: Counter[End] = Counter()
        self._rejections: Counter[str] = Counter()
        self._usage = Usage()
        self._drafts: dict[str, DraftCounts] = {}
        self._work: deque[_Work] = deque(maxlen=WINDOW)
        self._ttft, self._gap = Tally(TTFT_BOUNDS), Tally(GAP_BOUNDS)
        self._rows = Tally(BATCH_BOUNDS)
        self._clients = _Clients()

    def arrived(self, client_id: str) -> None:
        """A client asks; said once of each request, also of one that is then refused."""
        self._clients[client_id].requests += 1

    def rejected(self, client_id: str, kind: str) -> None:
        """A request was refused, which is its end; `kind` is the tag of the `WireError`."""
        self._ends[End.REJECTED] += 1
        self._rejections[kind] += 1
        self._clients[client_id].rejected += 1

    def step(self, now: float, *, seconds: float, rows: int, decoded: int, prefilled: int) -> None:
        """A step ended at `now` that took `seconds`: it began a token of each of `rows`, `decoded`
        tokens came out (of the step before, when one is always under way), `prefilled` tokens of
        prompts were computed."""
        self._steps += 1
        if not self._work or self._work[-1].second != int(now):
            self._work.append(_Work(int(now)))
        work = self._work[-1]
        if prefilled:
            work.prefilled += prefilled
            work.prefill_s += seconds
        if decoded:
            work.decoded += decoded
            work.decode_s += seconds
        if rows:
            self._rows.add(rows)

    def first_token(self, client_id: str, seconds: float) -> None:
        """A request got its first token, `seconds` after it arrived."""
        self._ttft.add(seconds)

    def gap(self, seconds: float) -> None:
        """A request got its next token, `seconds` after the one before."""
        self._gap.add(seconds)

    def drafted(self, source: str, counts: DraftCounts) -> None:
        """Of tokens that `source` proposed."""
        before = self._drafts.get(source, DraftCounts())
        self._drafts[source] = DraftCounts(
            proposed=before.proposed + counts.proposed,
            accepted=before.accepted + counts.accepted,
            emitted=before.emitted + counts.emitted,
        )

    def ended(self, client_id: str, how: Ran, usage: Usage) -> None:
        """A request that was accepted ended; `usage` is all it took, however it ended."""
        self._ends[how] += 1
        self._usage += usage
        self._clients[client_id].usage += usage

    def snapshot(self, gauges: Gauges) -> EngineStatus:
        """Return everything as it is now."""
        work, usage = self._work, self._usage
        return EngineStatus(
            queued=gauges.queued,
            prefilling=gauges.prefilling,
            running=gauges.running,
            batch=gauges.batch,
            steps=self._steps,
            requests={str(end): self._ends[end] for end in End},
            rejected=dict(self._rejections),
            input_tokens=usage.input_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.output_tokens,
            cached_share=_ratio(usage.cached_tokens, usage.input_tokens),
            prefill_tok_s=_ratio(sum(w.prefilled for w in work), sum(w.prefill_s for w in work)),
            decode_tok_s=_ratio(sum(w.decoded for w in work), sum(w.decode_s for w in work)),
            ttft_s=self._ttft.histogram(),
            gap_s=self._gap.histogram(),
            batch_rows=self._rows.histogram(),
            kv=gauges.kv,
            drafts=self._drafts.copy(),
            draft_model=gauges.draft_model,
            clients=self._clients.status(gauges.per_client),
        )


def _usage(client_id: str, client: _Client, queued: int, running: int) -> ClientUsage:
    return ClientUsage(
        client_id=client_id,
        queued=queued,
        running=running,
        requests=client.requests,
        rejected=client.rejected,
        input_tokens=client.usage.input_tokens,
        cached_tokens=client.usage.cached_tokens,
        output_tokens=client.usage.output_tokens,
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
