"""The model host's engine for a person. Pure."""

from collections.abc import Iterator, Mapping
from typing import Final

from punie_protocol.engine import (
    DraftCounts,
    DraftModelStatus,
    EngineSettings,
    EngineStatus,
    Histogram,
    quantile,
)
from punie_supervisor.cli.output import printable
from punie_supervisor.cli.tables import size

_STATES: Final = ("running", "prefilling", "queued")
_SOURCES: Final = {"ngram": "n-gram", "draft": "draft model's"}
_BAD_ENDS: Final = ("cancelled", "failed", "rejected")


def lines(engine: EngineStatus | None) -> Iterator[str]:
    """Yield what it does and did; of its work nothing while it has done nothing. Each fits a
    terminal beside a heading, but for a fault of its draft model."""
    if engine is None:
        return
    if has_worked(engine):
        yield from _work(engine)
    yield from _draft_model(engine.draft_model)
    yield from drafts(engine.drafts)


def drafts(counts: Mapping[str, DraftCounts]) -> Iterator[str]:
    """Yield for each source that proposed anything how much of it the model chose too, and how many
    tokens a forward with a draft brought."""
    for source, found in counts.items():
        if found.proposed:
            share = f"{found.accepted / found.proposed:.0%}"
            forwards = max(1, found.emitted - found.accepted)
            yield (
                f"{_SOURCES.get(source, source)} drafts: {found.accepted} of {found.proposed} "
                f"accepted ({share}), {found.emitted / forwards:.1f} tokens a step"
            )


def drafting(settings: EngineSettings) -> str:
    """Return the settings that speculation has."""
    parts = [f"speculation {settings.speculation}"]
    if settings.draft_model is not None:
        parts.append(f"draft model {printable(settings.draft_model)}")
    if settings.num_draft_tokens is not None:
        parts.append(f"at most {settings.num_draft_tokens} drafted tokens")
    return ", ".join(parts)


def _draft_model(found: DraftModelStatus) -> Iterator[str]:
    if found.error:
        yield f"no draft model: {printable(found.error)}"
    elif found.name:
        yield f"draft model {printable(found.name)}"


def _work(engine: EngineStatus) -> Iterator[str]:
    yield _now(engine)
    yield requests(engine)
    yield ", ".join([*_rates(engine), cached(engine)])
    if waits := [*_wait("first token", engine.ttft_s), *_wait("between tokens", engine.gap_s)]:
        yield ", ".join(waits)
    yield _memory(engine)


def has_worked(engine: EngineStatus) -> bool:
    """Whether there was any request."""
    return bool(engine.steps or _ended(engine) or any(_active(engine).values()))


def requests(engine: EngineStatus) -> str:
    """Return how many requests ended, and how many of them not well."""
    ended = _ended(engine)
    bad = [f"{count} {end}" for end in _BAD_ENDS if (count := engine.requests.get(end, 0))]
    text = "1 request" if ended == 1 else f"{ended} requests"
    return f"{text} ended" + (f" ({', '.join(bad)})" if bad else "")


def cached(engine: EngineStatus) -> str:
    """Return the share of the input that was cached."""
    return f"{engine.cached_share:.0%} of input cached"


def _active(engine: EngineStatus) -> dict[str, int]:
    counts = (engine.running, engine.prefilling, engine.queued)
    return dict(zip(_STATES, counts, strict=True))


def _ended(engine: EngineStatus) -> int:
    return sum(engine.requests.values())


def _now(engine: EngineStatus) -> str:
    active = [f"{count} {state}" for state, count in _active(engine).items() if count]
    if active and engine.batch:
        active.append(f"batch {engine.batch}")
    clients = "1 client" if len(engine.clients) == 1 else f"{len(engine.clients)} clients"
    return ", ".join([*(active or ["idle"]), clients])


def _rates(engine: EngineStatus) -> Iterator[str]:
    if engine.prefill_tok_s or engine.decode_tok_s:
        yield f"prefill {_number(engine.prefill_tok_s)} tokens/s"
        yield f"decode {_number(engine.decode_tok_s)} tokens/s lately"


def _wait(what: str, found: Histogram | None) -> Iterator[str]:
    if found is not None and any(found.counts):
        middle, most = (_seconds(quantile(found, q)) for q in (0.5, 0.95))
        yield f"{what} {middle} (p95 {most})"


def _memory(engine: EngineStatus) -> str:
    kv = engine.kv
    budget = f" of {size(kv.budget)}" if kv.budget else ""
    disk = f", {size(kv.disk)} on disk" if kv.disk else ""
    held = size(kv.running + kv.reserved + kv.cache)
    return f"keys and values {held}{budget}{disk}"


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{_number(value * 1000)} ms"
