"""A worker killed while a program of ours runs for it: nobody is left who waits for that."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.cli import Punie, alive, wait_until
from tests.support.openai_server import say
from tests.support.scripted_user import Script, use

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Punie]:
    punie = Punie(tmp_path / "u")
    punie.home.mkdir()
    yield punie
    punie.close()


def gits(user: Punie) -> list[psutil.Process]:
    """Return the processes of ``git status`` that some worker runs: the one that waits, as what it
    asks git before ends by itself."""
    lock = user.home / "punie" / "run" / "punie.lock"
    if not lock.exists():
        return []
    found = psutil.Process(int(lock.read_text())).children(recursive=True)
    return [process for process in found if "status" in _words(process)]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() if process.name() == "git" else []
    except psutil.NoSuchProcess:
        return []


def test_a_killed_worker_takes_its_programs_along(user: Punie, tmp_path: Path) -> None:
    project = tmp_path / "project"
    subprocess.run(["git", "init", "--quiet", project], check=True)
    os.mkfifo(project / ".git" / "index")  # git waits for a writer
    with Script(use("git_status"), *[say("done")] * 5) as script:
        asked = user.popen("ask", "-C", project, "--model", script.model, "Do it")
        wait_until(lambda: len(gits(user)) > 0, "a git that waits", patience=30)
        [git] = gits(user)
        [worker] = [one for one in git.parents() if one.name() == "punie-worker"]
        assert os.getpgid(git.pid) != os.getpgid(worker.pid), "its group is its own"
        user.kill(worker.pid)
        wait_until(lambda: not alive({git.pid}), "git gone", patience=5)
        asked.communicate(timeout=40)
