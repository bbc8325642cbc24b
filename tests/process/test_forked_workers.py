"""Real workers from a real fork server, under a keeper."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from punie_protocol.client import WorkerStart
from punie_protocol.handshake import version
from punie_protocol.isolation import WorkerLimits
from punie_protocol.limits import PROTOCOL
from punie_protocol.messages import to_worker
from punie_protocol.messages.common import Isolation, Limits
from punie_protocol.messages.to_supervisor import Pong, ProjectReady, ToSupervisor
from punie_protocol.permissions import PermissionSettings
from punie_supervisor import usage
from punie_supervisor.child import Child, ChildState, Exit
from punie_supervisor.keeper import Dialect, Keeper
from punie_supervisor.watch import Watch
from tests.support.nurseries import Recorded, nursery, worker_spec
from tests.support.supervisor_rig import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a fork server is for Linux")

DIALECT = Dialect(
    welcome=lambda child: to_worker.Welcome(
        protocol=PROTOCOL,
        version=version(),
        limits=Limits(),
        model_socket="/nowhere",
        permissions=PermissionSettings(),
    ),
    ping=lambda nonce: to_worker.Ping(nonce=nonce),
    stop=lambda reason, seconds: to_worker.Stop(reason=reason, deadline_s=seconds),
)


class Inmate:
    """Writes down what a worker says, and how each life of it ends."""

    def __init__(self) -> None:
        self.said: list[ToSupervisor] = []
        self.exits: list[Exit] = []

    def ready(self, child: Child) -> None:
        pass

    def pong(self, child: Child, pong: Pong) -> None:
        pass

    async def message(self, child: Child, message: ToSupervisor) -> None:
        self.said.append(message)

    async def down(self, child: Child, exit: Exit) -> None:
        self.exits.append(exit)


async def opened(made: Recorded, root: Path) -> tuple[Keeper, Inmate, Child]:
    """Return a kept worker with a project open in it."""
    inmate = Inmate()
    keeper = Keeper(worker_spec(), DIALECT, inmate, birth=made.spawn)
    child = await keeper.ready()
    await open_project(child, inmate, root)
    return keeper, inmate, child


async def open_project(child: Child, inmate: Inmate, root: Path) -> None:
    seen = len(inmate.said)
    child.link.send_nowait(
        to_worker.OpenProject(
            project_id="p",
            root=str(root),
            isolation=Isolation.PROCESS,
            client_id="p",
            trusted="",
        )
    )
    await eventually(lambda: len(inmate.said) > seen)
    assert isinstance(inmate.said[-1], ProjectReady), inmate.said[-1]


@pytest.mark.timeout(60)
def test_a_killed_worker_is_noticed_and_replaced_by_a_forked_one(tmp_path: Path):
    async def scenario() -> None:
        async with nursery() as made:
            keeper, inmate, first = await opened(made, tmp_path)
            assert first.start is WorkerStart.FORK
            os.kill(first.pid, signal.SIGKILL)
            await eventually(lambda: keeper.child not in (None, first))
            second = await keeper.ready()
            await open_project(second, inmate, tmp_path)
            assert second.start is WorkerStart.FORK
            assert [(exit.pid, exit.reason) for exit in inmate.exits] == [
                (first.pid, "it was ended by SIGKILL")
            ]
            await keeper.close("over")
            assert inmate.exits[-1].code == 0
            assert inmate.exits[-1].asked

    asyncio.run(scenario())


@pytest.mark.timeout(60)
def test_a_forked_worker_shares_what_the_server_has(tmp_path: Path):
    async def scenario() -> None:
        async with nursery() as made:
            keeper, _, child = await opened(made, tmp_path)
            whole = psutil.Process(child.pid).memory_info().rss
            assert usage.sample(child.pid).memory_bytes < whole / 3
            await keeper.close("over")

    asyncio.run(scenario())


@pytest.mark.timeout(60)
def test_a_worker_over_a_limit_is_ended_and_the_exit_says_so(tmp_path: Path):
    async def scenario() -> None:
        async with nursery() as made:
            keeper, inmate, child = await opened(made, tmp_path)
            watch = Watch(lambda id, reason: keeper.kill(reason), every_s=0.01)
            watch.began("worker-1", child.pid, WorkerLimits(files=256))
            await watch.look()
            assert child.state is ChildState.READY
            found: Any = watch.usage("worker-1")
            assert found.memory_bytes > 1_000_000
            assert found.processes == 1
            watch.began("worker-1", child.pid, WorkerLimits().__replace__(files=1))
            await watch.look()
            await eventually(lambda: inmate.exits)
            assert "open files in one process, over limits.files = 1" in inmate.exits[0].reason
            await keeper.close("over")

    asyncio.run(scenario())
