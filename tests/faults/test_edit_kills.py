"""Workers killed at random moments of turns that edit: each edit happens once, the answer comes.

``PUNIE_KILLS`` is the dose. The model is scripted and careful: told that a call was interrupted,
it looks at the file before it goes on.
"""

import contextlib
import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from punie_protocol.messages.common import Isolation
from punie_supervisor.turn import MAX_RESUMES
from tests.support.cli import LEVEL, Punie, wait_until
from tests.support.openai_server import OpenAIServer, Reply, Request, say
from tests.support.scripted_user import Script, use

KILLS = int(os.environ.get("PUNIE_KILLS", "3"))
EDITS = 5

pytestmark = [pytest.mark.timeout(60 + 20 * KILLS), pytest.mark.xdist_group("edit kills")]


def edit(number: int) -> Reply:
    """Put one more line before the end."""
    return use("edit_file", path="log", old_text="END", new_text=f"line {number}\nEND")


class Careful(OpenAIServer):
    """A model that knows where it is from what it has been told, whatever was repeated."""

    def reply(self, request: Request) -> Reply:
        *_, last = request.body["messages"]
        text = str(last["content"])
        if last["role"] != "tool":
            return edit(0)
        if "interrupted" in text:
            return use("read_file", path="log")
        done = max([int(number) for number in re.findall(r"line (\d+)", text)], default=-1)
        return edit(done + 1) if done + 1 < EDITS else say("All lines are there.")


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Punie]:
    punie = Punie(tmp_path / "u")
    punie.home.mkdir()
    yield punie
    punie.close()


def children(user: Punie) -> set[int]:
    """Return the pids of what the daemon has started."""
    daemon = int((user.home / "punie" / "run" / "punie.lock").read_text())
    return {child.pid for child in psutil.Process(daemon).children()}


def shared(user: Punie) -> set[int]:
    """Return the pid of the worker that projects share, if they do."""
    if LEVEL is Isolation.PROCESS:
        return set()
    return {pid for pid in children(user) if psutil.Process(pid).name() == "punie-worker"}


def kill(user: Punie, others: set[int], asked: subprocess.Popen[str]) -> bool:
    """Kill the worker of this turn; return false when the turn was over before."""
    workers = children(user) - others
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            user.kill(pid)
    return bool(workers) and asked.poll() is None


def kill_some(
    script: Script, user: Punie, rng: random.Random, others: set[int], asked: subprocess.Popen[str]
) -> int:
    """Kill the turn's worker at most so often as it may be lost; return how often."""
    hits = 0
    for _ in range(rng.randint(1, MAX_RESUMES)):
        step = script.steps + rng.randint(1, EDITS)
        wait_until(
            lambda step=step: script.steps >= step or asked.poll() is not None,
            "a step",
            patience=30,
        )
        time.sleep(rng.uniform(0, 0.05))
        hits += kill(user, others, asked)
    return hits


def test_each_edit_happens_once_though_its_worker_is_killed(user: Punie, tmp_path: Path) -> None:
    seed = int(os.environ.get("PUNIE_SEED", time.time_ns()))
    rng = random.Random(seed)
    print(f"PUNIE_SEED={seed}")
    lines = [f"line {number}\n" for number in range(EDITS)]
    with Script(server=Careful()) as script:
        (tmp_path / "log").write_text("END\n")
        assert script.ask(user, tmp_path, "--edit").returncode == 0  # starts the daemon
        killed = 0
        for round in range(KILLS):
            log = tmp_path / f"p{round}" / "log"
            log.parent.mkdir()
            log.write_text("END\n")
            others = children(user) - shared(user)
            asked = user.popen("ask", "-C", log.parent, "--model", script.model, "--edit", "Do it")
            hits = kill_some(script, user, rng, others, asked)
            answer, errors = asked.communicate(timeout=50)
            assert asked.returncode == 0, (round, hits, errors, log.read_text(), user.log())
            assert "All lines are there." in answer
            assert log.read_text() == "".join([*lines, "END\n"]), (round, hits, errors)
            killed += hits
    assert killed
