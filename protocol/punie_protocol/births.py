"""What the supervisor and the fork server say to each other.

One message a packet of a `SOCK_SEQPACKET` pair; with `Bear` go two descriptors, in this order: the
worker's control socket and the writing end of its output pipe. `Born` is sent by the new worker.
"""

from typing import Final

import msgspec

MAX_PACKET: Final = 128 * 1024
"""Bytes of a packet. A larger environment is for a spawned worker."""
DESCRIPTORS: Final = 2


class Birth(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of these messages."""


class Bear(Birth, frozen=True, tag="bear"):
    """Fork a worker with this environment and working directory."""

    id: int
    environment: dict[str, str]
    cwd: str


class Warm(Birth, frozen=True, tag="warm"):
    """The fork server takes requests."""

    pid: int


class Cold(Birth, frozen=True, tag="cold"):
    """The fork server ends: it cannot be forked, and why."""

    reason: str


class Born(Birth, frozen=True, tag="born"):
    """The worker of that request lives; it is a child of the supervisor."""

    id: int
    pid: int


class NotBorn(Birth, frozen=True, tag="not_born"):
    """There is no worker for that request, and why."""

    id: int
    reason: str


type FromForkServer = Warm | Cold | Born | NotBorn

_encoder = msgspec.msgpack.Encoder()
_bear = msgspec.msgpack.Decoder(Bear)
_from_fork_server = msgspec.msgpack.Decoder[FromForkServer](FromForkServer)


def encode(message: Birth) -> bytes:
    """Return the packet of a message."""
    return _encoder.encode(message)


def decode_request(packet: bytes) -> Bear:
    """Return the fork server's message. Raises `msgspec.MsgspecError`."""
    return _bear.decode(packet)


def decode_answer(packet: bytes) -> FromForkServer:
    """Return the supervisor's message. Raises `msgspec.MsgspecError`."""
    return _from_fork_server.decode(packet)
