"""The desk: requests of all clients on their way to the engine, and the answers on their way back.
For the event loop's thread; nothing here blocks.

Every request that was taken is in `_live` until its `Finished` or `Failed` went out, so the number
of commands that can wait for the engine is bounded.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from punie_model_host.engine_messages import Cancel, Command, Key, Refused, Submit
from punie_model_host.facts import ModelFacts
from punie_model_host.intake import Intake
from punie_protocol.engine import EngineStatus
from punie_protocol.errors import (
    Cancelled,
    InvalidRequest,
    LinkClosed,
    ModelUnavailable,
    Overloaded,
    PunieError,
    WireError,
    kind_of,
)
from punie_protocol.messages.common import ModelInfo
from punie_protocol.messages.to_model_client import Failed, Finished, TokenCount, ToModelClient
from punie_protocol.messages.to_model_host import CountTokens, Generate

if TYPE_CHECKING:
    from punie_model_host.prepare import Prepared

MAX_LIVE: Final = 512
"""Requests under way and waiting, of all clients together."""
MAX_OF_CLIENT: Final = 128
"""Requests of one fairness key."""
MAX_NAME: Final = 128
"""Characters of a fairness key."""
FEW: Final = MAX_LIVE // 2
"""The room of who comes through the HTTP door: the rest is for projects."""
_AGAIN: Final = "try again in a moment"


class Sink(Protocol):
    """Where the messages for one client go."""

    def send(self, message: ToModelClient) -> None:
        """Take a message; never blocks. Raises `LinkClosed` when nobody reads any more."""


class _Place(Enum):
    """Where a live request is."""

    READING = "reading"
    ENGINE = "engine"
    CANCELLED = "cancelled"  # and told to the engine, which still owes the end


@dataclass(slots=True)
class _Live:
    request: Generate
    received: float
    place: _Place
    drop: Callable[[], None] = lambda: None  # what reads it


@dataclass(slots=True)
class _Client:
    sink: Sink
    room: int
    requests: set[int] = field(default_factory=set)


class Desk:
    """Between clients and the engine, whose thread takes commands by `post`."""

    def __init__(self, post: Callable[[Command], bool]) -> None:
        self._post = post
        self._intake = Intake()
        self._clients: dict[int, _Client] = {}
        self._live: dict[Key, _Live] = {}
        self._of_client: Counter[str] = Counter()
        self._numbers = 0
        self._facts: ModelFacts | None = None
        self._stopping = False
        self._moved = time.monotonic()
        self.status: EngineStatus | None = None
        self.drained: Callable[[], None] = lambda: None

    @property
    def live(self) -> int:
        """Requests under way and waiting."""
        return len(self._live)

    @property
    def model(self) -> ModelInfo | None:
        """The model that answers now."""
        return self._facts.info if self._facts else None

    @property
    def quiet_s(self) -> float:
        """Seconds since the engine last said anything of a request, 0 when it has none."""
        return time.monotonic() - self._moved if self._live else 0.0

    # clients

    def enter(self, sink: Sink, room: int = MAX_LIVE) -> int:
        """A client comes; return its number. What it asks is refused while the desk has `room`
        requests, of whomever."""
        self._numbers += 1
        self._clients[self._numbers] = _Client(sink, room)
        return self._numbers

    def leave(self, number: int) -> None:
        """A client goes: everything of it is cancelled."""
        client = self._clients.pop(number)
        for request_id in list(client.requests):
            self._cancel(Key(number, request_id))

    def submit(self, number: int, request: Generate) -> None:
        """Answer a request, through the client's sink; also when it is refused. Raises
        `PunieError` for a request id that is in use."""
        key = Key(number, request.request_id)
        if key in self._live:
            message = f"request id {request.request_id} is in use"
            raise PunieError(InvalidRequest(message=message, hint="use each id once"))
        if (refusal := self._refusal(request, self._clients[number].room)) is not None:
            self._refuse(key, request, refusal)
            return
        if not self._live:
            self._moved = time.monotonic()
        self._live[key] = _Live(request, time.perf_counter(), _Place.READING)
        self._of_client[request.client_id] += 1
        self._clients[number].requests.add(key.request_id)
        if self._facts is None:  # while the first model loads, or for the engine to say why not
            self._hand_on(key, None)
        else:
            live = self._live[key]
            live.drop = self._intake.prepare(
                request, self._facts, lambda got: self._prepared(key, live, got)
            )

    def cancel(self, number: int, request_id: int) -> None:
        """End that request with `Failed` carrying `Cancelled`; nothing when it is over."""
        if request_id in self._clients[number].requests:
            self._cancel(Key(number, request_id))

    def cancel_all(self) -> None:
        """End all requests, and take no more."""
        self._stopping = True
        for key in list(self._live):
            self._cancel(key)

    def close(self) -> None:
        """Let the threads go; nothing is to be submitted any more."""
        self._intake.close()

    def count(self, number: int, request: CountTokens) -> None:
        """Count tokens; the answer goes to the client's sink."""
        id = request.request_id

        def reply(result: int | PunieError) -> None:
            if isinstance(result, int):
                self._tell(number, TokenCount(request_id=id, tokens=result))
            else:
                self._tell(number, Failed(request_id=id, error=result.error))

        if self._facts is None:
            reply(PunieError(ModelUnavailable(message="no model is loaded")))
        else:
            self._intake.count(f"link {number}", request, self._facts, reply)

    # the engine

    def model_is(self, facts: ModelFacts | None) -> None:
        """Another model answers from now on, or none."""
        self._facts = facts

    def deliver(self, key: Key, message: ToModelClient) -> None:
        """Pass on what the engine says of a request."""
        self._moved = time.monotonic()
        if key not in self._live:
            return
        if isinstance(message, Finished | Failed):
            self._over(key)
        self._tell(key.link, message)

    # inside

    def _refusal(self, request: Generate, room: int) -> WireError | None:
        client_id = request.client_id
        if len(client_id) > MAX_NAME:
            message = f"client_id has {len(client_id)} characters, the limit is {MAX_NAME}"
            return InvalidRequest(message=message, hint="use a hash")
        if self._stopping:
            return ModelUnavailable(message="the model host is stopping", hint="try again")
        if len(self._live) >= room:
            message = f"the model host has {len(self._live)} requests, the limit is {room}"
            return Overloaded(message=message, hint=_AGAIN)
        if self._of_client[client_id] >= MAX_OF_CLIENT:
            message = f"this client has {MAX_OF_CLIENT} requests under way, the limit of one"
            return Overloaded(message=message, hint="wait for some of them to end")
        return None

    def _refuse(self, key: Key, request: Generate, error: WireError) -> None:
        self._post(Refused(request.client_id, kind_of(error)))
        self._tell(key.link, Failed(request_id=key.request_id, error=error))

    def _prepared(self, key: Key, live: _Live, result: Prepared | PunieError) -> None:
        if self._live.get(key) is not live:
            return  # cancelled meanwhile, and said to be
        if isinstance(result, PunieError):
            self._over(key)
            self._refuse(key, live.request, result.error)
        else:
            self._hand_on(key, result)

    def _hand_on(self, key: Key, prepared: Prepared | None) -> None:
        live = self._live[key]
        live.place = _Place.ENGINE
        if not self._post(Submit(key, live.request, live.received, prepared)):
            self._over(key)
            message = "the model host's engine takes no commands"
            self._refuse(key, live.request, Overloaded(message=message, hint=_AGAIN))

    def _cancel(self, key: Key) -> None:
        live = self._live[key]
        if live.place is _Place.READING:
            live.drop()  # or who asks and cancels would fill the line
            self._over(key)
            error = Cancelled(message=f"request {key.request_id} was cancelled")
            self._refuse(key, live.request, error)
        elif live.place is _Place.ENGINE:
            live.place = _Place.CANCELLED
            self._post(Cancel(key))

    def _over(self, key: Key) -> None:
        live = self._live.pop(key)
        self._of_client[live.request.client_id] -= 1
        if not self._of_client[live.request.client_id]:
            del self._of_client[live.request.client_id]
        if (client := self._clients.get(key.link)) is not None:
            client.requests.discard(key.request_id)
        if not self._live:
            self.drained()

    def _tell(self, number: int, message: ToModelClient) -> None:
        client = self._clients.get(number)
        if client is None:
            return
        with contextlib.suppress(LinkClosed):  # whoever serves it sees the same, and leaves
            client.sink.send(message)
