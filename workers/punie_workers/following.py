"""Runs a program of the project and hands on what it prints while it does."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import msgspec

from punie_workers import programs
from punie_workers.programs import Program

CHUNK: Final = 256 * 1024
"""Bytes that are taken at once."""
LAST_WORDS: Final = 0.5
"""Seconds to read what is still in a pipe whose program has ended."""


class Ended(msgspec.Struct, frozen=True):
    """How a program that was followed ended; see `programs.Output`."""

    code: int
    complete: bool


async def follow(
    program: Program,
    command: Sequence[str],
    folder: int,
    environment: Mapping[str, str],
    take: Callable[[bytes], None],
    *,
    pass_fds: Sequence[int] = (),
    beside: Callable[[int], Coroutine[Any, Any, None]] | None = None,
) -> Ended:
    """Run `command` as `programs.run` does, and hand what it prints to `take` while it runs, on the
    loop: both streams in the order they come. `beside` is given the process and runs as long; what
    it raises ends the program. What the program leaves behind in its group ends with it. Its limits
    are in `command`."""
    tap = _Tap(take, program.limit)
    try:
        process = await programs.start(program, command, folder, environment, pass_fds, tap.writing)
        tap.begin(process)
        try:
            async with asyncio.timeout(program.timeout):
                return Ended(await _wait(process, tap, beside), tap.complete)
        except TimeoutError:
            raise programs.late(program) from None
        finally:
            await programs.end(process)
    finally:
        tap.close()


async def _wait(
    process: asyncio.subprocess.Process,
    tap: _Tap,
    beside: Callable[[int], Coroutine[Any, Any, None]] | None,
) -> int:
    """Return the status once the program has ended and what it printed is read. A process that it
    put into another group may hold the pipe for ever: that is not waited for."""
    watching = asyncio.ensure_future(beside(process.pid) if beside else asyncio.Event().wait())
    ending = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait([watching, ending], return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
        code = await ending
        programs.kill(process)
        await asyncio.wait([tap.ended], timeout=LAST_WORDS)
        return code
    finally:
        watching.cancel()
        ending.cancel()
        await asyncio.wait([watching, ending])


class _Tap:
    """A pipe: what is written to `writing` goes to `take`, up to `limit` bytes and a chunk."""

    def __init__(self, take: Callable[[bytes], None], limit: int) -> None:
        self.complete = True
        self._loop = asyncio.get_running_loop()
        self.ended = self._loop.create_future()
        self._take = take
        self._left = limit
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)

    def begin(self, process: asyncio.subprocess.Process) -> None:
        """Hand on what `process` writes, which has the other end now; over the limit it ends."""
        os.close(self.writing)
        self.writing = -1
        self._loop.add_reader(self._reading, self._read, process)

    def close(self) -> None:
        """Read no more."""
        self._loop.remove_reader(self._reading)
        for fd in (self._reading, self.writing):
            if fd >= 0:
                os.close(fd)

    def _read(self, process: asyncio.subprocess.Process) -> None:
        try:
            data = os.read(self._reading, CHUNK)
        except BlockingIOError:
            return
        self._left -= len(data)
        if data and self._left >= 0:
            self._take(data)
            return
        if data:
            self.complete = False
            programs.kill(process)
        self._loop.remove_reader(self._reading)
        if not self.ended.done():
            self.ended.set_result(None)
