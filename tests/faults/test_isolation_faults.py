"""Each of these was a fault of the isolation core once: a test is named by what went wrong."""

import asyncio
import itertools
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from msgspec import Raw

from punie_protocol.client import WorkerStart
from punie_protocol.errors import PunieError
from punie_protocol.interp_codec import encode_request
from punie_protocol.messages.common import Isolation
from punie_supervisor import fork_server, restart_policy, switchboard, usage, worker
from punie_supervisor.child import Child
from punie_supervisor.child_spec import Programs
from punie_supervisor.process import Process
from punie_supervisor.turn import Phase, Turn
from punie_supervisor.worker import Worker
from punie_workers import lifetime
from punie_workers.crumbs import INSIDE
from punie_workers.halves import Abandoned, Halves
from punie_workers.in_place import InPlace
from tests.process.test_supervisor_isolation import (
    SHARED,
    folders,
    opened,
    place,
    project,
)
from tests.support import supervisor_rig
from tests.support.nurseries import end, nursery, probes, worker_spec
from tests.support.supervisor_rig import Failed, alive, eventually

READ = encode_request("read_file", {"path": "a.txt", "start_line": 1, "max_lines": 9})
linux = pytest.mark.skipif(sys.platform != "linux", reason="this is how it works on Linux")


@contextmanager
def frozen(pid: int) -> Generator[None]:
    """Stop a process while the context is open."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


# turns, sessions, projects


def test_a_session_that_opened_too_late_kept_its_worker_for_ever(
    punie_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(switchboard, "OPENING_TIMEOUT", 0.2)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home, idle_s=0.3)
            session = await client.session(tmp_path)
            pid, _ = await place(client, session)
            with frozen(pid), pytest.raises(Failed, match="did not answer session/new"):
                await client.session(tmp_path)
            assert await client.said(session, "say hello") == "hello"
            await eventually(lambda: not alive(pid))

    asyncio.run(scenario())


def test_who_waited_too_long_for_a_project_closed_it_for_who_had_opened_it_anew(
    punie_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(worker, "OPEN_TIMEOUT", 0.5)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home)
            slow, other = folders(tmp_path, "slow", "other")
            pid, _ = await place(client, await client.session(other, SHARED))
            new = {"cwd": str(slow), "mcpServers": []}
            meta = {"punie": {"isolation": SHARED}}
            with frozen(pid):
                first = await client.start("session/new", **new, _meta=meta)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await client.result(first)
                second = await client.start("session/new", **new, _meta=meta)
                with pytest.raises(Failed, match="did not open"):
                    await client.result(first)
            session = await client.session(slow)
            prompt = await client.ask(session, "wait")
            with pytest.raises(Failed, match="did not open"):
                await client.result(second)
            await client.method("session/update")
            await client.send(method="session/cancel", params={"sessionId": session})
            assert (await client.result(prompt))["stopReason"] == "cancelled"

    asyncio.run(scenario())


def test_the_end_of_a_drained_worker_ended_the_background_commands_of_the_next(
    punie_home: Path, tmp_path: Path
):
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home, idle_s=0.3)
            session, other = await client.session(tmp_path), await client.session(tmp_path)
            waiting = await client.ask(other, "wait")
            await client.method("session/update")
            old = int((await client.said(session, "hung")).split()[0])
            new, _ = await place(client, session)
            assert new != old
            await client.answer(session, "programs 1")
            await client.send(method="session/cancel", params={"sessionId": other})
            await client.result(waiting)
            await eventually(lambda: not alive(old))
            assert (await project(client, tmp_path))["programs"] == 1
            assert alive(new)

    asyncio.run(scenario())


def test_a_worker_that_cannot_start_had_every_project_run_alone_from_then_on(
    punie_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model_host = supervisor_rig.PROGRAMS.model_host
    broken = Programs(model_host=model_host, worker=("/bin/false",))
    monkeypatch.setattr(supervisor_rig, "PROGRAMS", broken)
    monkeypatch.setattr(restart_policy, "FIRST_BACKOFF", 0.001)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home)
            with pytest.raises(Failed, match="worker-shared is not running"):
                await client.session(tmp_path, SHARED)
            assert (await project(client, tmp_path))["confined"] == ""

    asyncio.run(scenario())


def test_a_prompt_sent_behind_the_order_to_stop_was_cancelled():
    async def scenario() -> None:
        spec = worker_spec(PUNIE_HOME="/none")
        child = await Child.spawn(spec)
        one = Worker[Turn](1, child, Isolation.PROCESS, itertools.count(1))
        turn = Turn("p", "s", None, Raw(b"{}"))
        one.retire("it drained")
        with pytest.raises(PunieError, match="it drained") as lost:
            one.request("s", "session/prompt", turn.params, turn)
        assert one.pending == {}
        turn.become(Phase.WAITING)
        assert turn.may_resume(lost.value.error)  # so that it goes on in another worker
        await end(child)

    asyncio.run(scenario())


# processes


@linux
def test_a_fork_server_that_was_just_being_started_outlived_the_stop():
    async def scenario() -> None:
        async with nursery(probes()) as made:
            asking = asyncio.create_task(made.spawn(worker_spec()))
            while not made._starting.locked():  # noqa: ASYNC110 (it is so for a moment only)
                await asyncio.sleep(0)
            await made.stop()
            assert made.server_pid is None
            with pytest.raises(OSError, match="no worker is started any more"):
                await asking

    asyncio.run(scenario())


@linux
def test_an_environment_too_large_for_a_packet_counted_as_a_server_that_hangs():
    async def scenario() -> None:
        async with nursery(probes()) as made:
            await made.spawn(worker_spec())
            large = {f"PUNIE_{number}": "x" * 70_000 for number in range(2)}
            child = await made.spawn(worker_spec("worker-2", **large))
            assert child.start is WorkerStart.SPAWN
            assert made._server is not None
            assert made._server._late == 0

    asyncio.run(scenario())


@linux
def test_a_fork_server_that_hangs_was_asked_again_and_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fork_server, "BIRTH_TIMEOUT", 0.2)

    async def scenario() -> None:
        async with nursery(probes()) as made:
            await made.spawn(worker_spec())
            hung = made.server_pid
            assert hung is not None
            with frozen(hung):
                for number in range(2, 2 + fork_server.MAX_LATE):
                    await made.spawn(worker_spec(f"worker-{number}"))
                await eventually(lambda: not alive(hung))
            await made.spawn(worker_spec("worker-9"))
            assert made.server_pid not in (None, hung)

    asyncio.run(scenario())


ADOPTER = """
import asyncio, sys
from punie_supervisor import strays

