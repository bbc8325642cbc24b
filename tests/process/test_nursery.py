"""Where workers come from: forked, from a spare, or from nothing."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from punie_protocol.client import WorkerStart
from punie_protocol.handshake import accept_child
from punie_supervisor import fork_server
from punie_supervisor import nursery as nursery_module
from tests.support.nurseries import end, nursery, probes, report, worker_spec
from tests.support.supervisor_rig import alive, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a fork server is for Linux")


def test_a_forked_worker_is_our_child_and_has_what_its_spec_says(tmp_path: Path):
    async def scenario() -> None:
        spec = worker_spec(cwd=str(tmp_path), PUNIE_PROBE="mine")
        async with nursery(probes()) as made:
            child = await made.spawn(spec)
            said = await report(child)
            assert child.start is WorkerStart.FORK
            assert said["pid"] == said["session"] == child.pid
            assert said["parent"] == os.getpid()
            assert said["cwd"] == str(tmp_path)
            assert said["environment"] == spec.environment

    asyncio.run(scenario())


def test_the_environment_is_the_specs_and_not_the_servers():
    async def scenario() -> None:
        async with nursery(probes()) as made:
            await made.spawn(worker_spec(FIRST="1"))
            second = await made.spawn(worker_spec("worker-2", SECOND="2"))
            said = await report(second)
            assert said["environment"] == worker_spec(SECOND="2").environment

    asyncio.run(scenario())


def test_a_forked_worker_has_three_standard_descriptors_and_its_control_socket():
    async def scenario() -> None:
        async with nursery(probes()) as made:
            await made.spawn(worker_spec())
            said = await report(await made.spawn(worker_spec("worker-2")))
            fds = {int(fd): target for fd, target in said["fds"].items()}
            assert fds.pop(0) == "/dev/null"
            assert fds.pop(1) == fds.pop(2)
            assert fds.pop(said["control"]).startswith("socket:")
            assert all(".so" in target for target in fds.values()), fds  # libffi keeps its own

    asyncio.run(scenario())


def test_forked_workers_draw_different_random_numbers():
    async def scenario() -> None:
        async with nursery(probes()) as made:
            children = [await made.spawn(worker_spec(f"worker-{n}")) for n in range(3)]
            drawn = {(await report(child))["random"] for child in children}
            assert len(drawn | {random.random()}) == 4

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("plays", "reason"), [("thread", "2 threads run"), ("socket", "descriptors are left open")]
)
def test_a_server_that_may_not_be_forked_says_why_and_the_worker_is_spawned(
    plays: str, reason: str
):
    async def scenario() -> None:
        async with nursery(probes(plays)) as made:
            child = await made.spawn(worker_spec())
            assert child.start is WorkerStart.SPAWN
            assert made._server is not None
            assert reason in made._server.failure
            assert (await accept_child(child.link)).pid == child.pid

    asyncio.run(scenario())


def test_a_server_that_does_not_get_warm_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nursery_module, "WARM_WAIT", 0.2)

    async def scenario() -> None:
        async with nursery(probes("for ever")) as made:
            child = await made.spawn(worker_spec())
            assert child.start is WorkerStart.SPAWN

    asyncio.run(scenario())


def test_who_waits_for_a_worker_when_the_nursery_stops_gets_none():
    async def scenario() -> None:
        async with nursery(probes("for ever")) as made:
            waiting = asyncio.create_task(made.spawn(worker_spec()))
            await eventually(lambda: made.server_pid)
            await made.stop()
            with pytest.raises(OSError, match="no worker is started any more"):
                await waiting

    asyncio.run(scenario())


def test_the_end_of_the_server_is_nothing_to_its_workers_and_the_next_has_another():
    async def scenario() -> None:
        async with nursery(probes()) as made:
            first = await made.spawn(worker_spec())
            server = made.server_pid
            assert server is not None
            os.kill(server, signal.SIGKILL)
            await eventually(lambda: made.server_pid is None)
            second = await made.spawn(worker_spec("worker-2"))
            assert second.start is WorkerStart.FORK
            assert made.server_pid not in (None, server)
            assert alive(first.pid)

    asyncio.run(scenario())


def test_a_request_under_way_when_the_server_dies_is_answered_by_a_spawned_worker():
    async def scenario() -> None:
        async with nursery(probes()) as made:
            await made.spawn(worker_spec())
            server = made.server_pid
            assert server is not None
            os.kill(server, signal.SIGSTOP)
            asking = asyncio.create_task(made.spawn(worker_spec("worker-2")))
            await eventually(lambda: made._server and made._server._births)
            os.kill(server, signal.SIGKILL)
            second = await asking
            assert second.start is WorkerStart.SPAWN
            assert (await accept_child(second.link)).pid == second.pid

    asyncio.run(scenario())


def test_a_worker_that_comes_too_late_is_nobodys(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fork_server, "BIRTH_TIMEOUT", 0.2)

    async def scenario() -> None:
        async with nursery(probes()) as made:
            first = await made.spawn(worker_spec())
            server = made.server_pid
            assert server is not None
            os.kill(server, signal.SIGSTOP)
            second = await made.spawn(worker_spec("worker-2"))
            assert second.start is WorkerStart.SPAWN
            os.kill(server, signal.SIGCONT)
            third = await made.spawn(worker_spec("worker-3"))  # after the late one, in its turn
            assert third.start is WorkerStart.FORK
            ours = {server, first.pid, second.pid, third.pid}
            await eventually(lambda: {c.pid for c in psutil.Process().children()} == ours)

    asyncio.run(scenario())


def test_what_a_killed_worker_left_behind_is_ended_and_reaped():
    async def scenario() -> None:
        async with nursery(probes()) as made:
            child = await made.spawn(worker_spec(PROBE_LEAVES="1"))
            left = (await report(child))["left"]
            assert os.getsid(left) != child.pid
            assert psutil.Process(left).ppid() == child.pid  # its limits count it
            os.kill(child.pid, signal.SIGKILL)
            exit = await child.finish()
            assert exit.reason == "it was ended by SIGKILL"
            await eventually(lambda: not psutil.pid_exists(left))

    asyncio.run(scenario())


def test_a_child_that_somebody_else_here_started_is_not_touched():
    async def scenario() -> None:
        async with nursery(probes()) as made:
            await end(await made.spawn(worker_spec()))
            await made.stop()

    with subprocess.Popen(["sleep", "600"]) as bystander:
        asyncio.run(scenario())
        assert bystander.poll() is None
        bystander.kill()


SUPERVISOR = """
import asyncio, sys
from tests.support.nurseries import nursery, probes, worker_spec

