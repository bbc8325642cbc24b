"""A worker as a child process, and its control link."""

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Self

from punie_protocol.codec import MessageDecoder
from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.handshake import accept_child
from punie_protocol.link import FrameLink
from punie_protocol.messages.to_supervisor import Hello, Ready, ToSupervisor
from punie_protocol.messages.to_worker import Welcome
from punie_protocol.testing.waiting import until, within

type Command = Callable[[int], list[str]]
"""Returns the command line of a worker that is given its end of the control socket as that
descriptor."""


def punie_worker(fd: int) -> list[str]:
    """Return the command line of Punie's own worker."""
    return [sys.executable, "-m", "punie_workers.main", "--control-fd", str(fd)]


class WorkerProcess:
    """One process, from `start` to `end`. Nothing is expected on its standard output, which is a
    pipe; its standard error is ours."""

    def __init__(
        self, process: subprocess.Popen[bytes], link: FrameLink[ToSupervisor], hello: Hello
    ) -> None:
        self.process = process
        self.link = link
        self.hello = hello

    @classmethod
    async def start(cls, command: Command, welcome: Welcome) -> Self:
        """Start a worker and wait until it is ready. Raises `PunieError`, leaving nothing."""
        process, ours = _spawn(command)
        decoder = MessageDecoder[ToSupervisor]("supervisor", ToSupervisor)
        link = await FrameLink[ToSupervisor].over(ours, decoder, name="worker")
        try:
            worker = cls(process, link, await accept_child(link))
            await link.send(welcome)
            message = await within(link.receive(), "Ready of the worker")
            if not isinstance(message, Ready):
                what = type(message).__name__
                raise PunieError(InvalidRequest(message=f"expected Ready, got {what}"))
        except BaseException:
            link.abort("it did not start")
            _reap(process)
            raise
        return worker

    async def ended(self, seconds: float = 5.0) -> int:
        """Return the exit status. Raises `PunieError` when the process lives on."""
        await until(lambda: self.process.poll() is not None, "end of the worker", seconds)
        return self.process.returncode

    def kill(self) -> None:
        """End it as ``kill -9`` does. Does not wait."""
        self.process.kill()

    async def end(self) -> None:
        """Close the link, at which a worker ends, and wait for it; kill it if need be."""
        self.link.abort("the test is over")
        try:
            await self.ended()
        finally:
            _reap(self.process)
            await asyncio.sleep(0)


def _spawn(command: Command) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs, contextlib.ExitStack() as unless_started:
        unless_started.callback(ours.close)
        fd = theirs.fileno()
        process = subprocess.Popen(command(fd), pass_fds=[fd], stdout=subprocess.PIPE)
        unless_started.pop_all()
    return process, ours


def _reap(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
