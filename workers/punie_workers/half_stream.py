"""The stream of one project half, outside: frames of `punie_workers.interp.serve` on a socket."""

import asyncio
import socket
from collections.abc import Callable

from punie_workers.interp import serve


class Stream:
    """Owns `sock` until `close`; never blocks the loop. `on_reply` gets each reply: its status and
    its bytes. What is sent and not taken is kept: whoever sends waits for replies."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_reply: Callable[[int, bytes], object],
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._on_reply = on_reply
        self._unsent = memoryview(b"")
        self._received = bytearray()
        self._finished = False
        self._waits = False
        self._closed = False
        loop.add_reader(sock, self._readable)

    def send(self, request: bytes) -> None:
        """Send a request; the one before must have been answered."""
        self._unsent = memoryview(serve.frame(serve.OK, request))
        self._write()

    def finish(self) -> None:
        """Send no more: after what is unsent comes the end of the stream."""
        self._finished = True
        self._write()

    def close(self) -> None:
        """Take the replies that are there, then close. Idempotent. May be called from another
        thread when the loop is closed: nobody gets a reply then."""
        if self._closed:
            return
        self._closed = True
        if not self._loop.is_closed():
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            while self._receive():
                pass
        self._sock.close()

    def _write(self) -> None:
        """Send what can be sent now, and the rest when it can."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
            if self._finished:
                self._sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            self._loop.add_writer(self._sock, self._write)
            self._waits = True
            return
        except OSError:  # the other side has closed: whoever owns it tells
            self._unsent = memoryview(b"")
        if self._waits:
            self._loop.remove_writer(self._sock)
            self._waits = False

    def _readable(self) -> None:
        if self._receive() == b"" and not self._closed:
            self._loop.remove_reader(self._sock)

    def _receive(self) -> bytes | None:
        """Take what is there, at most a chunk; ``None`` for nothing now, empty at the end."""
        try:
            data = self._sock.recv(serve.CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            return b""
        self._received += data
        while (found := serve.take(self._received)) is not None:
            self._on_reply(*found)
        return data
