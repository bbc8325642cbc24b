"""What is wanted of the model host's HTTP door, and what is: it outlives the process that has it.

The host opens and closes it; whichever host runs is told what is wanted as soon as it is ready, so
a host that was replaced has it at the same port.
"""

import asyncio
import itertools
from pathlib import Path
from typing import Final

from punie_protocol.engine import DoorStatus
from punie_protocol.errors import (
    LinkClosed,
    ProcessLost,
    PunieError,
    RemoteError,
    TimedOut,
    WireError,
)
from punie_protocol.messages.to_model_host import CloseDoor, OpenDoor
from punie_protocol.messages.to_supervisor import DoorIs
from punie_supervisor import door_key
from punie_supervisor.child import Child

ANSWER_TIMEOUT: Final = 30.0
"""Seconds for the model host to open or close it."""
ADDRESS: Final = "127.0.0.1"


class Door:
    """`key_file` is where its key is. `wanted` is the port it should be open at, 0 for any, None
    for closed: first what the config file says."""

    def __init__(self, key_file: Path, wanted: int | None) -> None:
        self._key_file = key_file
        self.wanted = wanted
        self._port: int | None = None
        self._error: WireError | None = None
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[DoorIs]] = {}
        self._turn = asyncio.Lock()

    def status(self) -> DoorStatus | None:
        """Return its part of the status report; None when nobody wants it."""
        if self.wanted is None and self._port is None:
            return None
        return self._status()

    async def open(self, child: Child, port: int | None) -> DoorStatus:
        """Have the host open it at `port`; with None where it was wanted, else at any.

        Raises `PunieError`: the host's own reason (what was open before stays so), the key's, or
        `TimedOut`. Cancelled, it may be open or not. `open` and `close` wait for one another.
        """
        async with self._turn:
            wanted = port if port is not None else self.wanted or 0
            key = await asyncio.to_thread(door_key.obtain, self._key_file)
            message = OpenDoor(request_id=next(self._ids), port=wanted, key=key)
            answer = await self._ask(child, message)
            if answer.error is not None:
                raise RemoteError(answer.error)
            self.wanted = answer.port
            return self._status()

    async def close(self, child: Child | None) -> DoorStatus:
        """Want it no more; `child` is the host, if one runs. Raises `PunieError`."""
        async with self._turn:
            self.wanted = self._error = None
            if child is not None:
                await self._ask(child, CloseDoor(request_id=next(self._ids)))
            return self._status()

    def ready(self, child: Child) -> None:
        """A host is ready: tell it what is wanted."""
        if self.wanted is None:
            return
        try:
            # A file of forty bytes: a thread would take longer.
            key = door_key.obtain(self._key_file)
        except PunieError as error:
            self._failed(child, error.error)
            return
        message = OpenDoor(request_id=next(self._ids), port=self.wanted, key=key)
        try:
            child.link.send_nowait(message)
        except LinkClosed:
            return  # the next one is told

    def told(self, child: Child, message: DoorIs) -> None:
        """The host said how it is."""
        self._port, self._error = message.port, None
        if message.port is not None and message.error is None and self.wanted is not None:
            self.wanted = message.port
        waiting = self._asked.pop(message.request_id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)  # whoever asked is told of a failure
        elif message.error is not None:
            self._failed(child, message.error)

    def down(self, lost: ProcessLost) -> None:
        """The host ended, and its door with it."""
        self._port = None
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(PunieError(lost))
        self._asked.clear()

    async def _ask(self, child: Child, message: OpenDoor | CloseDoor) -> DoorIs:
        answer = asyncio.get_running_loop().create_future()
        self._asked[message.request_id] = answer
        try:
            child.link.send_nowait(message)
            async with asyncio.timeout(ANSWER_TIMEOUT):
                return await answer
        except TimeoutError:
            text = f"the model host did not say within {ANSWER_TIMEOUT:g} s how its HTTP door is"
            raise PunieError(TimedOut(message=text, limit_s=ANSWER_TIMEOUT)) from None
        finally:
            self._asked.pop(message.request_id, None)

    def _failed(self, child: Child, error: WireError) -> None:
        self._error = error
        child.log.error("door.failed", reason=error.message)

    def _status(self) -> DoorStatus:
        return DoorStatus(
            url="" if self._port is None else f"http://{ADDRESS}:{self._port}/v1",
            key_file=str(self._key_file),
            error=self._error.message if self._error is not None else "",
        )
