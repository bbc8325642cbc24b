"""Opening and closing the HTTP door. Nothing of HTTP is imported before it is first opened."""

import asyncio
import importlib
import logging
import socket
from typing import TYPE_CHECKING, Final, assert_never

from punie_model_host.door.desks import Desk
from punie_model_host.door.limits import SEND_BUFFER
from punie_model_host.log import event
from punie_protocol.errors import Denied, InvalidRequest, PunieError
from punie_protocol.messages.to_model_host import CloseDoor, OpenDoor
from punie_protocol.messages.to_supervisor import DoorIs

if TYPE_CHECKING:
    from punie_model_host.door.server import Server

ADDRESS: Final = "127.0.0.1"
"""Only this machine can connect."""

_log = logging.getLogger(__name__)


class Door:
    """The door of one desk, closed at first; `port` is None while it is. `open` and `close` wait
    for one another."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.port: int | None = None
        self._server: Server | None = None
        self._key = ""
        self._lock = asyncio.Lock()

    async def obey(self, message: OpenDoor | CloseDoor) -> DoorIs:
        """Do what the supervisor asks, and return the answer to it."""
        error = None
        try:
            match message:
                case OpenDoor(port=port, key=key):
                    await self.open(port, key)
                case CloseDoor():
                    await self.close()
                case _:
                    assert_never(message)
        except PunieError as failure:
            error = failure.error
        return DoorIs(request_id=message.request_id, port=self.port, error=error)

    async def open(self, port: int, key: str) -> int:
        """Serve at `port` (0: any that is free) whoever has `key`; return the port.

        A door that is open already stays as it is when it has that key, and that port or any was
        asked for; else it makes way for the new one. Raises `PunieError` when the port cannot be
        had; what was open stays so then.
        """
        if not key:
            raise PunieError(InvalidRequest(message="the HTTP door needs a key"))
        async with self._lock:
            now = self.port
            if now is not None and key == self._key and port in (0, now):
                return now
            if now == port:
                await self._close()
            listener = _listen(port)
            await self._close()
            self.port = await self._serve(listener, key)
            event(_log, logging.INFO, "door-open", address=ADDRESS, port=self.port)
            return self.port

    async def close(self) -> None:
        """End it; requests under way are cancelled. Idempotent."""
        async with self._lock:
            await self._close()

    async def _serve(self, listener: socket.socket, key: str) -> int:
        try:
            # Imported in a thread: it takes a while, and other requests' tokens should not wait.
            module = await asyncio.to_thread(importlib.import_module, f"{__package__}.server")
            server: Server = module.Server(listener, self._desk, key)
            await server.start()
        except BaseException:
            listener.close()
            raise
        self._server, self._key = server, key
        return listener.getsockname()[1]

    async def _close(self) -> None:
        server, port = self._server, self.port
        self._server = self.port = None
        if server is not None:
            await server.close()
            event(_log, logging.INFO, "door-closed", port=port)


def _listen(port: int) -> socket.socket:
    # With the protocol named: asyncio looks at it before it turns Nagle's algorithm off.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Else the port of a host that was just replaced could not be had for a minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listener.bind((ADDRESS, port))
        listener.listen()
        listener.setblocking(False)
    except PermissionError:
        listener.close()
        error = Denied(message=f"port {port} is the system's", hint="take one from 1024 on")
        raise PunieError(error) from None
    except OSError as error:
        listener.close()
        text = f"port {port} of {ADDRESS} cannot be had: {error.strerror}"
        raise PunieError(InvalidRequest(message=text, hint="take another, or 0 for any")) from None
    return listener
