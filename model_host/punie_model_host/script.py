"""One engine on every rank, and all do the same: rank 0 says what is done, in which order, and
whatever an engine cannot know by itself, the time above all. The others play it after.

All of it goes one way, from rank 0 to the others, which wait for it in their sockets: rank 0 waits
for nobody, but with what clients are told (`accord`).
"""

import logging
import queue
import secrets
import socket
import struct
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from punie_model_host.accord import Accord, Minutes
from punie_model_host.engine_messages import Died, Emission
from punie_model_host.lines import (
    LENGTH,
    MAX_LINE,
    End,
    Hello,
    LeaderLine,
    Name,
    Read,
    Reading,
    Said,
    Turn,
    frame,
    leader_decoder,
    rank_decoder,
)
from punie_model_host.log import event
from punie_model_host.ranks import Place
from punie_model_host.watchdog import LOOKS, PROGRESS_DEADLINE, Watchdog
from punie_model_host.world import RanksFault, World
from punie_protocol.errors import InvalidRequest, PunieError

CONNECT_DEADLINE: Final = 30.0
"""Seconds in which all ranks have to reach rank 0, once they are a group."""
SEND_DEADLINE: Final = 60
"""Seconds that a rank may take nothing while its buffer is full."""
_SECRET: Final = 32
_WAITING: Final = 4096
"""Lines of rank 0 that wait at another rank; then the network makes rank 0 wait."""
_SILENCE: Final = (5, 2, 3)
"""Seconds of silence after which TCP asks whether the other machine is there, seconds between two
questions, and how many without an answer end the connection."""

_log = logging.getLogger(__name__)

type Answer = Reading | Name | Read


class Script(ABC):
    """What an engine asks for while it works. For the engine's thread."""

    @abstractmethod
    def ask[A: Answer](self, kind: type[A], make: Callable[[], A]) -> A:
        """Return what rank 0 made, on all ranks."""

    @abstractmethod
    def out(self, emission: Emission) -> None:
        """Take what the engine says."""

    @abstractmethod
    def close_turn(self) -> None:
        """What was done last is over."""


class Leader(Script):
    """Rank 0's. `out` is called with what goes out, in any thread."""

    def __init__(
        self, links: Mapping[int, socket.socket], deliver: Callable[[Emission], None]
    ) -> None:
        self._links = dict(links)
        self._deliver = deliver
        self._ended = False
        self._accord = Accord(frozenset(links), deliver, self._quarrel)
        for rank, link in links.items():
            listener = threading.Thread(
                target=self._listen, args=(rank, link), name=f"rank-{rank}", daemon=True
            )
            listener.start()
        threading.Thread(target=self._watch, name="ranks-apart", daemon=True).start()

    def say(self, turn: Turn) -> None:
        """Have all ranks do this, which this one does next."""
        self._ended = isinstance(turn, End)
        self._send(turn)

    def ask[A: Answer](self, kind: type[A], make: Callable[[], A]) -> A:
        answer = make()
        self._send(answer)
        return answer

    def out(self, emission: Emission) -> None:
        self._accord.add(emission)

    def close_turn(self) -> None:
        self._accord.close_turn()

    def _send(self, line: LeaderLine) -> None:
        data = frame(line)
        for rank, link in self._links.items():
            try:
                link.sendall(data)
            except OSError as error:
                if not self._ended:
                    raise RanksFault(f"rank {rank} is lost: {error}") from error

    def _listen(self, rank: int, link: socket.socket) -> None:
        reason = "its connection ended"
        try:
            while (body := _receive(link)) is not None:
                line = rank_decoder.decode(body)
                if isinstance(line, Said):
                    self._accord.heard(rank, line.turn, line.digest)
        except (OSError, msgspec.MsgspecError) as error:
            reason = str(error)
        if not self._ended:
            event(_log, logging.CRITICAL, "rank-lost", rank=rank, reason=reason)
            self._deliver(Died(f"rank {rank} is lost: {reason}"))

    def _watch(self) -> None:
        """End all when one rank is done and another is not, for long: it may wait in MLX for what
        nobody sends, because something failed here or there alone."""
        watchdog = Watchdog()
        while not watchdog.is_hung(self._accord.apart):
            time.sleep(PROGRESS_DEADLINE / LOOKS)
        event(_log, logging.CRITICAL, "ranks-apart", seconds=PROGRESS_DEADLINE)
        self._deliver(Died("a rank is not done with what others are done with"))

    def _quarrel(self, rank: int, turn: int) -> None:
        event(_log, logging.CRITICAL, "ranks-differ", rank=rank, turn=turn)
        self._deliver(Died(f"rank {rank} answered otherwise than rank 0 in turn {turn}"))


