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
from collections.abc import Callable
from concurrent import interpreters
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from punie_protocol import interp_codec
from punie_protocol.errors import Internal, Overloaded, PunieError
from punie_workers.half_calls import Answer, Call, Deed, DeedState

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


class ProjectHalf:
    """One project's interpreter and its thread. Used from one event loop."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.state = HalfState.NEW
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Call[Any] | None] = queue.SimpleQueue()
        self._waiting = 0
        name = f"project-{Path(root).name}"[:15]
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    async def start(self) -> None:
        """Create the interpreter and open the root in it. Raises `PunieError`."""
        self._thread.start()
        self._move(HalfState.RUNNING)
        request = interp_codec.encode_request("open", {"root": self.root})
        await self.call(request, dict, START_TIMEOUT)

    async def call[R](
        self,
        request: bytes,
        result: type[R],
        deadline: float = CALL_TIMEOUT,
        *,
        deed: Deed | None = None,
        unclaimed: Callable[[R], None] | None = None,
    ) -> R:
        """Return the typed reply to `request` within `deadline` seconds of now.

        Raises `PunieError`: `ToolFailed` from the operation, `Overloaded` when too many calls
        wait, `TimedOut` past the deadline, which quarantines the half. Cancelled or too late, a
        call that has not begun never runs. One that has cannot be stopped: its reply is dropped,
        or given to `unclaimed`, on the loop.

        With a `deed` the call has effects, and the deed tells afterwards whether they happened;
        cancelled after it has begun, this waits for its end, at most until the deadline. When
        that cannot be known, it raises `ToolFailed` of kind ``outcome_unknown``.
        """
        self._check()
        call = Call(request, result, self._loop)
        self._waiting += 1
        self._queue.put(call)
        try:
            await self._wait(call, deadline, deed)
        finally:
            if unclaimed is not None:
                call.give_to(unclaimed)
        return call.value() if deed is None else call.settle(deed)

    async def _wait[R](self, call: Call[R], deadline: float, deed: Deed | None) -> None:
        """Return when the reply is there. Raises `PunieError` past the deadline."""
        ends = self._loop.time() + deadline
        try:
            await asyncio.wait([call.reply], timeout=deadline)
        except asyncio.CancelledError:
            if not call.withdraw() and deed is not None:
                await self._see_out(call, ends, deed)
            raise
        if not call.reply.done():
            self._move(HalfState.QUARANTINED)
            raise call.too_late(deadline, deed)

    async def _see_out[R](self, call: Call[R], ends: float, deed: Deed) -> None:
        """Wait for a call whose caller is cancelled, through further cancellations: the caller
        raises `asyncio.CancelledError` once the truth is known."""
        while not call.reply.done() and (left := ends - self._loop.time()) > 0:
            with suppress(asyncio.CancelledError):
                await asyncio.wait([call.reply], timeout=left)
        if not call.reply.done():
            self._move(HalfState.QUARANTINED)
            deed.state = DeedState.UNKNOWN
            return
        with suppress(PunieError):  # the deed tells
            call.settle(deed)

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
            if not call.begin():
                self._wake(call, b"")
                continue
            try:
                outcome: Answer = interpreter.call(_handle, call.request)
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
                outcome = error
            self._wake(call, outcome)
        interpreter.call(_handle, interp_codec.encode_request("close", {}))
        interpreter.close()

    def _refuse(self, error: Exception) -> None:
        while (call := self._queue.get()) is not None:
            self._wake(call, error)

    def _wake(self, call: Call[Any], outcome: Answer) -> None:
        try:
            self._loop.call_soon_threadsafe(self._finish, call, outcome)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    # on the loop

    def _finish(self, call: Call[Any], outcome: Answer) -> None:
        self._waiting -= 1
        call.reply.set_result(outcome)


def _bootstrap() -> str:
    """Return the code that makes `punie_workers.interp` importable in a fresh interpreter."""
    here = str(Path(__file__).resolve().parent.parent)
    return f"import sys\nsys.path.insert(0, {here!r})\nimport punie_workers.interp.entry\n"


def _handle(request: bytes) -> bytes:
    """Run inside the interpreter; may use no global of this module."""
    from punie_workers.interp import entry

    return entry.handle(request)
