"""The process round the engine: control link, client links, signals. Owns sockets, no logic.

Every request that came in is in `_live` until its `Finished` or `Failed` went out, so the number
of commands that can wait for the engine is bounded.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, assert_never

from punie_model_host.counting import Counting
from punie_model_host.engine_messages import (
    Cancel,
    Died,
    Emission,
    Key,
    LoadCommand,
    ModelIs,
    Submit,
    ToClient,
)
from punie_model_host.engine_thread import EngineThread
from punie_model_host.lifetime import leave, remove_socket
from punie_model_host.log import event
from punie_model_host.watchdog import LOOKS, PROGRESS_DEADLINE, Watchdog
from punie_protocol.codec import MessageDecoder
from punie_protocol.errors import (
    LinkClosed,
    ModelUnavailable,
    Overloaded,
    ProtocolError,
    PunieError,
    WireError,
)
from punie_protocol.handshake import accept_model_client, greet_supervisor, version
from punie_protocol.limits import PROTOCOL
from punie_protocol.link import FrameLink
from punie_protocol.messages.common import Limits, ModelInfo, Role
from punie_protocol.messages.to_model_client import (
    Failed,
    Finished,
    ModelChanged,
    ModelWelcome,
    TokenCount,
    ToModelClient,
)
from punie_protocol.messages.to_model_host import (
    CancelGenerate,
    ClientHello,
    ClientToModelHost,
    ControlToModelHost,
    CountTokens,
    Generate,
    LoadModel,
    Ping,
    Stop,
    Welcome,
)
from punie_protocol.messages.to_supervisor import Load, ModelState, Pong, Ready

MAX_CLIENTS: Final = 128
MAX_LIVE: Final = 65
"""One request under way and 64 that wait."""
_TERM_DEADLINE: Final = 5.0
_LEAVING: Final = 0.5
"""Seconds of a deadline that are kept for the exit itself."""

EXIT_OK: Final = 0
EXIT_START: Final = 1
EXIT_ENGINE: Final = 70
EXIT_ORPHAN: Final = 75

_log = logging.getLogger(__name__)
_control_decoder: MessageDecoder[ControlToModelHost] = MessageDecoder(
    "model host", ControlToModelHost
)
_client_decoder: MessageDecoder[ClientToModelHost] = MessageDecoder("model host", ClientToModelHost)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptions:
    """What the supervisor started this process with. `progress_deadline` is in seconds."""

    control_fd: int
    socket_path: Path
    models_dir: Path
    model: str
    cache_budget: int
    progress_deadline: float = PROGRESS_DEADLINE


@dataclass(slots=True)
class _Client:
    link: FrameLink[ClientToModelHost]
    requests: set[int] = field(default_factory=set)


class Host:
    """One run of the process. `run` returns the exit code; it does not return when the supervisor
    is gone, the process leaves then."""

    def __init__(self, options: HostOptions) -> None:
        self._options = options
        self._clients: dict[int, _Client] = {}
        self._live: set[Key] = set()
        self._links = 0
        self._model: ModelInfo | None = None
        self._failed: WireError | None = None
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._drained = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._counting = Counting()

    async def run(self) -> int:
        """Serve until `Stop`, SIGTERM or the end of the supervisor."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop, "SIGTERM", _TERM_DEADLINE)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # the supervisor decides
        control = socket.socket(fileno=self._options.control_fd)
        self._control = await FrameLink.over(control, _control_decoder, name="supervisor")
        await greet_supervisor(self._control, Role.MODEL_HOST, Welcome)
        listener = _listen(self._options.socket_path)
        self._engine = EngineThread(
            self._options.models_dir, self._options.cache_budget, loop, self._deliver
        )
        self._tell_supervisor(Ready())
        self._spawn(self._read_control())
        self._spawn(self._accept(listener))
        self._engine.start(self._options.model)
        self._spawn(self._watch_engine())
        code = await self._exit
        listener.close()
        self._options.socket_path.unlink(missing_ok=True)
        return code

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.critical("task-died", exc_info=error)
            self._end(EXIT_ENGINE)

    def _end(self, code: int) -> None:
        if not self._exit.done():
            self._exit.set_result(code)

    async def _watch_engine(self) -> None:
        """End the process when the engine hangs; this loop would answer pings for ever."""
        watchdog, deadline = Watchdog(), self._options.progress_deadline
        while True:
            await asyncio.sleep(deadline / LOOKS)
            if watchdog.is_hung(self._engine.progress):
                event(_log, logging.CRITICAL, "engine-hangs", no_token_for_s=deadline)
                self._end(EXIT_ENGINE)
                return

    # supervisor

    async def _read_control(self) -> None:
        try:
            async for message in self._control:
                self._on_control(message)
        except ProtocolError as error:
            event(_log, logging.ERROR, "control-broken", error=error)
        event(_log, logging.WARNING, "supervisor-gone")
        self._options.socket_path.unlink(missing_ok=True)
        leave(EXIT_ORPHAN)

    def _on_control(self, message: ControlToModelHost) -> None:
        match message:
            case Ping(nonce=nonce):
                self._tell_supervisor(Pong(nonce=nonce, busy=len(self._live)))
            case LoadModel(request_id=request_id, model=model):
                self._load(request_id, model)
            case Stop(reason=reason, deadline_s=deadline):
                self._stop(reason, deadline)
            case Welcome():
                event(_log, logging.WARNING, "second-welcome")
            case _:
                assert_never(message)

    def _load(self, request_id: int, model: str) -> None:
        if not self._engine.post(LoadCommand(request_id, model)):
            error = Overloaded(message="the model host's engine takes no commands")
            state = ModelState(
                request_id=request_id,
                state=Load.FAILED,
                name=model,
                model=self._model,
                error=error,
            )
            self._tell_supervisor(state)

    def _tell_supervisor(self, message: Ready | Pong | ModelState) -> None:
        with contextlib.suppress(LinkClosed):  # `_read_control` sees it too, and leaves
            self._control.send_nowait(message)

    def _stop(self, reason: str, deadline_s: float) -> None:
        if not self._stopping:
            self._stopping = True
            event(_log, logging.INFO, "stopping", reason=reason, requests=len(self._live))
            self._spawn(self._wind_down(max(0.0, deadline_s - _LEAVING)))

    async def _wind_down(self, wait_s: float) -> None:
        for key in self._live:
            self._engine.post(Cancel(key))
        if self._live:
            self._drained.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._drained.wait()
        self._engine.quit()
        for client in self._clients.values():
            client.link.close("the model host stops")
        self._end(EXIT_OK)

    # clients

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            if len(self._clients) >= MAX_CLIENTS or self._stopping:
                connection.close()
                continue
            self._links += 1
            self._spawn(self._serve(self._links, connection))

    async def _serve(self, number: int, connection: socket.socket) -> None:
        link = await FrameLink.over(connection, _client_decoder, name=f"client {number}")
        client = self._clients[number] = _Client(link)
        try:
            hello = await accept_model_client(link)
            link.name = f"client {number} (pid {hello.pid})"
            link.send_nowait(self._welcome())
            async for message in link:
                self._on_client(number, client, message)
        except PunieError as error:
            event(_log, logging.WARNING, "client-dropped", client=link.name, reason=error)
        finally:
            del self._clients[number]
            self._cancel_all(number, client)
            link.close("served")

    def _welcome(self) -> ModelWelcome:
        return ModelWelcome(
            protocol=PROTOCOL, version=version(), limits=Limits(), model=self._model
        )

    def _on_client(self, number: int, client: _Client, message: ClientToModelHost) -> None:
        match message:
            case Generate():
                self._submit(Key(number, message.request_id), client, message)
            case CancelGenerate(request_id=request_id):
                if request_id in client.requests:
                    self._cancel(Key(number, request_id), client)
            case CountTokens():
                reply = partial(self._reply_count, client)
                self._counting.take(message, self._model, reply)
            case ClientHello():
                client.link.abort("a second hello")
            case _:
                assert_never(message)

    def _submit(self, key: Key, client: _Client, request: Generate) -> None:
        if key in self._live:
            client.link.abort(f"request id {key.request_id} is in use")
        elif (refusal := self._refusal()) is not None:
            client.link.send_nowait(Failed(request_id=key.request_id, error=refusal))
        else:
            self._live.add(key)
            client.requests.add(key.request_id)
            self._engine.post(Submit(key, request, time.perf_counter()))

    def _refusal(self) -> WireError | None:
        if self._stopping:
            return ModelUnavailable(message="the model host is stopping", hint="try again")
        if len(self._live) >= MAX_LIVE:
            message = f"the model host has {len(self._live)} requests, its limit is {MAX_LIVE}"
            return Overloaded(message=message, hint="try again in a moment")
        return None

    def _cancel(self, key: Key, client: _Client) -> None:
        client.requests.discard(key.request_id)  # one command for each request
        self._engine.post(Cancel(key))

    def _cancel_all(self, number: int, client: _Client) -> None:
        for request_id in list(client.requests):
            self._cancel(Key(number, request_id), client)

    def _reply_count(self, client: _Client, message: TokenCount | Failed) -> None:
        with contextlib.suppress(LinkClosed):  # a client that is gone asked for nothing else
            client.link.send_nowait(message)

    # the engine's emissions

    def _deliver(self, emission: Emission) -> None:
        match emission:
            case ToClient(key, message):
                self._pass_on(key, message)
            case ModelIs(state):
                self._model_is(state)
            case Died(reason):
                event(_log, logging.CRITICAL, "engine-died", reason=reason)
                self._end(EXIT_ENGINE)
            case _:
                assert_never(emission)

    def _pass_on(self, key: Key, message: ToModelClient) -> None:
        client = self._clients.get(key.link)
        if isinstance(message, Finished | Failed):
            self._live.discard(key)
            if client is not None:
                client.requests.discard(key.request_id)
            if not self._live:
                self._drained.set()
        if client is None:
            return
        try:
            client.link.send_nowait(message)
        except LinkClosed:
            self._cancel_all(key.link, client)

    def _model_is(self, state: ModelState) -> None:
        changed = state.model is not None and state.state is Load.READY
        self._model = state.model
        self._tell_supervisor(state)
        if changed and state.model is not None:
            for number, client in list(self._clients.items()):
                self._announce(number, client, ModelChanged(model=state.model))

    def _announce(self, number: int, client: _Client, message: ModelChanged) -> None:
        try:
            client.link.send_nowait(message)
        except LinkClosed:
            self._cancel_all(number, client)


def _listen(path: Path) -> socket.socket:
    """Return a listening socket that only this user can connect to."""
    remove_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(MAX_CLIENTS)
    listener.setblocking(False)
    return listener
