"""How the calls of an actor are measured, the same for every contender.

The standard library alone: the peers run in an environment of their own.
"""

import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

PAYLOAD = bytes(range(100))
"""What is sent, and comes back."""
WARM_UP = 200
"""Calls before those that count."""


class Amount(NamedTuple):
    """What one round measures: `calls` one after the other, then `calls` in batches of which all
    calls are under way at once."""

    calls: int
    batch: int


class Samples(NamedTuple):
    """Microseconds of each call, one after the other; calls a second of each batch."""

    round_trip_us: list[float]
    calls_per_s: list[float]


class Echo:
    """The actor."""

    def echo(self, payload: bytes) -> bytes:
        """Return what it was sent."""
        return payload


def blocking(amount: Amount, call: Callable[[], object], batch: Callable[[int], object]) -> Samples:
    """Measure calls that block; `batch` makes so many at once."""
    for _ in range(WARM_UP):
        call()
    batch(amount.batch)
    trips: list[float] = []
    for _ in range(amount.calls):
        start = time.perf_counter()
        call()
        trips.append((time.perf_counter() - start) * 1e6)
    rates: list[float] = []
    for _ in range(0, amount.calls, amount.batch):
        start = time.perf_counter()
        batch(amount.batch)
        rates.append(amount.batch / (time.perf_counter() - start))
    return Samples(trips, rates)


async def awaiting(
    amount: Amount,
    call: Callable[[], Awaitable[object]],
    batch: Callable[[int], Awaitable[object]],
) -> Samples:
    """Measure calls that are awaited; `batch` makes so many at once."""
    for _ in range(WARM_UP):
        await call()
    await batch(amount.batch)
    trips: list[float] = []
    for _ in range(amount.calls):
        start = time.perf_counter()
        await call()
        trips.append((time.perf_counter() - start) * 1e6)
    rates: list[float] = []
    for _ in range(0, amount.calls, amount.batch):
        start = time.perf_counter()
        await batch(amount.batch)
        rates.append(amount.batch / (time.perf_counter() - start))
    return Samples(trips, rates)


def arguments() -> tuple[str, Amount]:
    """Parse a contender's command line: ``NAME CALLS BATCH``."""
    name, calls, batch = sys.argv[1:]
    return name, Amount(int(calls), int(batch))


def tell(samples: Samples, version: str) -> None:
    """Print the samples as the last line of this process."""
    rounded = {
        name: [round(value, 1) for value in values] for name, values in samples._asdict().items()
    }
    sys.stdout.write("\n" + json.dumps(rounded | {"version": version}) + "\n")
