"""The seam between the host half and one project half.

A project half is an own-GIL interpreter that runs `punie_workers.interp`. It is called from a
thread of its own (a call from the process's main thread costs 140-310 us instead of 10), with
`Interpreter.call` of a stateless function (10 us; `exec` would compile each time), and wakes the
loop through its self-pipe. An interpreter cannot be stopped from outside: past its deadline the
half is quarantined, its thread abandoned, and `Halves` opens another one.
"""

import asyncio
import queue
import threading
from concurrent import interpreters
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from punie_protocol import interp_codec
from punie_protocol.errors import Internal, Overloaded, PunieError, TimedOut

MAX_WAITING: Final = 64
START_TIMEOUT: Final = 10.0
CALL_TIMEOUT: Final = 30.0


class HalfState(StrEnum):
    """``NEW`` -> ``RUNNING`` -> ``STOPPED``; from ``RUNNING`` also -> ``QUARANTINED``."""

    NEW = "new"
    RUNNING = "running"
    QUARANTINED = "quarantined"
    STOPPED = "stopped"


_NEXT: Final[dict[HalfState, frozenset[HalfState]]] = {
    HalfState.NEW: frozenset({HalfState.RUNNING, HalfState.QUARANTINED, HalfState.STOPPED}),
    HalfState.RUNNING: frozenset({HalfState.QUARANTINED, HalfState.STOPPED}),
    HalfState.QUARANTINED: frozenset({HalfState.STOPPED}),
    HalfState.STOPPED: frozenset(),
}


class _Call(msgspec.Struct):
    request: bytes
    reply: asyncio.Future[bytes]


class ProjectHalf:
    """One project's interpreter and its thread. Used from one event loop."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.state = HalfState.NEW
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._waiting = 0
        name = f"project-{Path(root).name}"[:15]
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    async def start(self) -> None:
        """Create the interpreter and open the root in it. Raises `PunieError`."""
        self._thread.start()
        self._move(HalfState.RUNNING)
        request = interp_codec.encode_request("open", {"root": self.root})
        await self.call(request, dict, START_TIMEOUT)

    async def call[R](self, request: bytes, result: type[R], deadline: float = CALL_TIMEOUT) -> R:
        """Return the typed reply to `request` within `deadline` seconds of now.

        Raises `PunieError`: `ToolFailed` from the operation, `Overloaded` when too many calls
        wait, `TimedOut` past the deadline, which quarantines the half. A cancelled caller does
        not stop the operation; its reply is dropped.
        """
        self._check()
        reply: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting += 1
        self._queue.put(_Call(request, reply))
        try:
            async with asyncio.timeout(deadline):
                answer = await reply
        except TimeoutError:
            self._move(HalfState.QUARANTINED)
            message = f"the tools of this project gave no answer within {deadline:g} s"
            raise PunieError(TimedOut(message=message, limit_s=deadline)) from None
        return interp_codec.decode_reply(answer, result)

    def stop(self) -> None:
        """End the interpreter once the calls so far are done; later ones fail. Does not wait; of
        a quarantined half it may never come to that."""
        if self.state is HalfState.STOPPED:
            return
        self.state = HalfState.STOPPED
        self._queue.put(None)

    def join(self, timeout: float) -> None:
        """Block until the interpreter has ended, `timeout` seconds at most; never on the loop."""
        self._thread.join(timeout)

    def _check(self) -> None:
        if self.state is not HalfState.RUNNING:
            message = f"the tools of this project are {self.state}"
            raise PunieError(Internal(message=message, hint="try again"))
        if self._waiting >= MAX_WAITING:
            message = f"{MAX_WAITING} tool calls of this project wait already"
            raise PunieError(Overloaded(message=message))

    def _move(self, state: HalfState) -> None:
        if state in _NEXT[self.state]:
            self.state = state

    # on the half's own thread

    def _serve(self) -> None:
        try:
            interpreter = interpreters.create()
            interpreter.exec(_bootstrap())
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers are told
            self._refuse(error)
            return
        while (call := self._queue.get()) is not None:
            try:
                outcome: bytes | Exception = interpreter.call(_handle, call.request)
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
                outcome = error
            self._wake(call, outcome)
        interpreter.call(_handle, interp_codec.encode_request("close", {}))
        interpreter.close()

    def _refuse(self, error: Exception) -> None:
        while (call := self._queue.get()) is not None:
            self._wake(call, error)

    def _wake(self, call: _Call, outcome: bytes | Exception) -> None:
        try:
            self._loop.call_soon_threadsafe(self._finish, call, outcome)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    # on the loop

    def _finish(self, call: _Call, outcome: bytes | Exception) -> None:
        self._waiting -= 1
        if call.reply.done():
            return
        if isinstance(outcome, Exception):
            message = f"the project's interpreter failed: {outcome}"
            call.reply.set_exception(PunieError(Internal(message=message)))
        else:
            call.reply.set_result(outcome)


def _bootstrap() -> str:
    """Return the code that makes `punie_workers.interp` importable in a fresh interpreter."""
    here = str(Path(__file__).resolve().parent.parent)
    return f"import sys\nsys.path.insert(0, {here!r})\nimport punie_workers.interp.entry\n"


def _handle(request: bytes) -> bytes:
    """Run inside the interpreter; may use no global of this module."""
    from punie_workers.interp import entry

    return entry.handle(request)
