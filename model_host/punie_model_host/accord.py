"""Nothing goes out before every rank has said the same. Pure, but for a lock: ranks are heard in
threads of their own."""

import hashlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from punie_model_host.engine_messages import Emission, ToClient
from punie_protocol.errors import kind_of
from punie_protocol.messages.to_model_client import Failed


class Minutes:
    """What clients are told, turn by turn. Times and reasons are left out where ranks may differ:
    reasons of errors."""

    def __init__(self) -> None:
        self.turn = 0
        self._digest = hashlib.blake2b(digest_size=8)

    def add(self, emission: Emission) -> None:
        """Take note of it if a client is told."""
        if isinstance(emission, ToClient):
            self._digest.update(msgspec.msgpack.encode((emission.key, _told(emission))))

    def close(self) -> bytes:
        """End the turn; return the digest of all so far."""
        self.turn += 1
        return self._digest.digest()


def _told(emission: ToClient) -> object:
    message = emission.message
    return kind_of(message.error) if isinstance(message, Failed) else message


@dataclass(slots=True)
class _Held:
    """A turn of rank 0 that is over: what goes out once the ranks it `waits_for` said `digest`."""

    turn: int
    digest: bytes
    emissions: list[Emission]
    waits_for: set[int]


@dataclass(slots=True)
class Accord:
    """Rank 0's. `release` gets what may go out, in order; `quarrel` a rank that said something
    else, and the turn, and nothing goes out any more."""

    ranks: frozenset[int]
    release: Callable[[Emission], None]
    quarrel: Callable[[int, int], None]
    _minutes: Minutes = field(default_factory=Minutes)
    _now: list[Emission] = field(default_factory=list)
    _held: deque[_Held] = field(default_factory=deque)
    _early: dict[tuple[int, int], bytes] = field(default_factory=dict)
    _broken: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, emission: Emission) -> None:
        """Take what came out of this turn. What no client is told does not wait, unless something
        before it does."""
        with self._lock:
            self._minutes.add(emission)
            if isinstance(emission, ToClient) or self._now or self._held:
                self._now.append(emission)
            elif not self._broken:
                self.release(emission)

    def close_turn(self) -> None:
        """This turn is over here."""
        with self._lock:
            turn = self._minutes.turn
            held = _Held(turn, self._minutes.close(), self._now, set(self.ranks))
            self._now = []
            self._held.append(held)
            for rank in self.ranks:
                if (early := self._early.pop((rank, turn), None)) is not None:
                    self._compare(rank, held, early)
            self._release()

    def heard(self, rank: int, turn: int, digest: bytes) -> None:
        """A rank's turn is over, and it would have told the clients that."""
        with self._lock:
            held = next((held for held in self._held if held.turn == turn), None)
            if held is not None:
                self._compare(rank, held, digest)
            elif turn >= self._minutes.turn:
                self._early[rank, turn] = digest
            else:
                self._break(rank, turn)
            self._release()

    @property
    def apart(self) -> int | None:
        """A number that changes when a turn is over on any rank; None while none is behind."""
        with self._lock:
            waits = sum(len(held.waits_for) for held in self._held)
            ahead = len(self._early)
            return self._minutes.turn * len(self.ranks) - waits + ahead if waits or ahead else None

    def _compare(self, rank: int, held: _Held, digest: bytes) -> None:
        if digest != held.digest:
            self._break(rank, held.turn)
        held.waits_for.discard(rank)

    def _break(self, rank: int, turn: int) -> None:
        if not self._broken:
            self._broken = True
            self.quarrel(rank, turn)

    def _release(self) -> None:
        while self._held and not self._held[0].waits_for and not self._broken:
            for emission in self._held.popleft().emissions:
                self.release(emission)
