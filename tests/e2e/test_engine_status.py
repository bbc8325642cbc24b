"""What the model host's engine counts comes to who asks the daemon."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import PATIENCE, Punie, alive, wait_until

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("engine_status")]

QUESTION = "How many Python files are there?"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    (folder / "a.py").write_text("x = 1\n")
    return folder


def engine_when(user: Punie, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the engine's status as soon as there is one that `holds`."""
    seen: list[dict[str, Any] | None] = []

    def look() -> bool:
        seen.append(user.status()["model"]["engine"])
        return seen[-1] is not None and holds(seen[-1])

    wait_until(look, "the engine's status", lambda: str(seen[-1]), patience=PATIENCE)
    last = seen[-1]
    assert last is not None
    return last


def steps_of(user: Punie, project: Path) -> list[dict[str, int]]:
    """Return the usage of each model step of all turns."""
    turns = json.loads(user.run("perf", "--json", "-C", project).stdout)["turns"]
    return [step["usage"] for turn in turns for step in turn["meta"]["steps"]]


def test_the_steps_of_turns_are_counted(user: Punie, project: Path) -> None:
    for _ in range(2):
        user.ask(project, QUESTION)
    steps = steps_of(user, project)
    engine = engine_when(user, lambda it: it["requests"]["finished"] == len(steps))
    for kind in ("input_tokens", "cached_tokens", "output_tokens"):
        assert engine[kind] == sum(usage[kind] for usage in steps), kind
    share = engine["cached_tokens"] / engine["input_tokens"]
    assert engine["cached_share"] == pytest.approx(share, abs=0.001)
    assert share > 0
    assert sum(engine["ttft_s"]["counts"]) == len(steps)
    assert sum(engine["gap_s"]["counts"]) == engine["output_tokens"] - len(steps)
    assert engine["decode_tok_s"] > 0
    assert engine["steps"] >= sum(engine["batch_rows"]["counts"]) > 0
    assert 0 < engine["kv"]["cache"] < engine["kv"]["budget"]
    [client] = engine["clients"]
    assert client["requests"] == len(steps)
    assert client["output_tokens"] == engine["output_tokens"]


def test_a_person_reads_it(user: Punie, project: Path) -> None:
    user.ask(project, QUESTION)
    engine_when(user, lambda it: it["running"] == it["queued"] == 0)
    lines = user.run("status").stdout.splitlines()
    assert "engine   idle, 1 client" in lines
    assert any(line.endswith("% of input cached") for line in lines)
    assert any(line.startswith("ok    engine ") for line in user.run("doctor").stdout.splitlines())


def test_another_host_begins_anew(user: Punie, project: Path) -> None:
    user.ask(project, QUESTION)
    before = engine_when(user, lambda it: it["requests"]["finished"] >= 1)
    pid = user.status()["model"]["pid"]
    user.kill(pid)
    wait_until(lambda: not alive({pid}), "the host is gone")
    known = len(steps_of(user, project))
    user.ask(project, QUESTION)
    added = len(steps_of(user, project)) - known
    after = engine_when(user, lambda it: it["requests"]["finished"] >= added)
    assert after["requests"]["finished"] == added < before["requests"]["finished"] + added
