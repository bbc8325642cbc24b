"""The model host's engine for a person. Pure."""

from collections.abc import Iterator
from typing import Final

from punie_protocol.engine import EngineStatus, Histogram, quantile
from punie_supervisor.cli.tables import size

_STATES: Final = ("running", "prefilling", "queued")
_BAD_ENDS: Final = ("cancelled", "failed", "rejected")


def lines(engine: EngineStatus | None) -> Iterator[str]:
    """Yield what it does and did; nothing while it has done nothing. Each fits a terminal beside a
    heading."""
    if engine is None or not has_worked(engine):
        return
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
