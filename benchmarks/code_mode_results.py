"""How a tool's result crosses into the Code Mode sandbox: named tuples against class instances.

``python -m benchmarks.code_mode_results --json``. Both sides by side in one Monty process: a
program asks for a search result of `MATCHES` lines and reads an attribute of each.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
import pydantic_monty as monty

from benchmarks import common
from punie_protocol.tool_types import Result
from punie_protocol.tools_files import Match, SearchResult
from punie_workers.code_views import view

MATCHES: Final = 200
CALLS: Final = 20
PROGRAM: Final = f"""\
total = 0
for _ in range({CALLS}):
    for match in search("x").matches:
        total += match.line
total
"""
FOUND: Final = SearchResult(
    match_count=MATCHES,
    truncated=False,
    matches=[Match(file=f"src/m{n}.py", line=n, text=f"value_{n} = {n}") for n in range(MATCHES)],
)


class _Instance(monty.ClassInstance):
    def convert_value(self, /, name: str, value: Any) -> Any:
        return instance(value)


def instance(value: Any) -> Any:
    """Return a result as an instance with all its attributes."""
    match value:
        case Result():
            return _Instance(value, eager_attrs=[f.name for f in msgspec.structs.fields(value)])
        case list():
            return [instance(item) for item in value]
        case _:
            return value


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__, samples=15)
    raw = asyncio.run(measure(options.samples))
    medians = {f"{name}_ms_per_call": common.median(values) for name, values in raw.items()}
    ratio = medians["named_tuple_ms_per_call"] / medians["class_instance_ms_per_call"]
    result = medians | {"ratio": round(ratio, 3), "matches": MATCHES, "samples": raw}
    common.finish(result, as_json=options.json)


async def measure(samples: int) -> dict[str, list[float]]:
    """Return milliseconds per call, both ways in turn."""
    ways: dict[str, Callable[[Any], Any]] = {"named_tuple": view, "class_instance": instance}
    raw: dict[str, list[float]] = {name: [] for name in ways}
    async with monty.AsyncMonty(min_processes=1, max_processes=2) as pool:
        for _ in range(samples):
            for name, convert in ways.items():
                raw[name].append(await run(pool, convert))
    return raw


async def run(pool: monty.AsyncMonty, convert: Callable[[Any], Any]) -> float:
    """Return the milliseconds per call of one program."""
    async with pool.checkout() as session:
        started = time.perf_counter()
        step: Any = await session.feed_start(PROGRAM)
        while not isinstance(step, monty.MontyComplete):
            step = await step.resume({"return_value": convert(FOUND)})
        elapsed = time.perf_counter() - started
    if step.output != CALLS * sum(range(MATCHES)):
        raise RuntimeError(f"the program computed {step.output}")
    return elapsed / CALLS * 1000


if __name__ == "__main__":
    main()
