"""The agent: what it adds to a model's time, its tools, Code Mode, cancelling, its prompt.

``python -m benchmarks.agent --json``. A real worker process with real tools on a small project; the
model host is scripted and takes no time. Code Mode is compared with one tool call after the other
on the same tasks with the same knowledge; there the host takes the time of a model of
`TOKENS_PER_SECOND`.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks import common
from benchmarks.agent_tasks import PROGRAM_OF_CALLS, TASKS, Task, make_project
from benchmarks.prompt_tokens import prompt_tokens_full
from punie_protocol.messages.common import ModelInfo, PromptStyle
from punie_protocol.messages.to_model_client import StepTimings
from punie_protocol.permissions import Mode
from punie_protocol.testing.fake_client import FakeClient
from punie_protocol.testing.script import Action, Call, Reply, Say, Wait, model_info
from punie_protocol.testing.scripted_host import ScriptedHost
from punie_protocol.testing.turns import Turn

FIRST_TOKEN: Final = 0.300
TOKENS_PER_SECOND: Final = 50.0
"""Of the model in the comparison: about a 30B mixture of experts on a laptop."""
_CHARACTERS_PER_TOKEN: Final = 4.0
HOST_CALLS: Final = 100
_NO_TIME: Final = StepTimings(queue=0.0, prefill=0.0, decode=0.0)


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__, samples=30)
    with tempfile.TemporaryDirectory(prefix="punie-bench-") as folder:
        result = asyncio.run(measure(Path(folder), options.samples))
        result["prompt_tokens_embedded"] = embedded_tokens(Path(folder))
    result["prompt_tokens_full"] = prompt_tokens_full()
    common.finish(result, as_json=options.json)


class Bench:
    """One worker with one project."""

    def __init__(self, host: ScriptedHost, client: FakeClient) -> None:
        self.host = host
        self.client = client
        self.turns = 0

    async def turn(self, script: Sequence[Reply], *, mode: Mode = Mode.TRUSTED) -> Turn:
        """Run a script in a session of its own; it has to end well."""
        self.turns += 1
        session = f"s{self.turns}"
        await self.client.new_session(session, mode=mode)
        self.host.script = [*script]
        turn = await self.client.prompt("go", session, f"{session}-q")
        if turn.stop_reason != "end_turn" or any(
            one["status"] == "failed" for _, _, one in turn.tools()
        ):
            raise RuntimeError(f"a turn went wrong: {turn}")
        await self.client.close_session(session)
        return turn


@asynccontextmanager
async def agent(folder: Path, style: PromptStyle = PromptStyle.TOOLS) -> AsyncGenerator[Bench]:
    """Start a worker on a fresh project."""
    root, socket = folder / "project", folder / "host.sock"
    make_project(root)
    info: ModelInfo = model_info(style, window=262_144)
    async with ScriptedHost(socket, [], info) as host, FakeClient(socket) as client:
        await client.open_project(root)
        yield Bench(host, client)


async def measure(folder: Path, samples: int) -> dict[str, Any]:
    """Return every figure; raw samples beside them."""
    firsts = [await first_program(folder) for _ in range(3)]
    few = max(3, samples // 3)
    many_calls = PROGRAM_OF_CALLS.format(HOST_CALLS)
    async with agent(folder) as bench:
        await tool_duration(bench, "execute_code", code="print(1)")
        steps = [await framework_per_step(bench) for _ in range(samples)]
        direct = [await tool_duration(bench, "read_file", path="m0.py") for _ in range(samples)]
        warm = [await tool_duration(bench, "execute_code", code="print(1)") for _ in range(samples)]
        calls = [await tool_duration(bench, "execute_code", code=many_calls) for _ in range(few)]
        cancels = {
            name: [await cancelling(bench, action) for _ in range(few)]
            for name, action in CANCELLED.items()
        }
        tasks = [await compare(bench, folder, task) for task in TASKS]
    return figures(firsts, steps, direct, warm, calls, cancels, tasks)


def figures(
    firsts: list[float],
    steps: list[float],
    direct: list[float],
    warm: list[float],
    calls: list[float],
    cancels: dict[str, list[float]],
    tasks: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return the named figures."""
    every_cancel = [value for values in cancels.values() for value in values]
    per_call = [(value - common.median(warm)) / HOST_CALLS * 1000 for value in calls]
    return {
        "framework_ms_per_step": common.median(steps),
        "tool_call_direct_us": common.median([value * 1000 for value in direct]),
        "code_mode_first_ms": common.median(firsts),
        "code_mode_warm_ms": common.median(warm),
        "code_mode_host_call_us": common.median(per_call),
        "cancel_ms": common.median(every_cancel),
        "cancel_max_ms": round(max(every_cancel), 2),
        "code_mode_turn_ratio": ratio(tasks, "requests"),
        "code_mode_latency_ratio": ratio(tasks, "seconds"),
        "model_of_the_comparison": {
            "first_token_s": FIRST_TOKEN,
            "tokens_per_second": TOKENS_PER_SECOND,
            "characters_per_token": _CHARACTERS_PER_TOKEN,
        },
        "samples": {
            "framework_ms_per_step": steps,
            "tool_call_direct_ms": direct,
            "code_mode_first_ms": firsts,
            "code_mode_warm_ms": warm,
            "code_mode_calls_ms": calls,
            "cancel_ms": cancels,
            "tasks": tasks,
        },
    }


