"""A worker and a scripted host together, with one project and one session."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from punie_protocol.messages.common import Isolation, ModelInfo
from punie_protocol.messages.to_model_host import ToolMessage
from punie_protocol.messages.to_supervisor import ProjectReady
from punie_protocol.testing.script import Call, Reply, Say, reply
from punie_protocol.testing.scripted_host import ScriptedHost
from tests.support.worker_harness import Turn, WorkerHarness


class Case:
    """What a test needs: the `host`, the `worker`, and shortcuts."""

    def __init__(self, host: ScriptedHost, worker: WorkerHarness) -> None:
        self.host = host
        self.worker = worker

    async def tool(
        self, name: str, arguments: dict[str, Any], session_id: str = "s1"
    ) -> tuple[Turn, str]:
        """Have the model call a tool; return the turn and what the model was told."""
        self.host.script = [reply(Call(name, arguments)), reply(Say("done"))]
        turn = await self.worker.prompt("go", session_id)
        told = self.host.requests[-1].messages[-1]
        assert isinstance(told, ToolMessage), told
        return turn, told.text

    async def code(self, code: str, session_id: str = "s1") -> str:
        """Have the model run a program; return what it was told."""
        return (await self.tool("execute_code", {"code": code}, session_id))[1]


@asynccontextmanager
async def running(
    folder: Path,
    root: Path,
    script: Sequence[Reply] = (),
    *,
    model: ModelInfo | None = None,
    isolation: Isolation = Isolation.PROCESS,
) -> AsyncGenerator[Case]:
    """Yield a running case; its socket is in `folder`, its project is `root`."""
    socket = folder / "host.sock"
    async with ScriptedHost(socket, script, model) as host, WorkerHarness(socket) as worker:
        opened = await worker.open_project(root, isolation=isolation)
        assert isinstance(opened, ProjectReady), opened
        await worker.new_session()
        yield Case(host, worker)
