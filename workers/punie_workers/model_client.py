"""The client of the model host: one link for all the agents of this worker process.

It connects when first needed and again after a loss. Requests are told apart by their id. Events
of one request are bounded: an agent that does not take them loses that request, no other.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Final, Self, assert_never

from punie_protocol.codec import MessageDecoder
from punie_protocol.errors import (
    LinkClosed,
    ModelUnavailable,
    Overloaded,
    PunieError,
    RemoteError,
    TimedOut,
)
from punie_protocol.handshake import greet_model_host
from punie_protocol.link import FrameLink
from punie_protocol.messages.common import ModelInfo, Usage
from punie_protocol.messages.to_model_client import (
    Failed,
    Finished,
    ModelChanged,
    ModelWelcome,
    PrefillProgress,
    Refused,
    TextDelta,
    ThinkingDelta,
    TokenCount,
    ToModelClient,
    ToolCall,
)
from punie_protocol.messages.to_model_host import (
    AnyChatMessage,
    CancelGenerate,
    CountTokens,
    Generate,
    ToolSchema,
)

CONNECT_TIMEOUT: Final = 60.0
"""Seconds for the host to accept, and for its first model to be ready: it may be restarting."""
COUNT_TIMEOUT: Final = 20.0

MAX_EVENTS: Final = 65_536
_TURN: Final = 64
"""Events handled in a row before others on the loop get their turn."""
_FIRST_DELAY: Final = 0.05
_MAX_DELAY: Final = 1.0

type StepEvent = PrefillProgress | TextDelta | ThinkingDelta | ToolCall | Finished


class Generation:
    """The answer to one `Generate`, as it comes.

    Iterate it once; it ends after `Finished`. Raises `RemoteError` when the request failed and
    `LinkClosed` when the host went away. `cancel` is idempotent and may be called at any time.
    `spent` is what a request that failed had used; that of a complete answer is in `Finished`.
    """

    def __init__(self, connection: _Connection, request: Generate) -> None:
        self.request_id = request.request_id
        self.spent = Usage()
        self._connection = connection
        self._events: deque[StepEvent] = deque()
        self._arrived = asyncio.Event()
        self._error: PunieError | None = None
        self._over = False

    def __aiter__(self) -> AsyncIterator[StepEvent]:
        return self._iterate()

    async def peek(self) -> None:
        """Wait for the first event. Raises like the iteration when there is none."""
        await self._wait()

    def cancel(self) -> None:
        """Tell the host to stop and take nothing more."""
        if not self._over:
            self._connection.cancel(self.request_id)
        self._finish(None)

    async def _iterate(self) -> AsyncIterator[StepEvent]:
        taken = 0
        while await self._wait():
            event = self._events.popleft()
            yield event
            if isinstance(event, Finished):
                return
            taken += 1
            if taken % _TURN == 0:
                await asyncio.sleep(0)

    async def _wait(self) -> bool:
        while not self._events:
            if self._error is not None:
                raise self._error
            if self._over:
                return False
            self._arrived.clear()
            await self._arrived.wait()
        return True

    # the connection's side

    def deliver(self, event: StepEvent) -> None:
        """Take an event."""
        if isinstance(event, Finished):
            self._over = True
        elif len(self._events) >= MAX_EVENTS:
            message = f"request {self.request_id}: {MAX_EVENTS} events wait for their agent"
            self.cancel()
            self._error = PunieError(Overloaded(message=message))
        self._events.append(event)
        self._arrived.set()

    def fail(self, error: PunieError) -> None:
        """End with `error`."""
        self._finish(error)

    def _finish(self, error: PunieError | None) -> None:
        if not self._over:
            self._over = True
            self._error = error
        self._connection.forget(self.request_id)
        self._arrived.set()


class _Count:
    """The answer to one `CountTokens`, to come."""

    def __init__(self) -> None:
        self.tokens: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def answer(self, tokens: int) -> None:
        """Take the answer."""
        if not self.tokens.done():
            self.tokens.set_result(tokens)

    def fail(self, error: PunieError) -> None:
        """End with `error`."""
        if not self.tokens.done():
            self.tokens.set_exception(error)
            self.tokens.exception()  # nobody may be waiting any more


class _Connection:
    """One link and the requests on it."""

    def __init__(self, link: FrameLink[ToModelClient], model: ModelInfo | None) -> None:
        self.link = link
        self.model = model
        self.changed = asyncio.Event()
        self._requests: dict[int, Generation | _Count] = {}
        self._reader = asyncio.create_task(self._read(), name="model-host")

    @classmethod
    async def open(cls, path: str) -> Self:
        link = await FrameLink.connect(
            path, MessageDecoder("model client", ToModelClient), name="model host"
        )
        try:
            welcome = await greet_model_host(link)
        except BaseException:
            link.abort("handshake failed")
            raise
        return cls(link, welcome.model)

    async def send(self, request: Generate) -> Generation:
        generation = Generation(self, request)
        self._requests[request.request_id] = generation
        try:
            await self.link.send(request)
        except BaseException:
            self.forget(request.request_id)
            raise
        return generation

    async def count(self, request: CountTokens) -> int:
        counted = self._requests[request.request_id] = _Count()
        try:
            await self.link.send(request)
            return await counted.tokens
        finally:
            self.forget(request.request_id)

    def cancel(self, request_id: int) -> None:
        if not self.link.is_closed:
            self.link.send_nowait(CancelGenerate(request_id=request_id))

    def forget(self, request_id: int) -> None:
        self._requests.pop(request_id, None)

    def close(self) -> None:
        self.link.close()
        self._reader.cancel()

    async def _read(self) -> None:
        error: PunieError = LinkClosed("model host")
        try:
            for taken in itertools.count(1):
                self._take(await self.link.receive())
                if taken % _TURN == 0:
                    await asyncio.sleep(0)
        except PunieError as reason:
            error = reason if isinstance(reason, LinkClosed) else LinkClosed(str(reason))
        finally:
            self.changed.set()
            for request in list(self._requests.values()):
                request.fail(error)

    def _take(self, message: ToModelClient) -> None:
        match message:
            case TextDelta() | ThinkingDelta() | ToolCall() | PrefillProgress() | Finished():
                if isinstance(request := self._requests.get(message.request_id), Generation):
                    request.deliver(message)
            case Failed(request_id=request_id, error=error, usage=usage):
                if request := self._requests.get(request_id):
                    if isinstance(request, Generation):
                        request.spent = usage
                    request.fail(RemoteError(error))
            case TokenCount(request_id=request_id, tokens=tokens):
                if isinstance(request := self._requests.get(request_id), _Count):
                    request.answer(tokens)
            case ModelChanged(model=model) | ModelWelcome(model=model):
                self.model = model
                self.changed.set()
            case Refused(error=error):
                self.link.abort(error.message)
            case _:
                assert_never(message)


class ModelClient:
    """Requests to the model host at `path`, over one link that is renewed when it is lost."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._ids = itertools.count(1)
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()

    def next_id(self) -> int:
        """Return a request id, unique over all links of this client."""
        return next(self._ids)

    async def model(self) -> ModelInfo:
        """Return the model that answers now. Raises `PunieError` with `ModelUnavailable` when
        there is none within `CONNECT_TIMEOUT` seconds."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                while True:
                    connection = await self._connected()
                    if connection.model is not None:
                        return connection.model
                    connection.changed.clear()
                    if not connection.link.is_closed:
                        await connection.changed.wait()
        except TimeoutError:
            raise _unavailable("has no model ready") from None

    async def generate(self, request: Generate) -> Generation:
        """Send `request` and return its answer to come. Raises `PunieError` when the host cannot
        be reached in time."""
        return await (await self._connected()).send(request)

    async def count(
        self, messages: Sequence[AnyChatMessage], tools: Sequence[ToolSchema] = ()
    ) -> int:
        """Return how many tokens these are for the model that answers now, rendered as for an
        answer. Raises `PunieError`: as the host said, or with `TimedOut` after `COUNT_TIMEOUT`
        seconds."""
        request = CountTokens(request_id=self.next_id(), messages=list(messages), tools=list(tools))
        try:
            async with asyncio.timeout(COUNT_TIMEOUT):
                return await (await self._connected()).count(request)
        except TimeoutError:
            message = f"the model host did not count within {COUNT_TIMEOUT:g} s"
            raise PunieError(TimedOut(message=message, limit_s=COUNT_TIMEOUT)) from None

    def close(self) -> None:
        """Close the link; requests under way end with `LinkClosed`."""
        if self._connection is not None:
            self._connection.close()

    async def _connected(self) -> _Connection:
        async with self._connecting:
            if self._connection is None or self._connection.link.is_closed:
                self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> _Connection:
        delay = _FIRST_DELAY
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                while True:
                    try:
                        return await _Connection.open(self._path)
                    except (OSError, PunieError) as error:
                        if not _is_passing(error):
                            raise
                        await asyncio.sleep(delay)
                        delay = min(2 * delay, _MAX_DELAY)
        except TimeoutError:
            raise _unavailable("does not answer") from None


def _is_passing(error: OSError | PunieError) -> bool:
    """Whether a host that is starting may fail like this: nobody listens, or answers late."""
    return isinstance(error, OSError | LinkClosed) or (
        isinstance(error, PunieError) and isinstance(error.error, TimedOut)
    )


def _unavailable(what: str) -> PunieError:
    message = f"the model host {what} after {CONNECT_TIMEOUT:g} s"
    return PunieError(ModelUnavailable(message=message, hint="see: punie logs"))