class Follower(Script):
    """Another rank's. `lost` is called, in another thread, when rank 0 is gone; not after it said
    `End`."""

    def __init__(self, link: socket.socket, lost: Callable[[str], None]) -> None:
        self._link = link
        self._lost = lost
        self._minutes = Minutes()
        self._lines: queue.Queue[LeaderLine] = queue.Queue(_WAITING)
        threading.Thread(target=self._listen, name="rank-0", daemon=True).start()

    def hear(self) -> Turn:
        """Wait for what is done next; for ever, `lost` ends that."""
        line = self._lines.get()
        if isinstance(line, Reading | Name | Read):
            raise _differs(f"rank 0 says {line}, here nothing is asked")
        return line

    def ask[A: Answer](self, kind: type[A], make: Callable[[], A]) -> A:
        line = self._lines.get()
        if not isinstance(line, kind):
            raise _differs(f"rank 0 says {line}, here a {kind.__name__} is asked for")
        return line

    def out(self, emission: Emission) -> None:
        self._minutes.add(emission)

    def close_turn(self) -> None:
        turn = self._minutes.turn
        self._link.sendall(frame(Said(turn, self._minutes.close())))

    def _listen(self) -> None:
        line, reason = None, "its connection ended"
        try:
            while (body := _receive(self._link)) is not None:
                line = leader_decoder.decode(body)
                self._lines.put(line)
        except (OSError, msgspec.MsgspecError, RecursionError) as error:
            reason = str(error)
        if not isinstance(line, End):
            self._lost(reason)


def _differs(reason: str) -> RanksFault:
    return RanksFault(f"the ranks do not do the same: {reason}"[:1000])


# connections


def gather(place: Place, world: World) -> dict[int, socket.socket]:
    """Return the connections of this rank: rank 0's to all others, another's to rank 0. Raises
    `PunieError` when they do not come about within `CONNECT_DEADLINE`."""
    try:
        return _welcome_all(place, world) if place.leads else {0: _report(place, world)}
    except (OSError, msgspec.MsgspecError) as error:
        message = f"rank {place.rank} cannot be connected at {place.leader}: {error}"
        hint = "the first address of rank 0 in the hostfile has to reach it from everywhere"
        raise PunieError(InvalidRequest(message=message, hint=hint)) from error


def _welcome_all(place: Place, world: World) -> dict[int, socket.socket]:
    secret = secrets.token_bytes(_SECRET)
    deadline = time.monotonic() + CONNECT_DEADLINE
    links: dict[int, socket.socket] = {}
    with socket.create_server((place.leader, 0), backlog=world.size) as listener:
        port = listener.getsockname()[1]
        world.from_leader(struct.pack(">H", port) + secret, _SECRET + 2)
        while len(links) < world.size - 1:
            if (left := deadline - time.monotonic()) <= 0:  # strangers may come all the time
                raise TimeoutError("timed out")
            listener.settimeout(left)
            link, _ = listener.accept()
            if (rank := _admitted(link, secret, deadline, world.size, links)) is not None:
                links[rank] = link
    return links


def _admitted(
    link: socket.socket, secret: bytes, deadline: float, size: int, links: Mapping[int, object]
) -> int | None:
    """Return the rank that a connection is of; None, and closed, for a stranger's."""
    link.settimeout(max(0.01, min(5.0, deadline - time.monotonic())))
    try:
        body = _receive(link, len(frame(Hello(2**31, secret))))
        hello = None if body is None else rank_decoder.decode(body)
    except OSError, msgspec.MsgspecError:
        hello = None
    match hello:
        case Hello(rank, told) if (
            secrets.compare_digest(told, secret) and 0 < rank < size and rank not in links
        ):
            _prepare(link)
            return rank
        case _:
            link.close()
            return None


def _report(place: Place, world: World) -> socket.socket:
    told = world.from_leader(b"", _SECRET + 2)
    (port,) = struct.unpack(">H", told[:2])
    link = socket.create_connection((place.leader, port), CONNECT_DEADLINE)
    _prepare(link)
    link.sendall(frame(Hello(place.rank, told[2:])))
    return link


def _prepare(link: socket.socket) -> None:
    """Have it say soon that the other machine is gone, and send small lines at once."""
    link.settimeout(None)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_DEADLINE, 0))
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    first = "TCP_KEEPALIVE" if sys.platform == "darwin" else "TCP_KEEPIDLE"
    for name, value in zip((first, "TCP_KEEPINTVL", "TCP_KEEPCNT"), _SILENCE, strict=True):
        link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _receive(link: socket.socket, most: int = MAX_LINE) -> bytes | None:
    """Return the body of the next frame, None at the end. Raises `OSError`, also for a frame over
    `most` bytes or one that is torn."""
    head = _exactly(link, LENGTH.size)
    if not head:
        return None
    (size,) = LENGTH.unpack(head)
    if size > most:
        raise OSError(f"a frame of {size} bytes, the limit is {most}")
    body = _exactly(link, size)
    if len(body) != size:
        raise OSError("a torn frame")
    return body


def _exactly(link: socket.socket, size: int) -> bytes:
    """Return so many bytes, fewer only when the connection ends at once."""
    data = bytearray()
    while len(data) < size:
        if not (piece := link.recv(min(size - len(data), 1 << 20))):
            break
        data += piece
    if 0 < len(data) < size:
        raise OSError("a torn frame")
    return bytes(data)
