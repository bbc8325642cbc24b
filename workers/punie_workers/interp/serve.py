"""The stream of one project half, inside: requests one after the other, each with its reply.

A frame is a status byte, the length of the rest in 4 bytes, the most significant first, and that
rest. The status of a request is `OK`; a reply that is `BROKEN` says how the project half failed.
"""

import os
from typing import Final

from punie_workers.interp import entry

OK: Final = 0
BROKEN: Final = 1
HEAD: Final = 5
"""Bytes before the rest."""

CHUNK: Final = 65_536
"""Bytes read at once."""


def serve(fd: int) -> None:
    """Answer requests on the stream `fd`, the caller's, until its end; then close the project."""
    try:
        while (request := _read(fd)) is not None:
            _write(fd, _answer(request))
    finally:
        entry.close()


def _answer(request: bytes) -> bytes:
    try:
        return frame(OK, entry.handle(request))
    except Exception as error:  # noqa: BLE001 - whatever it is, the host half is told
        return frame(BROKEN, f"{type(error).__name__}: {error}".encode(errors="replace"))


def frame(status: int, rest: bytes) -> bytes:
    """Return a frame. Raises `OverflowError` beyond 4 GB."""
    return bytes((status,)) + len(rest).to_bytes(HEAD - 1) + rest


def take(buffer: bytearray) -> tuple[int, bytes] | None:
    """Take the first frame off `buffer`; ``None`` while it is not whole."""
    if len(buffer) < HEAD:
        return None
    end = HEAD + int.from_bytes(buffer[1:HEAD])
    if len(buffer) < end:
        return None
    status, rest = buffer[0], bytes(memoryview(buffer)[HEAD:end])
    del buffer[:end]
    return status, rest


def _read(fd: int) -> bytes | None:
    """Return the next request, ``None`` at the end of the stream, be it torn."""
    buffer = bytearray()
    while (found := take(buffer)) is None:
        if not (more := os.read(fd, CHUNK)):
            return None
        buffer += more
    return found[1]


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
