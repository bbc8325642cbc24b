"""The process round the engine: control link, client links, signals. Owns sockets, no logic."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, assert_never

from punie_model_host.desk import Desk
from punie_model_host.door.door import Door
from punie_model_host.engine_messages import (
    Closed,
    Died,
    Emission,
    LoadCommand,
    ModelIs,
    StatusIs,
    ToClient,
)
from punie_model_host.engine_thread import EngineThread
from punie_model_host.lifetime import leave, remove_socket
from punie_model_host.log import event
from punie_model_host.ranks import Place, Sharding
from punie_model_host.standalone import (
    DoorPlan,
    log_state,
    refuse_live_socket,
    watch_launcher,
)
from punie_model_host.watchdog import LOOKS, PROGRESS_DEADLINE, Watchdog
from punie_protocol.codec import MessageDecoder
from punie_protocol.engine import EngineSettings
from punie_protocol.errors import (
    InvalidRequest,
    LinkClosed,
    Overloaded,
    ProtocolError,
    PunieError,
)
from punie_protocol.handshake import accept_model_client, greet_supervisor, version
from punie_protocol.limits import PROTOCOL
from punie_protocol.link import FrameLink
from punie_protocol.messages.common import Limits, Role
from punie_protocol.messages.to_model_client import ModelChanged, ModelWelcome, ToModelClient
from punie_protocol.messages.to_model_host import (
    CancelGenerate,
    ClientHello,
    ClientToModelHost,
    CloseDoor,
    ControlToModelHost,
    CountTokens,
    Generate,
    LoadModel,
    OpenDoor,
    Ping,
    Stop,
    Welcome,
)
from punie_protocol.messages.to_supervisor import (
    DoorIs,
    EngineReport,
    Load,
    ModelState,
    Pong,
    Ready,
)

MAX_CLIENTS: Final = 128
_TERM_DEADLINE: Final = 5.0
_LEAVING: Final = 0.5
"""Seconds of a deadline that are kept for the exit itself."""

_ACCEPT_AGAIN: Final = 0.2
"""Seconds until the next attempt to take a connection, when there was no descriptor for one."""

EXIT_OK: Final = 0
EXIT_START: Final = 1
EXIT_ENGINE: Final = 70
EXIT_ORPHAN: Final = 75

type ForSupervisor = Ready | Pong | ModelState | EngineReport | DoorIs

_log = logging.getLogger(__name__)
_control_decoder: MessageDecoder[ControlToModelHost] = MessageDecoder(
    "model host", ControlToModelHost
)
_client_decoder: MessageDecoder[ClientToModelHost] = MessageDecoder("model host", ClientToModelHost)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptions:
    """What this process was started with; `control_fd` by a supervisor, else it stands alone and
    opens `door` itself. `progress_deadline` is in seconds; `cache_dir` is where the prefix cache
    is kept between starts, None for nowhere; `ranks` says that others compute with it, which it
    leads."""

    control_fd: int | None
    socket_path: Path
    models_dir: Path
    model: str
    settings: EngineSettings = field(default_factory=EngineSettings)
    cache_dir: Path | None = None
    progress_deadline: float = PROGRESS_DEADLINE
    door: DoorPlan | None = None
    ranks: tuple[Place, Sharding] | None = None


class _LinkSink:
    """A client's Unix link as the desk sees it."""

    def __init__(self, link: FrameLink[ClientToModelHost]) -> None:
        self._link = link

    def send(self, message: ToModelClient) -> None:
        self._link.send_nowait(message)


