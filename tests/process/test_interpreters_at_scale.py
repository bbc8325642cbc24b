"""Interpreters by the hundred in one process: no crash, and what they took comes back.

``PUNIE_KILLS`` asks for the big dose.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COUNT = 2_000 if "PUNIE_KILLS" in os.environ else 100
GROWTH = 1.1
"""Of private memory, from the first batch to the last."""

OPEN = 100
MAX_OPEN = 7 * 1024 * 1024
"""Bytes of one more open project that was asked something. What is promised of a quiet machine is
measured by ``python -m benchmarks.isolation``; this is what a leak or an import would go past."""


def run(*arguments: str, timeout: float) -> list[dict[str, Any]]:
    """Return the lines that the process printed. Fails unless it ended as a program ends."""
    command = [sys.executable, "-m", "tests.support.many_halves", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(120 + COUNT / 2)
def test_created_used_broken_and_closed(tmp_path: Path) -> None:
    lines = run("cycle", str(COUNT), str(tmp_path), timeout=110 + COUNT / 2)
    first, last = lines[0], lines[-1]
    assert last["done"] == COUNT
    kinds = {kind: number for kind, number in last["counts"].items() if kind != "quarantined"}
    assert sum(kinds.values()) == COUNT
    assert kinds["break_hang"] == last["counts"]["quarantined"] == COUNT // 50
    assert len(kinds) == 14
    private = [line["private"] for line in lines]
    assert private[-1] <= GROWTH * private[0], private
    assert last["descriptors"] == first["descriptors"]
    assert last["interpreters"] == 0


@pytest.mark.timeout(120)
def test_a_hundred_projects_open_at_once(tmp_path: Path) -> None:
    (found,) = run("open", str(OPEN), str(tmp_path), timeout=110)
    assert found["interpreters"] == OPEN
    assert found["each"] <= MAX_OPEN
    assert found["left"] == 0
