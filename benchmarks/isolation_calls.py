"""Calls of a project half beside direct ones, and what a busy one does to its host's loop.

In this process, with the host half's own `Halves`: what a call costs over the same entry code
called directly; how late the loop is while four tools burn CPU in four interpreters, and in four
threads; whether two projects index at once.
"""

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks import common
from punie_protocol.errors import PunieError
from punie_protocol.interp_codec import decode_reply, encode_request
from punie_protocol.tools_code import Symbols
from punie_protocol.tools_files import ReadFileResult
from punie_workers.halves import Abandoned, Halves
from punie_workers.interp.entry import Entry
from punie_workers.symbol_tools import SymbolTools

CALLS: Final = 2000
BURNING: Final = 4
PROBE_EVERY: Final = 0.002
INDEXED: Final = ("asyncio", "email", "unittest", "http", "json", "logging")
"""Packages of the standard library in each of the two projects that are indexed."""
BUSY: Final = 0.05
"""Share of the time that one project waits for a core on a machine that others keep busy."""
_STDLIB: Final = Path(os.__file__).parent
_READ: Final = encode_request("read_file", {"path": "lines.py", "start_line": 1, "max_lines": 100})
_PROBE: Final = """
import os, struct, sys, time
while True:
    time.sleep(float(sys.argv[1]))
    os.write(1, struct.pack("d", time.monotonic()))
"""


