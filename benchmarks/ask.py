"""The first question: cold start, quick commands, a warm answer, memory of each process.

``python -m benchmarks.ask --json``. Runs the installed `punie` command with a home of its own on a
copy of the standard library's `json` package, with the embedded model.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from benchmarks import common

QUESTION = "Find all classes that inherit from ValueError"
ANSWER = "JSONDecodeError"
DEADLINE = 120.0
"""Seconds one command may take before the benchmark fails."""


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__, samples=10)
    with tempfile.TemporaryDirectory(prefix="punie-bench-") as folder:
        project = Path(folder) / "json"
        shutil.copytree(Path(json.__file__).parent, project)
        bench = Bench(Path(folder), project)
        try:
            result = bench.measure(options.samples)
        finally:
            bench.punie("down")
    common.finish(result, as_json=options.json)


class Bench:
    """One user with one project."""

    def __init__(self, home: Path, project: Path) -> None:
        self._project = project
        self._environ = {"PATH": os.environ["PATH"], "HOME": str(home)}
        self._environ["PUNIE_HOME"] = str(home / "punie")
        self._command = str(Path(sys.executable).with_name("punie"))

    def punie(self, *args: str) -> str:
        """Run the command and return what it printed; raises when it fails."""
        result = subprocess.run(
            [self._command, *args],
            env=self._environ,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=DEADLINE,
            check=False,
        )
        if result.returncode != 0:
            raise RuntimeError(f"punie {args}: exit {result.returncode}: {result.stderr}")
        return result.stdout

    def measure(self, samples: int) -> dict[str, Any]:
        """Return every figure; raw samples in milliseconds."""
        cold = [self._cold_start() for _ in range(min(samples, 3))]
        first = self._ask()
        raw = {
            "cold_start_ms": cold,
            "help_ms": [common.timed(lambda: self.punie("--help")) for _ in range(samples)],
            "status_ms": [common.timed(lambda: self.punie("status")) for _ in range(samples)],
        }
        turns: list[dict[str, float]] = []
        raw["ask_wall_ms"] = [
            common.timed(lambda: turns.append(self._ask())) for _ in range(samples)
        ]
        medians = {name: common.median(values) for name, values in raw.items()}
        return medians | {
            "first_ask_timings_ms": first,
            "ask_timings_ms": {
                name: common.median([turn[name] for turn in turns]) for name in turns[0]
            },
            "private_mb": self._memory(),
            "question": QUESTION,
            "samples": raw | {"ask_timings_ms": turns},
        }

    def _cold_start(self) -> float:
        self.punie("down")
        return common.timed(lambda: self.punie("up"))

    def _ask(self) -> dict[str, float]:
        report = json.loads(
            self.punie("ask", "-C", str(self._project), "--format", "json", QUESTION)
        )
        if ANSWER not in report["answer"]:
            raise RuntimeError(f"wrong answer: {report['answer']}")
        return report["timings_ms"]

    def _memory(self) -> dict[str, float]:
        """Return the private memory of each process, MB; children of a worker by their name."""
        status = json.loads(self.punie("status", "--json"))
        pids = {"supervisor": status["pid"], "model_host": status["model"]["pid"]}
        for worker in status["workers"]:
            pids[worker["id"]] = worker["pid"]
            for child in psutil.Process(worker["pid"]).children():
                pids[f"{worker['id']}/{child.name()}"] = child.pid
        return {name: round(common.private_bytes(pid) / 1e6, 1) for name, pid in pids.items()}


if __name__ == "__main__":
    main()
