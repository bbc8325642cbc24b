"""The worker's host half, without a process: late answers, defects of tools, a slow supervisor."""

import asyncio
import socket

import pytest

from punie_protocol.codec import MessageDecoder
from punie_protocol.errors import Internal, PunieError
from punie_protocol.link import FrameLink
from punie_protocol.messages.to_worker import Stored, ToWorker
from punie_protocol.tools import TOOLS, Arguments, ListFiles, Result
from punie_workers.code_mode import CodeMode
from punie_workers.outlet import Outlet
from punie_workers.tools import ReadTools
from punie_workers.turn_tools import TurnTools
from punie_workers.updates import Updates
from punie_workers.worker import Worker


async def linked() -> tuple[FrameLink[ToWorker], socket.socket]:
    ours, theirs = socket.socketpair()
    return await FrameLink.over(ours, MessageDecoder("worker", ToWorker), name="test"), theirs


def test_an_answer_of_the_journal_after_its_deadline_is_dropped() -> None:
    async def main() -> None:
        link, peer = await linked()
        worker = Worker(link, "/nowhere")
        late = asyncio.get_running_loop().create_future()
        late.cancel()
        worker._storing[1] = late
        worker._take(Stored(request_id=1))
        assert worker._storing == {}
        link.abort("test over")
        peer.close()

    asyncio.run(main())


class _Broken(ReadTools):
    def __init__(self) -> None:
        pass

    async def run(self, arguments: Arguments) -> Result:
        raise ZeroDivisionError("a defect")


def test_a_defect_of_a_tool_is_told_to_the_model(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        link, peer = await linked()
        updates = Updates("s1", "q1", Outlet(link, "s1"))
        tools = TurnTools(_Broken(), CodeMode(), updates, "q1", 1000)
        told = await tools.call("list_files", {})
        assert told == "error: internal: list_files: ZeroDivisionError: a defect"
        with pytest.raises(PunieError) as nested:
            await tools._run(TOOLS["list_files"], ListFiles(), "c1", "p1")
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
