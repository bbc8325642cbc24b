"""A nursery for tests, and what its workers say of themselves."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, override

from punie_protocol.client import WorkerStart
from punie_supervisor.child import Child
from punie_supervisor.child_spec import ChildSpec, Programs, Restart
from punie_supervisor.nursery import Nursery
from tests.support.supervisor_rig import eventually

PROBE = Path(__file__).parent / "fork_probe.py"
ROOT = Path(__file__).parents[2]


def probes(plays: str = "nothing") -> Programs:
    """Return the programs of a nursery whose forked workers are probes."""
    command = (sys.executable, str(PROBE), "--plays", plays, "--control-fd", "{fd}")
    return Programs(fork_server=command)


def worker_spec(id: str = "worker-1", cwd: str = "/", **environment: str) -> ChildSpec:
    """Return the spec of a real worker."""
    shared = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return ChildSpec(
        id=id,
        command=Programs().worker,
        environment=shared | environment,
        restart=Restart.TRANSIENT,
        cwd=cwd,
    )


class Recorded(Nursery):
    """Remembers whom it handed out."""

    def __init__(self, programs: Programs | None, *, way: WorkerStart) -> None:
        super().__init__(programs, way=way)
        self.children: list[Child] = []

    @override
    async def spawn(self, spec: ChildSpec) -> Child:
        self.children.append(await super().spawn(spec))
        return self.children[-1]


@contextlib.asynccontextmanager
async def nursery(
    programs: Programs | None = None, way: WorkerStart = WorkerStart.FORK
) -> AsyncGenerator[Recorded]:
    """Yield a started nursery; at the end its workers are killed and it is closed."""
    made = Recorded(programs, way=way)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
        await end(*made.children)
        await made.close()


async def report(child: Child) -> dict[str, Any]:
    """Return what a probe says of itself."""
    lines = child._process.tail
    return json.loads(await eventually(lambda: next(iter(lines), None)))


async def end(*children: Child) -> None:
    """Kill children and see them out."""
    for child in children:
        child.kill("the test is over")
    await asyncio.gather(*(child.finish() for child in children))
