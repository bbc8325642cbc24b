"""One child process: spawn, control link, output, end. Policy is `keeper`'s.

::

    STARTING ──Ready──► READY ──stop──► STOPPING ──► ENDED
        └────────────stop──────────────────▲    any ──► ENDED

Alive is not ready: READY comes by message.
"""

import asyncio
import signal
import socket
from enum import StrEnum
from typing import Final, Self

import msgspec

from punie_protocol.client import WorkerStart
from punie_protocol.codec import MessageDecoder
from punie_protocol.errors import LinkClosed
from punie_protocol.link import FrameLink
from punie_protocol.messages.to_supervisor import ToSupervisor
from punie_supervisor import logs
from punie_supervisor.child_spec import ChildSpec
from punie_supervisor.process import PIPE_GRACE, Process, describe

TERM_GRACE: Final = 0.5
"""Seconds from SIGTERM to SIGKILL, the tail of the spec's `shutdown_s`."""
LINK_GRACE: Final = 0.5
"""A child that closed its control link is killed after so many seconds."""

_decoder = MessageDecoder[ToSupervisor]("the supervisor", ToSupervisor)


class ChildState(StrEnum):
    """Where a child is in its life."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    ENDED = "ended"


_TRANSITIONS: Final = {
    ChildState.STARTING: {ChildState.READY, ChildState.STOPPING, ChildState.ENDED},
    ChildState.READY: {ChildState.STOPPING, ChildState.ENDED},
    ChildState.STOPPING: {ChildState.ENDED},
    ChildState.ENDED: set(),
}


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """How a child ended. `code` is negative for a signal; `reason` is a line for a person."""

    pid: int
    code: int
    reason: str
    asked: bool

    @property
    def failed(self) -> bool:
        """Whether that was not a clean end."""
        return self.code != 0


def begin(spec: ChildSpec, kind: socket.SocketKind) -> tuple[Process, socket.socket]:
    """Start a process of `spec` and return it with our end of its control socket, the caller's to
    close. Raises `OSError`, and then nothing is left. To be called from the main thread, see
    `Process.start`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with theirs:
        try:
            process = Process.start(
                spec.id,
                spec.argv(theirs.fileno()),
                environment=spec.environment,
                cwd=spec.cwd,
                pass_fds=(theirs.fileno(),),
            )
        except BaseException:
            ours.close()
            raise
    return process, ours


class Child:
    """Owns one process, its group, its control link and its output.

    `link` is received from by one task; when that ends, await `finish`.
    """

    def __init__(self, spec: ChildSpec, process: Process, start: WorkerStart) -> None:
        self.spec = spec
        self.pid = process.pid
        self.state = ChildState.STARTING
        self.start = start
        self.link: FrameLink[ToSupervisor]
        self._process = process
        self._reason = ""
        self._ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.log = logs.get(child=spec.id, pid=self.pid)

    @classmethod
    async def spawn(cls, spec: ChildSpec, decoder: MessageDecoder[ToSupervisor] = _decoder) -> Self:
        """Start the process. Raises `OSError` when the program cannot be run.

        To be called from the main thread, see `Process.start`.
        """
        process, control = begin(spec, socket.SOCK_STREAM)
        return await cls.over(spec, process, control, WorkerStart.SPAWN, decoder)

    @classmethod
    async def over(
        cls,
        spec: ChildSpec,
        process: Process,
        control: socket.socket,
        start: WorkerStart,
        decoder: MessageDecoder[ToSupervisor] = _decoder,
    ) -> Self:
        """Take over a process that has just begun, and our end of its control link."""
        child = cls(spec, process, start)
        process.watch(child._over)
        try:
            name = f"{spec.id} (pid {child.pid})"
            child.link = await FrameLink.over(control, decoder, name=name)
            await process.read_output()
        except BaseException:
            child.send_signal(signal.SIGKILL)
            raise
        return child

    def rename(self, spec: ChildSpec, start: WorkerStart) -> None:
        """Be the child of another spec, of the same program, from now on."""
        self.spec = spec
        self.start = start
        self.log = logs.get(child=spec.id, pid=self.pid)
        self.link.name = f"{spec.id} (pid {self.pid})"
        self._process.rename(spec.id)

    def become(self, state: ChildState) -> None:
        """Change state; an edge that the table lacks is a defect."""
        assert state in _TRANSITIONS[self.state], (self.state, state)
        self.state = state

    async def stop(self, message: msgspec.Struct, reason: str) -> Exit:
        """Ask by `message`, then SIGTERM, then SIGKILL; ended within `shutdown_s` + 0.1 s."""
        if self.state in (ChildState.STARTING, ChildState.READY):
            self.become(ChildState.STOPPING)
            self._reason = reason
        try:
            self.link.send_nowait(message)
        except LinkClosed:
            self.send_signal(signal.SIGTERM)
        if not await self._ends_within(max(0.0, self.spec.shutdown_s - TERM_GRACE)):
            self.send_signal(signal.SIGTERM)
        if not await self._ends_within(min(TERM_GRACE, self.spec.shutdown_s)):
            self.send_signal(signal.SIGKILL)
        return await asyncio.shield(self._ended)

    def kill(self, reason: str) -> None:
        """SIGKILL to the whole group now. Idempotent; `finish` tells when it is over."""
        if self.state is not ChildState.ENDED:
            self._reason = self._reason or reason
            self.log.warning("child.killed", reason=reason)
            self.send_signal(signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the whole process group, unless it has ended."""
        self._process.send_signal(number)

    async def finish(self) -> Exit:
        """Return how it ended; one that lives on without its link is killed after `LINK_GRACE`."""
        if self.link.is_closed and not await self._ends_within(LINK_GRACE):
            self.kill("it closed its control link")
        exit = await asyncio.shield(self._ended)
        await self._process.last_words()
        self.close_link()
        return exit

    async def _ends_within(self, seconds: float) -> bool:
        await asyncio.wait([self._ended], timeout=seconds)
        return self._ended.done()

    def _over(self, code: int) -> None:
        asked = self.state is ChildState.STOPPING
        self.become(ChildState.ENDED)
        reason = self._reason or describe(code)
        self._ended.set_result(Exit(pid=self.pid, code=code, reason=reason, asked=asked))
        # What it said last is still in the socket; a grandchild may hold the other end open.
        asyncio.get_running_loop().call_later(PIPE_GRACE, self.close_link)

    def close_link(self) -> None:
        """Close the control link, if it is open."""
        if not self.link.is_closed:
            self.link.close("the process ended")
