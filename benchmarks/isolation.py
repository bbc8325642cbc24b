"""Isolation: what a project costs at each level, how soon it answers, what it does to others.

``python -m benchmarks.isolation --json [--only memory,times,calls]``. Real daemons, real workers,
real tools; the model is a scripted one that takes no time and is not counted. Memory is private
memory after real work; raw samples are in the JSON, and how busy the machine was.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import psutil

from benchmarks import common, isolation_calls, isolation_memory, isolation_times
from punie_supervisor import logs

PARTS: Final[dict[str, Callable[[argparse.Namespace], dict[str, Any]]]] = {
    "memory": lambda options: isolation_memory.measure(options.known),
    "times": lambda options: isolation_times.measure(options.samples),
    "calls": lambda options: isolation_calls.measure(options.samples),
}
TARGETS: Final = {
    "supervisor_mb": 45,
    "interpreter_idle_mb": 6,
    "interpreter_mb": 12,
    "process_mb": 25,
    "hundred_projects_mb": 400,
    "activate_interpreter_ms": 60,
    "activate_process_ms": 80,
    "tool_call_added_us": 150,
    "spawn_ms": 1000,
    "loop_lag_p50_ms": 1,
    "quarantine_ms": 500,
    "kill_noticed_ms": 20,
    "worker_replaced_ms": 100,
}
"""What is promised at most, in the unit of the name; `parallel_speedup` is promised at least."""
SPEEDUP: Final = 1.5


def main() -> None:
    """Measure and print."""
    options = _arguments()
    logs.configure(sys.stderr)
    busy: dict[str, Any] = {"before": _busy()}
    result: dict[str, Any] = {}
    for name in options.only.split(","):
        started = time.perf_counter()
        result |= PARTS[name](options)
        busy[f"after_{name}"] = _busy()
        sys.stderr.write(f"{name}: {time.perf_counter() - started:.0f} s\n")
    result["over_target"] = over_target(result)
    common.finish(result | {"busy": busy}, as_json=options.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="JSON alone, as the last line")
    parser.add_argument("--samples", type=int, default=10, help="how many of each time")
    parser.add_argument("--known", type=int, default=isolation_memory.KNOWN, help="projects")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    options = parser.parse_args()
    if unknown := set(options.only.split(",")) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    return options


def over_target(result: dict[str, Any]) -> dict[str, float]:
    """Return the figures that break a promise."""
    over = {
        name: result[name]
        for name, most in TARGETS.items()
        if name in result and result[name] > most
    }
    if result.get("parallel_speedup", SPEEDUP) < SPEEDUP:
        over["parallel_speedup"] = result["parallel_speedup"]
    return over


def _busy() -> dict[str, float]:
    """Return how busy others keep the machine: percent of all cores in a second in which we do
    nothing, and the load average."""
    return {
        "percent": psutil.cpu_percent(interval=1.0),
        "load_average": round(os.getloadavg()[0], 2),
    }


if __name__ == "__main__":
    main()
