"""A client's connection to the daemon: ACP JSON-RPC over a WebSocket on the Unix socket."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET, Raw
from websockets.asyncio.client import unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from punie_protocol import jsonrpc
from punie_protocol.client import About
from punie_protocol.errors import (
    Internal,
    LinkClosed,
    PunieError,
    RemoteError,
    TooLarge,
)
from punie_protocol.handshake import check_protocol
from punie_protocol.limits import HANDSHAKE_TIMEOUT, MAX_CLIENT_MESSAGE
from punie_supervisor.clients import launch
from punie_supervisor.clients.errors import DaemonSilent, DaemonUnreachable
from punie_supervisor.paths import Paths

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from websockets.asyncio.client import ClientConnection

ANSWER_TIMEOUT: Final = 10.0
"""What the daemon answers itself, it answers within so many seconds."""

_RETRY: Final = 0.05
"""Seconds between two tries to connect to a daemon that is starting."""

CANCEL_REQUEST: Final = "$/cancel_request"

_NO_REASON: Final = "the daemon ended the connection"

type Handler = Callable[[str, Raw], Awaitable[Any]]
"""Takes a method and its params; what it returns answers a request."""


class Client:
    """JSON-RPC both ways on one connection. Made by `connect`, owned by one task group.

    `request` may be called concurrently. Notifications of the daemon go to `handler`, one at a
    time and in order; its requests too, each in a task of its own, which ``$/cancel_request``
    ends. A `PunieError` of the handler answers a request.
    """

    def __init__(self, websocket: ClientConnection, handler: Handler) -> None:
        self._websocket = websocket
        self._handler = handler
        self._ids = itertools.count(1)
        self._waiting: dict[jsonrpc.RpcId, asyncio.Future[Raw]] = {}
        self._asked: dict[jsonrpc.RpcId, asyncio.Task[None]] = {}

    def next_id(self) -> int:
        """Return an id for `request`, for whoever may want to cancel it."""
        return next(self._ids)

    async def request(self, method: str, params: Any = None, *, id: int | None = None) -> Raw:
        """Return the result. Raises `RemoteError` for an error answer, `LinkClosed` when the
        daemon went away. No deadline of its own: wrap it in one."""
        id = self.next_id() if id is None else id
        self._waiting[id] = asyncio.get_running_loop().create_future()
        try:
            await self._send(jsonrpc.request(id, method, params if params is not None else {}))
            return await self._waiting[id]
        finally:
            del self._waiting[id]

    async def call[R](
        self, method: str, params: Any, result: type[R], *, id: int | None = None
    ) -> R:
        """Return the typed result of `request`."""
        return msgspec.json.decode(await self.request(method, params, id=id), type=result)

    async def ask_daemon[R](self, method: str, params: Any, result: type[R]) -> R:
        """Return the typed result of a method that the daemon answers itself. Raises `PunieError`
        like `request`, and with `TimedOut` after `ANSWER_TIMEOUT` seconds."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                return await self.call(method, params, result)
        except TimeoutError:
            raise DaemonSilent(method, ANSWER_TIMEOUT) from None

    async def notify(self, method: str, params: Any) -> None:
        """Send a notification."""
        await self._send(jsonrpc.notification(method, params))

    async def run(self) -> None:
        """Read until the connection ends; then every waiting request gets `LinkClosed`."""
        try:
            async for body in self._websocket:
                await self._dispatch(jsonrpc.decode(body))
        except ConnectionClosed:
            pass  # those who wait are told below
        finally:
            await self._withdraw(list(self._asked))
            reason = self._websocket.close_reason or _NO_REASON
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(LinkClosed(reason))

    async def _dispatch(self, envelope: jsonrpc.Envelope) -> None:
        if envelope.method is UNSET:
            self._answer(envelope)
            return
        params = envelope.params if envelope.params is not UNSET else Raw(b"{}")
        if envelope.id is not UNSET:
            self._begin(envelope.id, envelope.method, params)
        elif envelope.method == CANCEL_REQUEST:
            asked = msgspec.json.decode(params, type=_Withdrawn).request_id
            await self._withdraw([asked])
        else:
            await self._handler(envelope.method, params)

    def _begin(self, id: jsonrpc.RpcId, method: str, params: Raw) -> None:
        task = self._asked[id] = asyncio.create_task(self._handle(id, method, params))
        task.add_done_callback(lambda _: self._asked.pop(id, None))

    async def _handle(self, id: jsonrpc.RpcId, method: str, params: Raw) -> None:
        try:
            try:
                body = jsonrpc.response(id, await self._handler(method, params))
            except PunieError as error:
                body = jsonrpc.failure(id, error.error)
            await self._send(body)
        except LinkClosed:
            return  # `run` tells those who wait

    async def _withdraw(self, ids: list[jsonrpc.RpcId]) -> None:
        """End the questions of those ids that are still open."""
        tasks = [task for id in ids if (task := self._asked.get(id)) is not None]
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    def _answer(self, envelope: jsonrpc.Envelope) -> None:
        future = self._waiting.get(envelope.id) if envelope.id is not UNSET else None
        if future is None or future.done():
            return
        if envelope.error is not UNSET:
            future.set_exception(_remote_error(jsonrpc.decode_error(envelope.error)))
        else:
            future.set_result(envelope.result if envelope.result is not UNSET else Raw(b"null"))

    async def _send(self, body: bytes) -> None:
        if len(body) > MAX_CLIENT_MESSAGE:
            raise PunieError(
                TooLarge(
                    message=f"the question is {len(body)} bytes long, "
                    f"the limit is {MAX_CLIENT_MESSAGE}",
                    hint="give a shorter text, or name a file for Punie to read",
                    limit=MAX_CLIENT_MESSAGE,
                    actual=len(body),
                )
            )
        try:
            await self._websocket.send(body, text=True)
        except ConnectionClosed:
            raise LinkClosed(self._websocket.close_reason or _NO_REASON) from None


