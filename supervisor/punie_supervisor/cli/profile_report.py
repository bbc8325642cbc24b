"""What ``punie bench profile`` measured, as structs and as a table. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from statistics import median
from typing import Final

import msgspec

from punie_protocol.engine import DraftCounts, EngineSettings
from punie_protocol.errors import WireError
from punie_protocol.messages.common import Timings, Usage
from punie_supervisor.cli.engine_text import drafting, drafts
from punie_supervisor.cli.output import printable
from punie_supervisor.cli.perf import shares_line
from punie_supervisor.cli.tables import table


class Kind(StrEnum):
    """How a query is to be answered."""

    DIRECT = "direct"
    TOOLS = "tools"


class Query(msgspec.Struct, frozen=True):
    """One of the questions."""

    name: str
    kind: Kind
    text: str


QUERIES: Final = (
    Query("concept", Kind.DIRECT, "What is dependency injection?"),
    Query("comparison", Kind.DIRECT, "What is the difference between an ORM and raw SQL?"),
    Query("count", Kind.TOOLS, "How many Python files are there?"),
    Query("subclasses", Kind.TOOLS, "Find all classes that inherit from ValueError"),
    Query("grep", Kind.TOOLS, "grep TODO"),
)
"""The same in every project, and such that the embedded model can answer them."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One turn. `run` counts from 1; `failure` is empty when it ended as it should; `tools` are the
    names of the calls, `decode_tok_s` tokens a second while it decoded."""

    run: int
    failure: str
    model: str = ""
    timings_ms: Timings = Timings()
    usage: Usage = Usage()
    steps: int = 0
    tools: list[str] = []
    decode_tok_s: float = 0.0
    cached_share: float = 0.0
    answer: str = ""
    error: WireError | None = None


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """All turns of one query; `first` is the first turn's timings, `warm` the medians of the others
    (of all, if there is one run). Turns that failed are in `samples` alone."""

    name: str
    kind: Kind
    text: str
    first: Timings | None
    warm: Timings | None
    samples: list[Sample]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """``punie bench profile --json``. `drafts` are counted by source over all turns, those of other
    clients that asked meanwhile too."""

    version: str
    hardware: str
    model: str
    settings: EngineSettings | None
    project: str
    runs: int
    failed: int
    queries: list[Measured]
    drafts: dict[str, DraftCounts]


def measured(query: Query, samples: Sequence[Sample]) -> Measured:
    """Return what its samples come to."""
    good = [sample for sample in samples if not sample.failure]
    later = [sample for sample in good if sample.run > 1] or good
    return Measured(
        name=query.name,
        kind=query.kind,
        text=query.text,
        first=next((sample.timings_ms for sample in good if sample.run == 1), None),
        warm=medians([sample.timings_ms for sample in later]) if later else None,
        samples=[*samples],
    )


def medians(timings: Sequence[Timings]) -> Timings:
    """Return the median of each part; they need not add up."""
    names = Timings.__struct_fields__
    return Timings(**{name: median(getattr(one, name) for one in timings) for name in names})


def total(timings: Sequence[Timings]) -> Timings:
    """Return the sum of each part."""
    names = Timings.__struct_fields__
    return Timings(**{name: sum(getattr(one, name) for one in timings) for name in names})


def between(
    before: Mapping[str, DraftCounts], after: Mapping[str, DraftCounts]
) -> dict[str, DraftCounts]:
    """Return what was drafted between two reports of one engine, by source; sources that proposed
    nothing are left out."""
    found: dict[str, DraftCounts] = {}
    for source, now in after.items():
        then = before.get(source, DraftCounts())
        if now.proposed > then.proposed:
            found[source] = DraftCounts(
                proposed=now.proposed - then.proposed,
                accepted=now.accepted - then.accepted,
                emitted=now.emitted - then.emitted,
            )
    return found


def render(profile: Profile) -> Iterator[str]:
    """Yield the report for a person: a line for the first turn and one for the others of each
    query, the failures, where the time went."""
    how = f", {drafting(profile.settings)}" if profile.settings else ""
    yield printable(profile.hardware)
    yield f"model {printable(profile.model)}{how}, in {printable(profile.project)}"
    yield "times in milliseconds; warm: medians of the runs after the first"
    rows = [row for query in profile.queries for row in _rows(query)]
    yield from table(_HEAD, rows, words={0, 1, 2})
    for query in profile.queries:
        for sample in query.samples:
            if sample.failure:
                yield f"failed: {query.name}, run {sample.run}: {printable(sample.failure)}"
    if warm := [query.warm for query in profile.queries if query.warm is not None]:
        yield ""
        yield shares_line(total(warm))
    yield from drafts(profile.drafts)


_HEAD: Final = (
    "query", "answer", "run", "total", "queue", "ttft", "prefill", "decode", "tools", "asked",
    "framework", "steps", "calls", "cached", "tok/s",
)  # fmt: skip


def _rows(query: Measured) -> Iterator[tuple[str, ...]]:
    good = [sample for sample in query.samples if not sample.failure]
    later = [sample for sample in good if sample.run > 1]
    if query.first is not None:
        first = [sample for sample in good if sample.run == 1]
        yield (query.name, query.kind, "first", *_cells(query.first, first))
    if later and query.warm is not None:
        yield (query.name, query.kind, "warm", *_cells(query.warm, later))


def _cells(t: Timings, samples: Sequence[Sample]) -> Iterator[str]:
    for value in (
        t.total, t.queue, t.ttft, t.prefill, t.decode, t.tools, t.permission_wait, t.framework,
    ):  # fmt: skip
        yield _number(value)
    yield f"{median(sample.steps for sample in samples):g}"
    yield f"{median(len(sample.tools) for sample in samples):g}"
    yield f"{median(sample.cached_share for sample in samples):.0%}"
    yield _number(median(sample.decode_tok_s for sample in samples))


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