async def main():
    async with nursery(probes()) as made:
        children = [await made.spawn(worker_spec(f"worker-{n}")) for n in range(2)]
        print(made.server_pid, *(child.pid for child in children), file=sys.stderr, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def test_all_end_with_the_supervisor(pytestconfig: pytest.Config):
    command = [sys.executable, "-c", SUPERVISOR]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=pytestconfig.rootpath
    ) as parent:
        assert parent.stderr is not None
        pids = [int(word) for word in parent.stderr.readline().split()]
        assert all(map(alive, pids))
        assert len(pids) == 3
        parent.kill()

    async def gone() -> None:
        await eventually(lambda: not any(map(alive, pids)))

    asyncio.run(gone())


def test_a_spare_is_handed_out_and_the_next_one_begins():
    async def scenario() -> None:
        async with nursery(way=WorkerStart.SPARE) as made:
            first = await made.spawn(worker_spec())
            assert first.start is WorkerStart.SPAWN
            spare = await eventually(lambda: made._spare)
            second = await made.spawn(worker_spec("worker-2"))
            assert second is spare
            assert second.start is WorkerStart.SPARE
            assert second.spec.id == "worker-2"
            assert (await accept_child(second.link)).pid == second.pid
            third = await eventually(lambda: made._spare)
            assert third not in (first, second)

    asyncio.run(scenario())


def test_a_spare_that_has_died_or_is_not_alike_is_not_handed_out():
    async def scenario() -> None:
        async with nursery(way=WorkerStart.SPARE) as made:
            children = [await made.spawn(worker_spec())]
            spare = await eventually(lambda: made._spare)
            os.kill(spare.pid, signal.SIGKILL)
            await eventually(lambda: spare.state == "ended")
            children.append(await made.spawn(worker_spec("worker-2")))
            await eventually(lambda: made._spare)
            children.append(await made.spawn(worker_spec("worker-3", OTHER="1")))
            assert [child.start for child in children] == [WorkerStart.SPAWN] * 3

    asyncio.run(scenario())


def test_the_server_is_told_what_is_no_request(capfd: pytest.CaptureFixture[str]):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [*probes().fork_server[:-1], str(theirs.fileno())]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as server:
            theirs.close()
            assert b"warm" in ours.recv(1000)
            ours.send(b"\xc1 nonsense")
            ours.close()
            assert server.wait(10) == 0
    assert "not a request" in capfd.readouterr().err
