"""What every benchmark needs: samples, memory, the machine, the last line."""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil


def arguments(doc: str | None, *, samples: int) -> argparse.Namespace:
    """Parse ``--json`` and ``--samples N``."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--json", action="store_true", help="JSON alone, as the last line")
    parser.add_argument("--samples", type=int, default=samples, help="how many of each")
    return parser.parse_args()


def timed(call: Callable[[], Any]) -> float:
    """Return the wall time of `call` in milliseconds."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def median(samples: list[float]) -> float:
    """Return the median, rounded to a hundredth."""
    return round(statistics.median(samples), 2)


def percentile(samples: list[float], percent: int) -> float:
    """Return the nearest-rank percentile, rounded to a hundredth."""
    rank = max(1, math.ceil(len(samples) * percent / 100))
    return round(sorted(samples)[rank - 1], 2)


def rounded(samples: Sequence[float]) -> list[float]:
    """Return raw samples as they are printed."""
    return [round(value, 3) for value in samples]


def private_bytes(pid: int) -> int:
    """Return the private memory of a process: ``smaps_rollup`` on Linux, USS elsewhere."""
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    if not rollup.exists():
        return psutil.Process(pid).memory_full_info().uss
    return 1024 * sum(
        int(line.split()[1])
        for line in rollup.read_text().splitlines()
        if line.startswith(("Private_Clean:", "Private_Dirty:"))
    )


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
    }


def finish(result: dict[str, Any], *, as_json: bool) -> None:
    """Print the result: a line a figure for a person on stderr, then JSON as the last line."""
    if not as_json:
        for name, value in result.items():
            if isinstance(value, int | float | str):
                sys.stderr.write(f"{name:32} {value}\n")
    print(json.dumps(result | {"machine": machine()}), flush=True)