def measure(samples: int) -> dict[str, Any]:
    """Return every figure of this module; raw samples in ``samples``."""
    with tempfile.TemporaryDirectory(prefix="punie-bench-") as folder:
        home = Path(os.path.realpath(folder))
        calls = asyncio.run(tool_calls(_project(home / "calls")))
        roots = [_project(home / f"burning{number}") for number in range(BURNING)]
        lags = asyncio.run(loop_lags(roots, samples))
        speeds = [asyncio.run(indexing(home / f"index{n}")) for n in range(max(3, samples // 4))]
    return _call_figures(calls) | _lag_figures(lags) | _speed_figures(speeds)


@asynccontextmanager
async def half(root: Path) -> AsyncGenerator[Halves]:
    """Run a project's half while the context is open."""
    halves = Halves(str(root), Abandoned(lambda: None))
    await halves.start()
    try:
        yield halves
    finally:
        halves.stop()


# calls


async def tool_calls(root: Path) -> dict[str, list[float]]:
    """Return microseconds of reading a hundred lines, directly and through the half, in turns."""
    entry = Entry()
    entry.handle(encode_request("open", {"root": str(root)}))
    raw: dict[str, list[float]] = {"direct": [], "interpreter": []}
    async with half(root) as halves:
        for _ in range(CALLS):
            start = time.perf_counter()
            decode_reply(entry.handle(_READ), ReadFileResult)
            raw["direct"].append((time.perf_counter() - start) * 1e6)
            start = time.perf_counter()
            await halves.call(_READ, ReadFileResult)
            raw["interpreter"].append((time.perf_counter() - start) * 1e6)
    entry.close()
    return raw


def _call_figures(raw: dict[str, list[float]]) -> dict[str, Any]:
    direct, interpreter = (common.median(raw[one]) for one in ("direct", "interpreter"))
    return {
        "tool_call_direct_us": direct,
        "tool_call_interpreter_us": interpreter,
        "tool_call_interpreter_p95_us": common.percentile(raw["interpreter"], 95),
        "tool_call_added_us": round(interpreter - direct, 2),
        "samples_tool_calls_us": {name: common.rounded(values) for name, values in raw.items()},
    }


# the loop


class Burner:
    """Keeps a tool busy in the half of one project: an edit whose text stands nowhere, for which
    the nearest is looked for, some 70 ms each."""

    def __init__(self, root: Path) -> None:
        text = (_STDLIB / "asyncio" / "base_events.py").read_text()
        (root / "large.py").write_text(text * 5)
        lines = text.split("\n")[400:460]
        old = "\n".join(f"{line} # nowhere" for line in lines)
        arguments = {"path": "large.py", "old_text": old, "new_text": "", "content_hash": ""}
        self.request = encode_request("edits_plan", {"tool": "edit_file", "arguments": arguments})


async def loop_lags(roots: Sequence[Path], samples: int) -> dict[str, list[float]]:
    """Return milliseconds from another process's write to this loop's reading of it: idle, with
    a tool busy in an interpreter a project, and with the same tool in as many threads."""
    burners = [Burner(root) for root in roots]
    lags: dict[str, list[float]] = {"idle": [], "interpreters": [], "threads": []}
    async with AsyncExitStack() as stack:
        halves = [await stack.enter_async_context(half(root)) for root in roots]
        for _ in range(max(2, samples // 5)):
            lags["idle"] += await _probed(_nothing)
            lags["interpreters"] += await _probed(lambda: _in_halves(halves, burners))
            lags["threads"] += await _probed(lambda: _in_threads(roots, burners))
    return lags


async def _nothing() -> None:
    await asyncio.Event().wait()


async def _in_halves(halves: Sequence[Halves], burners: Sequence[Burner]) -> None:
    async def burn(one: Halves, burner: Burner) -> None:
        while True:
            with suppress(PunieError):  # it stands nowhere, as it should
                await one.call(burner.request, dict)

    async with asyncio.TaskGroup() as group:
        for one, burner in zip(halves, burners, strict=True):
            group.create_task(burn(one, burner))


async def _in_threads(roots: Sequence[Path], burners: Sequence[Burner]) -> None:
    over = threading.Event()

    def burn(root: Path, burner: Burner) -> None:
        entry = Entry()
        entry.handle(encode_request("open", {"root": str(root)}))
        while not over.is_set():
            entry.handle(burner.request)
        entry.close()

    pairs = zip(roots, burners, strict=True)
    threads = [threading.Thread(target=burn, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    try:
        await asyncio.Event().wait()
    finally:
        over.set()
        for thread in threads:
            thread.join()


async def _probed(work: Callable[[], Awaitable[None]], seconds: float = 1.0) -> list[float]:
    """Return how late the loop was for each probe while `work` ran."""
    loop = asyncio.get_running_loop()
    lags: list[float] = []
    probe = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROBE, str(PROBE_EVERY)), stdout=subprocess.PIPE
    )
    assert probe.stdout is not None
    task = asyncio.ensure_future(work())
    try:
        await asyncio.sleep(0.2)  # it is well under way
        ends = loop.time() + seconds
        await probe.stdout.read(65536)
        while loop.time() < ends:
            data = await probe.stdout.read(8)
            if len(data) == 8:
                lags.append((time.monotonic() - float(memoryview(data).cast("d")[0])) * 1000)
    finally:
        task.cancel()
        probe.kill()
        await probe.wait()
        await asyncio.wait([task])
    return lags


def _lag_figures(lags: dict[str, list[float]]) -> dict[str, Any]:
    p50 = {name: statistics.median(values) for name, values in lags.items()}
    return {
        "loop_lag_p50_ms": round(p50["interpreters"], 3),
        "loop_lag_p95_ms": common.percentile(lags["interpreters"], 95),
        "loop_lag_idle_p50_ms": round(p50["idle"], 3),
        "loop_lag_ratio": round(p50["interpreters"] / p50["idle"], 2),
        "loop_lag_threads_p50_ms": round(p50["threads"], 3),
        "samples_loop_lag_ms": {name: common.rounded(values) for name, values in lags.items()},
    }


# two at once


class Indexing(NamedTuple):
    """How long two projects took, one after the other and at once; `wall` in seconds, `own` less
    what their threads waited for a core that somebody else had."""

    apart_wall: float
    apart_own: float
    together_wall: float
    together_own: float


async def indexing(folder: Path) -> Indexing:
    """Index two projects, apart and at once, each time in fresh halves."""
    roots = [folder / "one", folder / "two"]
    for root in roots:
        for package in INDEXED:
            ignored = shutil.ignore_patterns("__pycache__", "test")
            shutil.copytree(_STDLIB / package, root / package, ignore=ignored)
    apart = [await _indexed([root]) for root in roots]
    together = await _indexed(roots)
    return Indexing(
        sum(wall for wall, _ in apart), sum(own for _, own in apart), together[0], together[1]
    )


async def _indexed(roots: Sequence[Path]) -> tuple[float, float]:
    """Return the seconds until all are indexed, and those of the longest without its waits."""
    async with AsyncExitStack() as stack:
        halves = [await stack.enter_async_context(half(root)) for root in roots]
        tools = [SymbolTools(one.root, one) for one in halves]
        start = time.perf_counter()
        try:
            pairs = zip(tools, roots, strict=True)
            owns = await asyncio.gather(*(_index(one, str(root)) for one, root in pairs))
        finally:
            for one in tools:
                one.close()
        return time.perf_counter() - start, max(owns)


async def _index(tools: SymbolTools, root: str) -> float:
    start, waited = time.perf_counter(), _waited(root)
    found = await tools.run(Symbols(name="nobody_has_this_name", references=True))
    if not tools.parsed:
        raise RuntimeError(f"nothing was indexed: {found}")
    return time.perf_counter() - start - (_waited(root) - waited)


def _waited(root: str) -> float:
    """Return the seconds that the thread of the project's half was ready to run and did not; 0
    where the system does not tell."""
    name = f"project-{Path(root).name}"[:15]
    half = next(one for one in threading.enumerate() if one.name == name)
    try:
        text = Path(f"/proc/self/task/{half.native_id}/schedstat").read_text()
    except OSError:
        return 0.0
    return int(text.split()[1]) / 1e9


def _speed_figures(speeds: Sequence[Indexing]) -> dict[str, Any]:
    """The speedup is that of the clock, unless others keep the machine busy: even one project
    alone then waits for a core, and what threads waited is taken out."""
    wall = common.median([one.apart_wall / one.together_wall for one in speeds])
    own = common.median([one.apart_own / one.together_own for one in speeds])
    waiting = common.median([1 - one.apart_own / one.apart_wall for one in speeds])
    return {
        "parallel_speedup": own if waiting > BUSY else wall,
        "parallel_speedup_by": "accounting" if waiting > BUSY else "clock",
        "parallel_speedup_clock": wall,
        "parallel_speedup_accounting": own,
        "waiting_for_a_core": waiting,
        "samples_indexing_s": [one._asdict() for one in speeds],
    }


def _project(root: Path) -> Path:
    root.mkdir()
    (root / "lines.py").write_text("".join(f"line_{n} = {n}\n" for n in range(100)))
    return root


if __name__ == "__main__":
    common.finish(measure(common.arguments(__doc__, samples=15).samples), as_json=False)