async def main():
    with strays.adopting():
        strays.sweep()
        async with asyncio.timeout(10):
            while strays._looking is not None:
                await asyncio.sleep(0.001)
        print("swept", flush=True)
        sys.stdin.read()

asyncio.run(main())
"""


@linux
def test_a_child_from_before_the_program_became_the_daemon_was_killed():
    shell = 'setsid sleep 600 & exec "$0" -c "$1"'
    with subprocess.Popen(
        ["sh", "-c", shell, sys.executable, ADOPTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "swept\n"
        children = psutil.Process(daemon.pid).children()
        try:
            assert [child.name() for child in children] == ["sleep"]
        finally:
            for child in children:
                child.kill()
            daemon.kill()


def test_without_pidfd_a_dozen_children_took_every_thread(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)

    async def scenario() -> None:
        ended: list[int] = []
        processes: list[Process] = []
        for number in range(min(32, (os.process_cpu_count() or 1) + 4)):
            process = Process.start(f"p{number}", ["/bin/cat"], environment={}, cwd="/")
            processes.append(process)
            process.watch(ended.append)
            await process.read_output()
        for process in processes[1:]:
            process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(int) == 0
        for process in processes:
            process.send_signal(signal.SIGKILL)
        await eventually(lambda: len(ended) == len(processes))
        for process in processes:
            await process.last_words()

    asyncio.run(scenario())


@linux
def test_what_a_program_shared_with_its_own_fork_was_nobodys_memory():
    program = (
        "import os, time; held = bytearray(os.urandom(1 << 20)) * 100; os.fork();"
        " os.write(1, b'x'); time.sleep(600)"
    )
    wrapper = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"
    with subprocess.Popen([sys.executable, "-c", wrapper], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        for _ in range(2):
            parent.stdout.read(1)
        found = usage.sample(parent.pid)
        for descendant in psutil.Process(parent.pid).children(recursive=True):
            descendant.kill()
        parent.kill()
    assert found.processes == 3
    assert 100 << 20 < found.memory_bytes < 160 << 20  # not nothing, and not twice


# project halves


def test_no_descriptor_for_a_project_half_ended_the_worker_and_its_neighbours(tmp_path: Path):
    async def scenario() -> None:
        halves = Halves(str(tmp_path), Abandoned(lambda: None))
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        held: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limit[1]))
        try:
            with suppress(OSError):
                while True:
                    held.append(os.dup(0))
            with pytest.raises(PunieError, match="cannot be started"):
                await halves.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            for fd in held:
                os.close(fd)
            halves.stop()

    asyncio.run(scenario())


def test_one_lost_interpreter_counted_with_each_try_to_replace_it(tmp_path: Path):
    root = tmp_path / "root"
    root.mkdir()
    left: list[int] = []

    async def scenario() -> None:
        halves = Halves(str(root), Abandoned(lambda: left.append(1)), InPlace)
        await halves.start()
        halves._half.hangs = True
        halves._half._quarantine()
        root.rmdir()
        for _ in range(6):
            with pytest.raises(PunieError):
                await halves.call(READ, dict)
        halves.stop()

    asyncio.run(scenario())
    assert left == []


WORN_OUT = """
import asyncio, sys
from punie_protocol.limits import PROTOCOL
from punie_protocol.messages.common import Limits
from punie_protocol.messages.to_worker import Welcome
from punie_protocol.permissions import PermissionSettings
from punie_protocol.testing.loopback import SUPERVISOR, WORKER, loopback
from punie_workers.halves import MAX_ABANDONED
from punie_workers.worker import Worker

async def main():
    async with loopback(SUPERVISOR, WORKER) as (ours, theirs):
        welcome = Welcome(
            protocol=PROTOCOL, version="1", limits=Limits(), model_socket="none",
            permissions=PermissionSettings(), crumbs=sys.argv[1],
        )
        grounds = Worker(theirs, welcome)._grounds
        grounds.crumbs.crumb(7).enter()
        for _ in range(MAX_ABANDONED + 1):
            grounds.abandoned.add("/root")

asyncio.run(main())
"""


def test_who_was_at_work_when_a_worker_left_by_itself_was_a_suspect(tmp_path: Path):
    from punie_supervisor import crumbs

    file = crumbs.make(tmp_path, 1)
    ended = subprocess.run([sys.executable, "-c", WORN_OUT, str(file)], check=False, timeout=15)
    assert ended.returncode == lifetime.WORN_OUT
    assert INSIDE not in crumbs.take(tmp_path, 1)