class Host:
    """One run of the process. `run` returns the exit code; it does not return when the supervisor
    is gone, the process leaves then. Without one it ends by SIGTERM, SIGINT, and with whoever
    holds the other end of its stdin."""

    def __init__(self, options: HostOptions) -> None:
        self._options = options
        self._control: FrameLink[ControlToModelHost] | None = None
        self._links: set[FrameLink[ClientToModelHost]] = set()
        self._accepted = 0
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._drained = asyncio.Event()
        self._closed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Serve until `Stop`, SIGTERM or the end of the supervisor."""
        loop = asyncio.get_running_loop()
        options = self._options
        if options.control_fd is not None:
            loop.add_signal_handler(signal.SIGINT, lambda: None)  # the supervisor decides
            self._control = await _greet(options.control_fd)
        else:
            refuse_live_socket(options.socket_path)
        listener = _listen(options.socket_path)
        self._engine = EngineThread(
            options.models_dir,
            options.settings,
            options.cache_dir,
            loop,
            self._deliver,
            options.ranks,
        )
        self._desk = Desk(self._engine.post)
        self._desk.drained = self._drained.set
        self._door = Door(self._desk)
        # Before there is anything to stop in order, SIGTERM ends the process by itself.
        if options.ranks is None:
            self._heed_signals()
        if self._control is not None:
            self._tell_supervisor(Ready())
            self._spawn(self._read_control(self._control))
        else:
            self._stand_alone()
        self._spawn(self._accept(listener))
        self._engine.start(options.model)
        self._spawn(self._watch_engine())
        code = await self._exit
        listener.close()
        options.socket_path.unlink(missing_ok=True)
        return code

    def _heed_signals(self) -> None:
        """End in order from now on. While ranks come together nothing of Python runs: not before
        their engine has said something."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop, "SIGTERM", _TERM_DEADLINE)
        if self._control is None:
            loop.add_signal_handler(signal.SIGINT, self._stop, "SIGINT", _TERM_DEADLINE)

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
            if watchdog.is_hung(self._engine.progress if self._desk.live else None):
                event(_log, logging.CRITICAL, "engine-hangs", no_token_for_s=deadline)
                self._end(EXIT_ENGINE)
                return

    # supervisor

    def _stand_alone(self) -> None:
        """There is no supervisor: end with the launcher."""
        watch_launcher(lambda: self._stop("the launcher is gone", _TERM_DEADLINE))

    async def _open_own_door(self, plan: DoorPlan) -> None:
        """Nobody comes in before there is a model: clients take an open door for a ready one."""
        opened = await self._door.obey(plan.request())
        if opened.error is not None:
            event(_log, logging.CRITICAL, "no-door", error=opened.error.message)
            self._end(EXIT_START)

    async def _read_control(self, control: FrameLink[ControlToModelHost]) -> None:
        try:
            async for message in control:
                self._on_control(message)
        except ProtocolError as error:
            event(_log, logging.ERROR, "control-broken", error=error)
        event(_log, logging.WARNING, "supervisor-gone")
        self._options.socket_path.unlink(missing_ok=True)
        leave(EXIT_ORPHAN)

    def _on_control(self, message: ControlToModelHost) -> None:
        match message:
            case Ping(nonce=nonce):
                self._tell_supervisor(Pong(nonce=nonce, busy=self._desk.live))
            case LoadModel():
                self._load(LoadCommand(message.request_id, message.model, message.settings))
            case OpenDoor() | CloseDoor():
                self._spawn(self._move_door(message))
            case Stop(reason=reason, deadline_s=deadline):
                self._stop(reason, deadline)
            case Welcome():
                event(_log, logging.WARNING, "second-welcome")
            case _:
                assert_never(message)

    async def _move_door(self, message: OpenDoor | CloseDoor) -> None:
        self._tell_supervisor(await self._door.obey(message))

    def _load(self, command: LoadCommand) -> None:
        if not self._engine.post(command):
            error = Overloaded(message="the model host's engine takes no commands")
            state = ModelState(
                request_id=command.request_id,
                state=Load.FAILED,
                name=command.model,
                model=self._desk.model,
                error=error,
            )
            self._tell_supervisor(state)

    def _tell_supervisor(self, message: ForSupervisor) -> None:
        if self._control is None:
            self._tell_nobody(message)
            return
        with contextlib.suppress(LinkClosed):  # `_read_control` sees it too, and leaves
            self._control.send_nowait(message)

    def _tell_nobody(self, message: ForSupervisor) -> None:
        if not isinstance(message, ModelState):
            return
        log_state(message)
        match message.state:
            case Load.FAILED if message.model is None:
                self._end(EXIT_START)
            case Load.READY if self._options.door is not None:
                self._spawn(self._open_own_door(self._options.door))
            case _:
                pass

    def _stop(self, reason: str, deadline_s: float) -> None:
        if not self._stopping:
            self._stopping = True
            event(_log, logging.INFO, "stopping", reason=reason, requests=self._desk.live)
            self._spawn(self._wind_down(max(0.0, deadline_s - _LEAVING)))

    async def _wind_down(self, wait_s: float) -> None:
        """End the requests, let the engine save its cache, tell the clients."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        self._desk.cancel_all()
        self._spawn(self._door.close())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                if self._desk.live:
                    self._drained.clear()  # it is set since the first time that nothing was there
                    await self._drained.wait()
                self._engine.quit(max(0.0, deadline - loop.time()))
                await self._closed.wait()
        for link in self._links:
            link.close("the model host stops")
        self._end(EXIT_OK)

    # clients

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptor is free: who has some lets go of them again
                event(_log, logging.ERROR, "accept-failed", error=error)
                await asyncio.sleep(_ACCEPT_AGAIN)
                continue
            if len(self._links) >= MAX_CLIENTS or self._stopping:
                connection.close()
                continue
            self._accepted += 1
            self._spawn(self._serve(connection, f"client {self._accepted}"))

    async def _serve(self, connection: socket.socket, name: str) -> None:
        link = await FrameLink.over(connection, _client_decoder, name=name)
        self._links.add(link)
        number = self._desk.enter(_LinkSink(link))
        try:
            hello = await accept_model_client(link)
            link.name = f"{name} (pid {hello.pid})"
            link.send_nowait(self._welcome())
            async for message in link:
                self._on_client(number, message)
        except PunieError as error:
            event(_log, logging.WARNING, "client-dropped", client=link.name, reason=error)
            if not isinstance(error, LinkClosed):
                link.abort(str(error))
        except Exception:  # noqa: BLE001  a defect ends the link that met it, no other
            _log.exception("link-defect client=%s", link.name)
            link.abort("a defect of the model host; see punie logs")
        finally:
            self._links.discard(link)
            self._desk.leave(number)
            link.close("served")

    def _welcome(self) -> ModelWelcome:
        return ModelWelcome(
            protocol=PROTOCOL, version=version(), limits=Limits(), model=self._desk.model
        )

    def _on_client(self, number: int, message: ClientToModelHost) -> None:
        match message:
            case Generate():
                self._desk.submit(number, message)
            case CancelGenerate(request_id=request_id):
                self._desk.cancel(number, request_id)
            case CountTokens():
                self._desk.count(number, message)
            case ClientHello():
                raise PunieError(InvalidRequest(message="a second hello"))
            case _:
                assert_never(message)

    # the engine's emissions

    def _deliver(self, emission: Emission) -> None:
        match emission:
            case ToClient(key, message):
                self._desk.deliver(key, message)
            case ModelIs():
                self._model_is(emission)
            case StatusIs(status):
                self._desk.status = status
                self._tell_supervisor(EngineReport(engine=status))
            case Closed():
                self._closed.set()
            case Died(reason):
                event(_log, logging.CRITICAL, "engine-died", reason=reason)
                self._end(EXIT_ENGINE)
            case _:
                assert_never(emission)

    def _model_is(self, now: ModelIs) -> None:
        if self._options.ranks is not None:
            self._heed_signals()
        self._desk.model_is(now.facts)
        self._tell_supervisor(now.state)
        model = now.state.model
        if model is not None and now.state.state is Load.READY:
            for link in list(self._links):
                with contextlib.suppress(LinkClosed):  # `_serve` sees it too
                    link.send_nowait(ModelChanged(model=model))


async def _greet(fd: int) -> FrameLink[ControlToModelHost]:
    link = await FrameLink.over(socket.socket(fileno=fd), _control_decoder, name="supervisor")
    await greet_supervisor(link, Role.MODEL_HOST, Welcome)
    return link


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
