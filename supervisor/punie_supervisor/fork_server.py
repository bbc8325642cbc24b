"""The fork server's end in the supervisor: starts it, asks it for workers, knows when it is gone.

::

    WARMING ──Warm──► WARM ──┐
       └──Cold, ends, late───┴──► GONE

It is asked for many workers at once and answers each request on its own. Whoever waits for it when
it goes is told `OSError`; the workers that it forked go on.
"""

import asyncio
import errno
import itertools
import os
import signal
import socket
from enum import StrEnum
from typing import Final, Self, assert_never

import msgspec

from punie_protocol import births
from punie_protocol.births import Bear, Born, Cold, NotBorn, Warm
from punie_protocol.client import WorkerStart
from punie_supervisor import logs, strays
from punie_supervisor.child import Child, begin
from punie_supervisor.child_spec import ChildSpec
from punie_supervisor.process import Process, describe

WARM_TIMEOUT: Final = 30.0
"""Seconds it may take to import and play everything."""
BIRTH_TIMEOUT: Final = 5.0
"""Seconds it may take to fork a worker."""
MAX_LATE: Final = 2
"""Workers in a row that it may be late with; it hangs then, and is ended."""


class ForkServerState(StrEnum):
    """Where a fork server is in its life."""

    WARMING = "warming"
    WARM = "warm"
    GONE = "gone"


class ForkServer:
    """Owns the process and the socket to it. Used from one event loop."""

    def __init__(self, process: Process, link: socket.socket) -> None:
        self.pid = process.pid
        self.state = ForkServerState.WARMING
        self.failure = ""
        self._process = process
        self._link = link
        self._ids = itertools.count(1)
        self._births: dict[int, asyncio.Future[int]] = {}
        self._late = 0
        self._loop = asyncio.get_running_loop()
        self._settled: asyncio.Future[None] = self._loop.create_future()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._timer = self._loop.call_later(
            WARM_TIMEOUT, self.kill, f"it was not warm within {WARM_TIMEOUT:g} s"
        )
        self._log = logs.get(child="fork-server", pid=self.pid)

    @classmethod
    async def start(cls, spec: ChildSpec) -> Self:
        """Start the process; `warm` waits for it. Raises `OSError`. To be called from the main
        thread."""
        process, link = begin(spec, socket.SOCK_SEQPACKET)
        link.setblocking(False)
        server = cls(process, link)
        process.watch(server._ended)
        await process.read_output()
        server._loop.add_reader(link, server._readable)
        return server

    async def warm(self) -> bool:
        """Wait until that is known: whether it can be asked."""
        await asyncio.shield(self._settled)
        return self.state is ForkServerState.WARM

    async def bear(self, spec: ChildSpec) -> Child:
        """Return a new child of this process, forked there. Raises `OSError` when it is gone, is
        late or cannot; nothing is left then."""
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        with strays.birth():
            try:
                pid = await self._ask(spec, (theirs.fileno(), write))
            except BaseException:
                ours.close()
                os.close(read)
                raise
            finally:
                theirs.close()
                os.close(write)
            process = Process.adopt(spec.id, pid, read)
        return await Child.over(spec, process, ours, WorkerStart.FORK)

    def kill(self, reason: str) -> None:
        """SIGKILL. Idempotent."""
        if not self._process.over:
            self._go(reason)
            self._process.send_signal(signal.SIGKILL)

    async def close(self) -> None:
        """End it and wait for that; the workers it forked go on."""
        self.kill("the nursery closes")
        await asyncio.shield(self._over)
        await self._process.last_words()

    async def _ask(self, spec: ChildSpec, fds: tuple[int, int]) -> int:
        """Return the pid of the new worker."""
        if self.state is not ForkServerState.WARM:
            raise ConnectionError(f"the fork server is {self.state}: {self.failure}")
        id = next(self._ids)
        packet = births.encode(Bear(id=id, environment=spec.environment, cwd=spec.cwd))
        if len(packet) > births.MAX_PACKET:
            raise OSError(errno.EMSGSIZE, f"the environment of {spec.id} is too large to be sent")
        born = self._births[id] = self._loop.create_future()
        try:
            socket.send_fds(self._link, [packet], fds)
            async with asyncio.timeout(BIRTH_TIMEOUT):
                return await born
        except TimeoutError:
            text = f"it forked no worker within {BIRTH_TIMEOUT:g} s"
            self._late += 1
            if self._late >= MAX_LATE:
                self.kill(text)
            raise TimeoutError(f"the fork server: {text}") from None
        finally:
            del self._births[id]
            strays.sweep()  # a worker that comes too late is nobody's

    def _readable(self) -> None:
        try:
            while packet := self._link.recv(births.MAX_PACKET):
                self._take(births.decode_answer(packet))
        except BlockingIOError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            self.kill(f"its link failed: {error}")
            return
        self._go("it closed its link")

    def _take(self, message: births.FromForkServer) -> None:
        match message:
            case Warm():
                self._timer.cancel()
                self.state = ForkServerState.WARM
                self._log.info("fork_server.warm")
                self._settle()
            case Cold(reason=reason):
                self._go(reason)
            case Born(id=id, pid=pid):
                self._late = 0
                if (born := self._births.get(id)) and not born.done():
                    born.set_result(pid)
                else:
                    strays.sweep()
            case NotBorn(id=id, reason=reason):
                if (born := self._births.get(id)) and not born.done():
                    born.set_exception(OSError(f"the fork server: {reason}"))
            case _:
                assert_never(message)

    def _ended(self, code: int) -> None:
        self._readable()  # its last words
        self._go(describe(code))
        self._over.set_result(None)

    def _go(self, reason: str) -> None:
        """Nothing can be asked of it any more. Idempotent; the first reason stays."""
        if self.state is ForkServerState.GONE:
            return
        self.state = ForkServerState.GONE
        self.failure = reason
        self._timer.cancel()
        self._loop.remove_reader(self._link)
        self._link.close()
        self._log.warning("fork_server.gone", reason=reason)
        for born in self._births.values():
            if not born.done():
                born.set_exception(ConnectionError(f"the fork server is gone: {reason}"))
        self._settle()

    def _settle(self) -> None:
        if not self._settled.done():
            self._settled.set_result(None)
