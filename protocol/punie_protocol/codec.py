"""Frames: length-prefixed MessagePack. No I/O here; `punie_protocol.link` owns the sockets.

A frame is 4 bytes, the big-endian length of the payload, then the payload: one message, a
tagged MessagePack map. `FrameDecoder` takes bytes as they arrive, in any pieces.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from punie_protocol.errors import FrameInvalid, FrameTooLarge, FrameTruncated, MessageTooLarge
from punie_protocol.limits import FRAME_HEADER_SIZE, MAX_FRAME

_encoder = msgspec.msgpack.Encoder()


def encode_frame(message: msgspec.Struct, *, limit: int = MAX_FRAME) -> bytearray:
    """Return `message` as one frame. Raises `MessageTooLarge` when it is over `limit` bytes."""
    frame = bytearray(FRAME_HEADER_SIZE)
    _encoder.encode_into(message, frame, FRAME_HEADER_SIZE)
    size = len(frame) - FRAME_HEADER_SIZE
    if size > limit:
        raise MessageTooLarge(type(message).__name__, size, limit)
    frame[:FRAME_HEADER_SIZE] = size.to_bytes(FRAME_HEADER_SIZE)
    return frame


class MessageDecoder[M]:
    """Decodes payloads for one receiver, whose union of messages is `union`."""

    def __init__(self, receiver: str, union: Any) -> None:
        self.receiver = receiver
        self._decode = msgspec.msgpack.Decoder[M](union).decode

    def decode(self, payload: bytes | bytearray | memoryview) -> M:
        """Return the message. Raises `FrameInvalid` for anything else than one whole message."""
        try:
            return self._decode(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise FrameInvalid(self.receiver, str(error)) from None


class FrameDecoder:
    """Cuts a byte stream into payloads.

    After `feed`, iterate `payloads` for every whole frame so far; each payload is an own copy.
    A length over `limit` raises `FrameTooLarge` as soon as the header is there, before a byte of
    the payload is kept. Call `finish` at the end of the stream.
    """

    def __init__(self, *, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take over bytes from the stream."""
        self._buffer += data

    def payloads(self) -> Iterator[bytes]:
        """Yield the payload of each whole frame, oldest first."""
        start = 0
        try:
            while (size := self._size_at(start)) is not None:
                begin = start + FRAME_HEADER_SIZE
                if len(self._buffer) < begin + size:
                    return
                start = begin + size
                yield bytes(memoryview(self._buffer)[begin:start])
        finally:
            if start:
                del self._buffer[:start]

    def finish(self) -> None:
        """Say that the stream ended. Raises `FrameTruncated` when that is inside a frame."""
        if have := len(self._buffer):
            size = self._size_at(0)
            raise FrameTruncated(have, FRAME_HEADER_SIZE + (size or 0))

    def _size_at(self, start: int) -> int | None:
        header = self._buffer[start : start + FRAME_HEADER_SIZE]
        if len(header) < FRAME_HEADER_SIZE:
            return None
        size = int.from_bytes(header)
        if size > self._limit:
            raise FrameTooLarge(size, self._limit)
        return size
