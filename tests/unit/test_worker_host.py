"""The worker's host half, without a process: late answers, defects of tools, a slow supervisor."""

import asyncio
import socket
from typing import Any

import pytest

from punie_protocol.client import PromptMeta
from punie_protocol.codec import MessageDecoder
from punie_protocol.errors import Internal, PunieError
from punie_protocol.link import FrameLink
from punie_protocol.messages.common import Isolation
from punie_protocol.messages.to_worker import ToWorker
from punie_protocol.tool_types import Arguments, Result
from punie_protocol.tools import TOOLS
from punie_protocol.tools_files import ListFiles
from punie_workers.code_mode import CodeMode
from punie_workers.ledger import Ledger
from punie_workers.manners import TurnLimits
from punie_workers.outlet import Outlet
from punie_workers.project_tools import ProjectTools
from punie_workers.tool_clock import ToolClock
from punie_workers.turn_tools import TurnTools
from punie_workers.updates import Updates
from tests.support.samples import MODEL


async def linked() -> tuple[FrameLink[ToWorker], socket.socket]:
    ours, theirs = socket.socketpair()
    return await FrameLink.over(ours, MessageDecoder("worker", ToWorker), name="test"), theirs


def test_an_answer_of_the_journal_after_its_deadline_is_dropped() -> None:
    async def main() -> None:
        link, peer = await linked()
        ledger = Ledger(link)
        storing = asyncio.create_task(ledger.trust("p1", "digest"))
        await asyncio.sleep(0)
        (request_id,) = ledger._waiting
        storing.cancel()
        ledger.stored(request_id, None)
        with pytest.raises(asyncio.CancelledError):
            await storing
        ledger.stored(request_id, None)
        assert ledger._waiting == {}
        link.abort("test over")
        peer.close()

    asyncio.run(main())


class _Broken(ProjectTools):
    def __init__(self) -> None:
        pass

    async def read(self, arguments: Arguments) -> Result:
        raise ZeroDivisionError("a defect")


def test_a_defect_of_a_tool_is_told_to_the_model(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        link, peer = await linked()
        updates = Updates(
            "s1", "q1", Outlet(link, "s1"), root="/nowhere", isolation=Isolation.PROCESS
        )
        nobody: Any = None  # a call that reads asks nobody and is kept nowhere
        tools = TurnTools(
            _Broken(),
            CodeMode(),
            nobody,
            nobody,
            updates,
            ToolClock(Isolation.PROCESS, 0.0),
            prompt_id="q1",
            meta=PromptMeta(),
            info=MODEL,
            limits=TurnLimits(),
        )
        told = await tools.call("list_files", {})
        assert told == "error: internal: list_files: ZeroDivisionError: a defect"
        with pytest.raises(PunieError) as nested:
            await tools._run(TOOLS["list_files"], ListFiles(), None)
        assert isinstance(nested.value.error, Internal)
        link.abort("test over")
        peer.close()

    asyncio.run(main())
    assert "ZeroDivisionError" in caplog.text


def test_a_supervisor_that_does_not_read_holds_up_the_tools() -> None:
    """Else the worker would drop its own control link."""

    async def main() -> None:
        link, peer = await linked()
        outlet = Outlet(link, "s1")

        async def flood() -> None:
            for _ in range(80):
                await outlet.send(b"x" * 1024 * 1024)

        flooding = asyncio.create_task(flood())
        taken = 0
        while not flooding.done() or link.unsent:
            assert not link.is_closed
            assert link.unsent < 4 * 1024 * 1024
            await asyncio.sleep(0)
            try:
                taken += len(peer.recv(1024 * 1024, socket.MSG_DONTWAIT))
            except BlockingIOError:
                continue
        await flooding
        assert taken > 70 * 1024 * 1024
        link.abort("test over")
        peer.close()

    asyncio.run(main())
