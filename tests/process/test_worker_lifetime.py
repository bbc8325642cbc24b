"""A worker ends when it shall, and takes its children along."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from punie_protocol.testing.script import Call, Say, reply
from punie_workers import children
from tests.support.worker_case import running
from tests.support.worker_harness import Turn

LOOP = reply(Call("execute_code", {"code": "while True: list_files('*')"}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "a.txt").write_text("alpha\n")
    return root


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def gone(processes: list[psutil.Process], within: float) -> None:
    async with asyncio.timeout(within):
        while any(map(alive, processes)):  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0.01)


def test_the_end_of_the_link_ends_worker_and_children(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, root, [LOOP]) as case:
            await case.worker.start_prompt("go")
            await case.worker.until(lambda: case.worker.updates["s1"])
            await asyncio.sleep(0.1)
            left = psutil.Process(case.worker.pid).children(recursive=True)
            assert any("monty" in child.name() for child in left)
            case.worker.link.abort("supervisor died")
            assert await case.worker.wait_ended(within=2) == 0
            await gone(left, within=2)

    asyncio.run(main())


def test_stop_cancels_and_answers_first(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        script = [reply(Say("never ending " * 100, chunk=4, delay=0.02))]
        async with running(tmp_path, root, script) as case:
            answer = await case.worker.start_prompt("go")
            await case.worker.until(lambda: case.worker.updates["s1"])
            assert await case.worker.stop() == 0
            assert Turn(await answer, []).result["stopReason"] == "cancelled"
            assert len(case.worker.deltas["s1"]) == 1

    asyncio.run(main())


def test_sigterm_ends_it_and_sigint_does_not(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, root, [reply(Say("still here"))]) as case:
            os.kill(case.worker.pid, signal.SIGINT)
            assert (await case.worker.prompt("hello")).text() == "still here"
            left = psutil.Process(case.worker.pid).children(recursive=True)
            os.kill(case.worker.pid, signal.SIGTERM)
            assert await case.worker.wait_ended(within=2) == 0
            await gone(left, within=2)

    asyncio.run(main())


def test_it_ends_with_its_parent() -> None:
    """On Linux the control socket stays open here: only the death signal can end the worker."""
    ours, theirs = socket.socketpair()
    launcher = (
        "import subprocess, sys, time\n"
        "command = [sys.executable, '-m', 'punie_workers.main', '--control-fd', sys.argv[1]]\n"
        "child = subprocess.Popen(command, pass_fds=[int(sys.argv[1])])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    fd = theirs.fileno()
    command = [sys.executable, "-c", launcher, str(fd)]
    with subprocess.Popen(command, pass_fds=[fd], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        ours.settimeout(10)
        assert ours.recv(1), "no hello"
        parent.kill()
    if sys.platform != "linux":
        ours.close()
    try:
        asyncio.run(gone([worker], within=2))
    finally:
        ours.close()
        theirs.close()


def test_children_see_an_allow_list(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "secret")
    monkeypatch.setenv("LD_BIND_NOW", "1")

    async def main() -> None:
        async with running(tmp_path, root, [reply(Say("hi"))]) as case:
            worker = psutil.Process(case.worker.pid)
            assert worker.cmdline()[0] == "punie-worker"
            await case.worker.prompt("hello")  # a turn has a sandbox made ready
            await case.worker.until(worker.children)
            for child in worker.children(recursive=True):
                assert not child.environ().keys() & {"SOME_API_KEY", "LD_BIND_NOW"}
            assert not children.environment().keys() & {"SOME_API_KEY", "LD_BIND_NOW"}

    asyncio.run(main())


def test_nothing_is_written_to_stdout(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        script = [reply(Call("execute_code", {"code": "print(1)"})), reply(Say("one"))]
        async with running(tmp_path, root, script) as case:
            await case.worker.prompt("go")
            await case.worker.stop()
            assert case.worker.process.stdout is not None
            assert case.worker.process.stdout.read() == b""

    asyncio.run(main())
