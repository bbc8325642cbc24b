"""One child process: spawn, control link, output, end. Policy is `keeper`'s.

::

    STARTING ──Ready──► READY ──stop──► STOPPING ──► ENDED
        └────────────stop──────────────────▲    any ──► ENDED

Alive is not ready: READY comes by message. The end is noticed through a pidfd, and whatever the
child left in its process group is killed while its pid is still reserved.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from enum import StrEnum
from typing import Final, Self

import msgspec

from punie_protocol.codec import MessageDecoder
from punie_protocol.errors import LinkClosed
from punie_protocol.link import FrameLink
from punie_protocol.messages.to_supervisor import ToSupervisor
from punie_supervisor import logs
from punie_supervisor.child_spec import ChildSpec

TERM_GRACE: Final = 0.5
"""Seconds from SIGTERM to SIGKILL, the tail of the spec's `shutdown_s`."""
LINK_GRACE: Final = 0.5
"""A child that closed its control link is killed after so many seconds."""
PIPE_GRACE: Final = 0.1
"""After the end, its pipes may be held open by a descendant for so many seconds."""
MAX_LINES: Final = 200
"""Lines of output in one second that reach the log; the rest is counted."""
MAX_LINE: Final = 4096
"""Bytes of a line of output that reach the log."""


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


class Child:
    """Owns one process, its group, its control link and its output.

    `link` is received from by one task; when that ends, await `finish`.
    """

    def __init__(self, spec: ChildSpec, process: subprocess.Popen[bytes]) -> None:
        self.spec = spec
        self.pid = process.pid
        self.state = ChildState.STARTING
        self.link: FrameLink[ToSupervisor]
        self._lines = logs.LineLimit(MAX_LINES, self._output_dropped)
        self._process = process
        self._output_over = asyncio.Event()
        self._output_pipe: asyncio.BaseTransport | None = None
        self._reason = ""
        self._ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.log = logs.get(child=spec.id, pid=self.pid)

    @classmethod
    async def spawn(cls, spec: ChildSpec, decoder: MessageDecoder[ToSupervisor]) -> Self:
        """Start the process. Raises `OSError` when the program cannot be run.

        To be called from the main thread: the children's parent-death signal is bound to it.
        """
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - forked by this very thread, see above
                spec.argv(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                env=spec.environment,
                cwd=spec.cwd,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            os.close(read)
            raise
        finally:
            theirs.close()
            os.close(write)
        child = cls(spec, process)
        child._watch()
        try:
            child.link = await FrameLink.over(ours, decoder, name=f"{spec.id} (pid {child.pid})")
            await child._read_output(read)
        except BaseException:
            child.send_signal(signal.SIGKILL)
            raise
        return child

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
        if self.state is not ChildState.ENDED:
            os.killpg(self.pid, number)

    async def finish(self) -> Exit:
        """Return how it ended; one that lives on without its link is killed after `LINK_GRACE`."""
        if self.link.is_closed and not await self._ends_within(LINK_GRACE):
            self.kill("it closed its control link")
        exit = await asyncio.shield(self._ended)
        await self._last_words()
        return exit

    async def _last_words(self) -> None:
        try:
            async with asyncio.timeout(PIPE_GRACE):
                await self._output_over.wait()
        except TimeoutError:
            self.log.info("child.output_held", detail="a descendant keeps its output open")
        if self._output_pipe is not None:
            self._output_pipe.close()
        self._lines.close()
        self.close_link()

    async def _ends_within(self, seconds: float) -> bool:
        await asyncio.wait([self._ended], timeout=seconds)
        return self._ended.done()

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        if not hasattr(os, "pidfd_open"):
            loop.run_in_executor(None, self._wait_blocking, loop)
            return
        fd = os.pidfd_open(self.pid)

        def over() -> None:
            loop.remove_reader(fd)
            os.close(fd)
            self._over()

        loop.add_reader(fd, over)

    def _wait_blocking(self, loop: asyncio.AbstractEventLoop) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        loop.call_soon_threadsafe(self._over)

    def _over(self) -> None:
        # The pid is a zombie's until `wait`, so its group id cannot be somebody else's.
        # macOS says EPERM for a group of zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        code = self._process.wait()
        asked = self.state is ChildState.STOPPING
        self.become(ChildState.ENDED)
        reason = self._reason or _describe(code)
        self._ended.set_result(Exit(pid=self.pid, code=code, reason=reason, asked=asked))
        # What it said last is still in the socket; a grandchild may hold the other end open.
        asyncio.get_running_loop().call_later(PIPE_GRACE, self.close_link)

    def close_link(self) -> None:
        """Close the control link, if it is open."""
        if not self.link.is_closed:
            self.link.close("the process ended")

    async def _read_output(self, fd: int) -> None:
        pipe = os.fdopen(fd, "rb", buffering=0)
        self._output_pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: _Lines(self._say, self._output_over.set), pipe
        )

    def _say(self, line: str) -> None:
        if self._lines.passes():
            self.log.info("child.output", line=line)

    def _output_dropped(self, lines: int) -> None:
        self.log.warning("child.output_dropped", lines=lines)


def _describe(code: int) -> str:
    if code >= 0:
        return f"it exited with code {code}"
    try:
        return f"it was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"it was ended by signal {-code}"


class _Lines(asyncio.Protocol):
    """Cuts output into lines of at most `MAX_LINE` bytes; the rest of a longer one is dropped."""

    def __init__(self, say: Callable[[str], None], over: Callable[[], None]) -> None:
        self._say = say
        self._over = over
        self._part = bytearray()

    def data_received(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._keep(line)
            self._end()
        self._keep(rest)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._over()

    def _keep(self, data: bytes) -> None:
        self._part += data[: MAX_LINE - len(self._part)]

    def _end(self) -> None:
        if text := self._part.decode("utf-8", "replace").rstrip():
            self._say(text)
        self._part.clear()
