"""Random kills of the fork server while workers are asked for: each is born, once, and stays.

``PUNIE_KILLS`` is the dose (``make faults N=``).
"""

import asyncio
import os
import random
import signal
import sys

import psutil
import pytest

from punie_protocol.client import WorkerStart
from punie_supervisor.child import Child
from tests.support.nurseries import Recorded, end, nursery, probes, worker_spec
from tests.support.supervisor_rig import alive, eventually

KILLS = int(os.environ.get("PUNIE_KILLS", "3"))
ROUND = 4
SEED = 20

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a fork server is for Linux"),
    pytest.mark.timeout(60 + 20 * KILLS),
]


async def _round(made: Recorded, number: int, chance: random.Random) -> list[Child]:
    """Ask for workers at once; kill the server when some of them, perhaps none, are born."""
    names = [f"worker-{number}-{n}" for n in range(ROUND)]
    asking = [asyncio.create_task(made.spawn(worker_spec(name))) for name in names]
    born = chance.randrange(ROUND)
    await eventually(lambda: made.server_pid and sum(task.done() for task in asking) >= born)
    if (server := made.server_pid) is not None:
        os.kill(server, chance.choice([signal.SIGKILL, signal.SIGTERM]))
    return await asyncio.gather(*asking)


@pytest.mark.parametrize("seed", [SEED])
def test_each_worker_is_born_once_and_outlives_the_server(seed: int):
    chance = random.Random(seed)

    async def scenario() -> None:
        async with nursery(probes()) as made:
            for number in range(KILLS):
                # more would be too many failures for the server to be tried again
                made._policy.forgive()
                made._not_before = 0.0
                children = await _round(made, number, chance)
                assert len({child.pid for child in children}) == ROUND
                assert all(alive(child.pid) for child in children)
                assert {child.start for child in children} <= {WorkerStart.FORK, WorkerStart.SPAWN}
                await end(*children)
                made.children.clear()
            await made.stop()
            await eventually(lambda: not psutil.Process().children())

    asyncio.run(scenario())


def test_a_server_that_keeps_dying_is_given_up_and_workers_are_spawned():
    async def scenario() -> None:
        async with nursery(probes("thread")) as made:
            for number in range(16):
                made._not_before = 0.0
                child = await made.spawn(worker_spec(f"worker-{number}"))
                assert child.start is WorkerStart.SPAWN
                await end(child)
                made.children.clear()
            assert made._server is None
            assert not made._policy.may_start(made._clock())

    asyncio.run(scenario())
