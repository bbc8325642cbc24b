"""A framed link over a stream socket: the one I/O shell of the codec.

`FrameLink` is an asyncio `BufferedProtocol`; anyio streams cost two to three times the
throughput here. Bounded both ways: it stops reading while `MAX_QUEUED_FRAMES` or
`MAX_QUEUED_BYTES` wait to be taken; a peer that takes nothing for `SEND_TIMEOUT` seconds, or owes
`MAX_QUEUED_BYTES`, is dropped.
"""

import asyncio
import socket
from collections import deque
from typing import Self

import msgspec

from punie_protocol.codec import FrameDecoder, MessageDecoder, encode_frame
from punie_protocol.errors import FrameInvalid, LinkClosed, ProtocolError
from punie_protocol.limits import (
    MAX_QUEUED_BYTES,
    MAX_QUEUED_FRAMES,
    SEND_TIMEOUT,
    WRITE_HIGH_WATER,
)

_READ_BUFFER = 64 * 1024


class FrameLink[M](asyncio.BufferedProtocol):
    """Sends any message, receives messages of one receiver's union.

    Owned by one task for receiving; `send` and `send_nowait` may be called by any task of the
    same loop. `close` is idempotent; after it, and after the peer is gone, sending raises
    `LinkClosed` and receiving ends once what had arrived is taken. A peer that breaks the
    protocol makes `receive` raise that `ProtocolError`, once.
    """

    def __init__(self, decoder: MessageDecoder[M], *, name: str = "peer") -> None:
        self.name = name
        self._decoder = decoder
        self._frames = FrameDecoder()
        self._buffer = bytearray(_READ_BUFFER)
        self._view = memoryview(self._buffer)
        self._received: deque[tuple[M, int]] = deque()
        self._received_bytes = 0
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport | None = None
        self._reading = True
        self._error: ProtocolError | None = None
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @classmethod
    async def over(cls, sock: socket.socket, decoder: MessageDecoder[M], *, name: str) -> Self:
        """Take over a connected stream socket."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(lambda: cls(decoder, name=name), sock=sock)
        return link

    @classmethod
    async def connect(cls, path: str, decoder: MessageDecoder[M], *, name: str) -> Self:
        """Connect to a Unix socket. Raises `OSError` when nobody listens there."""
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(lambda: cls(decoder, name=name), path)
        return link

    async def send(self, message: msgspec.Struct) -> None:
        """Send, waiting while the peer is slow; raises `LinkClosed` when it is gone or takes
        nothing until the deadline. A cancelled `send` has sent its message or nothing of it."""
        self.send_nowait(message)
        if not self._writable.is_set():
            try:
                async with asyncio.timeout(SEND_TIMEOUT):
                    await self._writable.wait()
            except TimeoutError:
                self.abort(f"{self.name} took nothing for {SEND_TIMEOUT:g} s")
        if self._closed.done():
            raise LinkClosed(self._closed.result())

    def send_nowait(self, message: msgspec.Struct) -> None:
        """Send without waiting; raises `LinkClosed`, and drops the peer when it owes too much."""
        transport = self._transport
        if self._closed.done() or transport is None:
            reason = self._closed.result() if self._closed.done() else "not connected"
            raise LinkClosed(reason)
        transport.write(encode_frame(message))
        if transport.get_write_buffer_size() > MAX_QUEUED_BYTES:
            self.abort(f"{self.name} is too slow: {MAX_QUEUED_BYTES} bytes unsent")
            raise LinkClosed(self._closed.result())

    async def receive(self) -> M:
        """Return the next message; raises `LinkClosed` at the end of the stream, a
        `ProtocolError` when the peer broke the protocol. Safe to cancel."""
        while not self._received:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._closed.done():
                raise LinkClosed(self._closed.result())
            self._arrived.clear()
            await self._arrived.wait()
        message, size = self._received.popleft()
        self._received_bytes -= size
        if not self._reading and not self._is_full(0.5):
            self._resume_reading()
        return message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> M:
        """Return the next message; the iteration ends when the link is closed."""
        try:
            return await self.receive()
        except LinkClosed:
            raise StopAsyncIteration from None

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closed.done()

    @property
    def unsent(self) -> int:
        """Bytes sent that the kernel has not taken yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    async def wait_closed(self) -> str:
        """Wait for the end of the link and return its reason."""
        return await asyncio.shield(self._closed)

    def close(self, reason: str = "closed here") -> None:
        """Flush what was sent, then close."""
        self._finish(reason)
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close at once; unsent bytes are lost."""
        self._finish(reason)
        if self._transport is not None:
            self._transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self._frames.feed(self._view[:nbytes])
            for payload in self._frames.payloads():
                self._received.append((self._decoder.decode(payload), len(payload)))
                self._received_bytes += len(payload)
        except ProtocolError as error:
            self._break(error)
        if self._reading and self._is_full(1.0):
            self._pause_reading()
        self._arrived.set()

    def eof_received(self) -> bool:
        try:
            self._frames.finish()
        except ProtocolError as error:
            self._break(error)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(f"{self.name}: {exc}" if exc else f"{self.name} closed the connection")
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _is_full(self, share: float) -> bool:
        frames, size = len(self._received), self._received_bytes
        return frames >= share * MAX_QUEUED_FRAMES or size >= share * MAX_QUEUED_BYTES

    def _break(self, error: ProtocolError) -> None:
        if isinstance(error, FrameInvalid):
            error.add_note(f"received from {self.name}")
        self._error = error
        self.abort(str(error))

    def _finish(self, reason: str) -> None:
        if not self._closed.done():
            self._closed.set_result(reason)
        self._arrived.set()

    def _pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        self._reading = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
