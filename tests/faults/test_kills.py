"""Random kills while questions are asked: nothing accepted is lost, the next question works.

``PUNIE_KILLS`` is the dose (``make faults N=``).
"""

import os
import random
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from punie_supervisor import journal_ops as ops
from tests.support import trees
from tests.support.cli import Punie, alive, daemon_pids, wait_until

KILLS = int(os.environ.get("PUNIE_KILLS", "3"))
QUESTION = "How many Python files are there?"
TREES = ("json", "asyncio")

pytestmark = [pytest.mark.timeout(60 + 20 * KILLS), pytest.mark.xdist_group("kills")]


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Punie]:
    punie = Punie(tmp_path / "u")
    punie.home.mkdir()
    yield punie
    punie.close()


def victims(user: Punie) -> dict[str, int]:
    """Return the processes that may be killed, by what they are."""
    report = user.status()
    found = {"daemon": report["pid"], "model host": report["model"]["pid"]}
    found |= {worker["id"]: worker["pid"] for worker in report["workers"]}
    return {name: pid for name, pid in found.items() if pid}


def ask(user: Punie, tree: Path, level: str) -> subprocess.Popen[str]:
    return user.popen("ask", "-C", tree, "--isolation", level, "--timeout", "40", QUESTION)


def check(user: Punie, tree: Path, level: str) -> None:
    """Assert that a question is answered rightly."""
    answer = user.ask(tree, QUESTION, "--isolation", level)["answer"]
    assert str(len(trees.files(tree, ".py"))) in answer


def test_kills_while_questions_are_asked(user: Punie, tmp_path: Path) -> None:
    seed = int(os.environ.get("PUNIE_SEED", time.time_ns()))
    rng = random.Random(seed)
    print(f"PUNIE_SEED={seed}")
    projects = [trees.json_tree(tmp_path), trees.asyncio_tree(tmp_path)]
    level = "process"
    for tree in projects:
        check(user, tree, level)
    for _ in range(KILLS):
        level = rng.choice(["process", "interpreter"])
        asked = [ask(user, tree, level) for tree in projects]
        time.sleep(rng.uniform(0, 1.0))
        name, pid = rng.choice(sorted(victims(user).items()))
        everything = daemon_pids(user.home)
        user.kill(pid)
        for process in asked:
            answer, errors = process.communicate(timeout=50)
            assert process.returncode in (0, 1, 2, 3), (name, process.returncode, errors)
            assert answer or "punie: error:" in errors, (name, errors)
        if name == "daemon":
            wait_until(lambda left=everything: not alive(left), "children gone", patience=10)
        for tree in projects:
            check(user, tree, level)
    no_prompt_hangs(user)


def no_prompt_hangs(user: Punie) -> None:
    """Every prompt that was accepted comes to an end in the journal."""
    journal = user.home / "punie" / "state" / "journal.db"
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as database:

        def states() -> set[str]:
            return {state for (state,) in database.execute("SELECT DISTINCT state FROM prompts")}

        wait_until(lambda: not states() & set(ops.OPEN), "prompts ended", lambda: str(states()), 30)
        assert database.execute("SELECT count(*) FROM prompts").fetchone()[0] >= 2 * (KILLS + 1)