def ratio(tasks: list[dict[str, Any]], what: str) -> float:
    """Return Code Mode against one call after the other, summed over the tasks."""
    return round(
        sum(task["code_mode"][what] for task in tasks)
        / sum(task["sequential"][what] for task in tasks),
        3,
    )


def at_once(*actions: Action) -> Reply:
    """Return a reply of a model that takes no time, and says so."""
    return Reply(actions, timings=_NO_TIME)


async def first_program(folder: Path) -> float:
    """Return the milliseconds of the first program of a fresh worker, asked for at once."""
    inner = folder / f"first-{time.monotonic_ns()}"
    inner.mkdir()
    async with agent(inner) as bench:
        return await tool_duration(bench, "execute_code", code="print(1)")


async def tool_duration(bench: Bench, tool: str, **arguments: object) -> float:
    """Return the milliseconds one call took in the worker."""
    turn = await bench.turn([at_once(Call(tool, arguments)), at_once(Say("done"))])
    return next(one.duration_ms for one in turn.meta.tools if one.tool == tool)


async def framework_per_step(bench: Bench) -> float:
    """Return the framework's milliseconds per model step, of a turn with four steps. The scripted
    host's own time is in it: it says that it takes none."""
    turn = await bench.turn(
        [
            at_once(Call("read_file", {"path": "m0.py"})),
            at_once(Call("search", {"pattern": "def ", "glob": "*.py"})),
            at_once(Call("execute_code", {"code": "print(list_files('*.py').count)"})),
            at_once(Say("There are some files. " * 20)),
        ]
    )
    return turn.meta.timings_ms.framework / len(turn.meta.steps)


CANCELLED: Final[dict[str, Action]] = {
    "streaming": Say("word " * 20_000, delay=0.002),
    "waiting for the model": Wait(30.0),
    "computing program": Call("execute_code", {"code": "while True:\n    pass"}),
    "program in a tool call": Call(
        "execute_code", {"code": "while True:\n    search('x', '*.py')"}
    ),
}
"""What a turn does when it is cancelled."""


async def cancelling(bench: Bench, action: Action) -> float:
    """Return the milliseconds from the cancel to the response."""
    bench.turns += 1
    session = f"s{bench.turns}"
    client = bench.client
    await client.new_session(session, mode=Mode.TRUSTED)
    bench.host.script = [Reply((action,), timings=_NO_TIME)]
    requests = len(bench.host.requests)
    answer = await client.start_prompt("go", session, f"{session}-q")
    await client.until(lambda: len(bench.host.requests) > requests)
    if not isinstance(action, Wait):
        await client.until(lambda: client.updates[session])
    await asyncio.sleep(0.1)  # well into it
    started = time.perf_counter()
    await client.cancel(session)
    turn = await client.turn(answer, session)
    elapsed = (time.perf_counter() - started) * 1000
    if turn.stop_reason != "cancelled":
        raise RuntimeError(f"not cancelled: {turn}")
    await client.close_session(session)
    return elapsed


async def compare(bench: Bench, folder: Path, task: Task) -> dict[str, Any]:
    """Return requests and seconds of a task done both ways; the project is the same before, and
    must be the same after."""
    done = {}
    for way, steps in (("sequential", task.sequential), ("code_mode", task.code_mode)):
        make_project(folder / "project")
        script = [timed_reply(actions) for actions in steps]
        started = time.perf_counter()
        await bench.turn(script)
        done[way] = {"requests": len(script), "seconds": time.perf_counter() - started}
        task.check(folder / "project")
    return {"task": task.name} | done


def timed_reply(actions: tuple[Action, ...]) -> Reply:
    """Return a reply that takes the time a model takes to write it."""
    text = "".join(
        one.text if isinstance(one, Say) else json.dumps(one.arguments)
        for one in actions
        if isinstance(one, Say | Call)
    )
    decode = len(text) / _CHARACTERS_PER_TOKEN / TOKENS_PER_SECOND
    return Reply((Wait(FIRST_TOKEN + decode), *actions))


def embedded_tokens(folder: Path) -> int:
    """Return what ``punie prompt show`` counts for the embedded model."""
    project = folder / "empty"
    project.mkdir()
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "PUNIE_HOME": str(folder / "p")}
    punie = str(Path(sys.executable).with_name("punie"))
    try:
        shown = subprocess.run(
            [punie, "prompt", "show", "--json", "-C", str(project)],
            env=environ,
            capture_output=True,
            check=True,
            timeout=120,
        )
    finally:
        subprocess.run([punie, "down"], env=environ, capture_output=True, check=True, timeout=60)
    return json.loads(shown.stdout)["tokens"]


if __name__ == "__main__":
    main()