@asynccontextmanager
async def connect(paths: Paths, handler: Handler) -> AsyncGenerator[Client]:
    """Connect to the daemon's socket and read in the background while the context is open.

    Waits up to `launch.START_TIMEOUT` seconds for a daemon that is just starting. Raises
    `DaemonUnreachable` when nobody answers, and at its end whatever `handler` raised.
    """
    websocket = await _open(paths)
    client = Client(websocket, handler)
    reader = asyncio.create_task(client.run())
    try:
        yield client
    finally:
        await websocket.close()
        reader.cancel()
        (outcome,) = await asyncio.gather(reader, return_exceptions=True)
        if isinstance(outcome, Exception):
            raise outcome  # of the handler: the reason why the connection ended


async def _open(paths: Paths) -> ClientConnection:
    deadline = asyncio.get_running_loop().time() + launch.START_TIMEOUT
    while True:
        try:
            return await unix_connect(
                str(paths.socket),
                compression=None,
                max_size=2 * MAX_CLIENT_MESSAGE,
                open_timeout=HANDSHAKE_TIMEOUT,
                close_timeout=1,
            )
        except (OSError, InvalidHandshake, EOFError) as error:
            late = asyncio.get_running_loop().time() > deadline
            if late or not launch.is_running(paths):
                missing = isinstance(error, FileNotFoundError)
                reason = "it is not running" if missing else str(error) or type(error).__name__
                raise DaemonUnreachable(paths.socket, reason) from None
        await asyncio.sleep(_RETRY)


async def check_version(client: Client) -> str:
    """Introduce ourselves; return the daemon's version. Raises `VersionMismatch` when it speaks
    another protocol number."""
    params = {"protocolVersion": 1, "clientCapabilities": {}}
    about = await client.ask_daemon("initialize", params, _Initialized)
    check_protocol(about.meta.punie.protocol)
    return about.agent_info.version


class _Withdrawn(msgspec.Struct, rename="camel"):
    request_id: jsonrpc.RpcId


class _AgentInfo(msgspec.Struct):
    version: str = ""


class _Meta(msgspec.Struct):
    punie: About = About()


class _Initialized(msgspec.Struct, rename="camel"):
    agent_info: _AgentInfo = msgspec.field(default_factory=_AgentInfo)
    meta: _Meta = msgspec.field(name="_meta", default_factory=_Meta)


async def ignore(_method: str, _params: Raw) -> None:
    """Handler of a client that expects no notifications."""


def _remote_error(error: jsonrpc.RpcError) -> RemoteError:
    if error.data is not UNSET and error.data.punie is not UNSET:
        meta = error.data.meta
        return RemoteError(error.data.punie, None if meta is UNSET else bytes(meta))
    return RemoteError(Internal(message=f"{error.message} (JSON-RPC {error.code})"))
