"""The model host: which model is there, waiting for it, switching to another.

Turns share the model, a switch to another has it alone. First come, first served: a switch waits
for the turns under way, and whoever comes behind it waits for the switch, so that neither starves.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final

from punie_protocol.client import ModelStatus, Use, UseReport
from punie_protocol.engine import DoorStatus, EngineSettings, EngineStatus
from punie_protocol.errors import (
    InvalidRequest,
    LinkClosed,
    ModelLoadFailed,
    ModelUnavailable,
    ProcessLost,
    ProtocolError,
    PunieError,
    RemoteError,
    TimedOut,
    WireError,
)
from punie_protocol.handshake import version
from punie_protocol.limits import PROTOCOL
from punie_protocol.messages import to_model_host
from punie_protocol.messages.common import Limits, ModelInfo
from punie_protocol.messages.to_supervisor import (
    DoorIs,
    EngineReport,
    Load,
    ModelState,
    Pong,
    ToSupervisor,
)
from punie_supervisor import drafting, model_text
from punie_supervisor.child import Child, Exit
from punie_supervisor.child_spec import ChildSpec
from punie_supervisor.door import Door
from punie_supervisor.keeper import Dialect, Keeper, KeeperState

LOAD_TIMEOUT: Final = 900.0
"""Seconds after which a prompt stops waiting for its model: for turns before it and the load."""

type Progress = Callable[[str, int, int], None]
"""Told a line for a person, and bytes done of all (0, 0 when not known)."""


class _Loading:
    """A `LoadModel` under way."""

    def __init__(self, model: str, settings: EngineSettings) -> None:
        self.model = model
        self.settings = settings
        self.over = False
        self.error: WireError | None = None


class ModelHost:
    """Keeps the model host; also its keeper's `Inmate`. `asked` is the model as it was asked for:
    the one in use, or being loaded at start; `fallback` is what a prompt that names no model gets
    when nothing is loaded and what was asked for cannot be; `door` is its HTTP door. `settings` are
    the engine's, those in force: the next process begins with them, too."""

    def __init__(
        self,
        make_spec: Callable[[str, EngineSettings], ChildSpec],
        model: str,
        settings: EngineSettings,
        fallback: str | None = None,
        *,
        door: Door,
    ) -> None:
        self.asked = model
        self.settings = settings
        self.door = door
        self._fallback = fallback
        self._make_spec = make_spec
        self._state: ModelState | None = None
        self._engine: EngineStatus | None = None
        self._loads: dict[int, _Loading] = {}
        self._ids = itertools.count(1)
        self._turns = 0
        self._line: deque[object] = deque()
        self._changed = asyncio.Event()
        dialect = Dialect(
            welcome=lambda _: to_model_host.Welcome(
                protocol=PROTOCOL, version=version(), limits=Limits()
            ),
            ping=lambda nonce: to_model_host.Ping(nonce=nonce),
            stop=lambda reason, seconds: to_model_host.Stop(reason=reason, deadline_s=seconds),
        )
        self.keeper = Keeper(make_spec(model, settings), dialect, self)

    @property
    def info(self) -> ModelInfo | None:
        """The model that answers right now."""
        return self._state.model if self._state else None

    @property
    def name(self) -> str:
        """Name of the model in use, or of the one asked for."""
        return self.info.name if self.info else self.asked

    @property
    def rests(self) -> bool:
        """Whether nobody has started it."""
        return self.keeper.state is KeeperState.IDLE

    def start(self) -> None:
        """Start the process; it loads its first model by itself."""
        self.keeper.ask()

    async def close(self, reason: str) -> None:
        """Stop the process for good."""
        await self.keeper.close(reason)

    async def hold(self, model: str | None, progress: Progress) -> None:
        """Wait until `model` (``None``: whichever is loaded) answers, loading it if need be; it
        then stays until `release`.

        Raises `PunieError`: the host's own reason when it cannot be loaded (the one before stays),
        `ModelUnavailable` when the host was given up. Cancelling stops the wait, not the load.
        """
        async with self._first_in_line(model, progress):
            await self._obtain(model, progress)
            self._turns += 1

    async def use(self, wish: Use, progress: Progress) -> UseReport:
        """Have `wish.model` loaded, with the engine's settings that are wished, once the turns
        before are over. Prompts behind it wait. A host that rests is started for a model, not for
        settings alone, which it has when it is started.

        Raises `PunieError`: the host's own reason (model and settings of before stay), `TimedOut`,
        `ModelUnavailable`. Cancelling stops the wait, not the load.
        """
        async with self._first_in_line(wish.model, progress):
            before = self.asked, self.settings
            settings = drafting.applied(self.settings, wish)
            same = settings == self.settings and (wish.model is None or self._is(wish.model))
            if not same:
                await self._change_to(wish.model, settings, progress)
            elif wish.model is not None or not self.rests:
                await self._settled(progress, retry=wish.model)
            if wish.draft_model and (fault := self._draft_fault()):
                if not same:
                    await self._switch(*before, progress)
                raise PunieError(fault)
            return UseReport(
                model=self.asked,
                folder=self.info.folder if self.info else "",
                settings=self.settings,
                changed=not same,
            )

    async def serve(self, port: int | None, *, stop: bool) -> DoorStatus:
        """Have the HTTP door opened as `Door.open` says, for which the process is started if need
        be, or closed. Raises `PunieError`."""
        if not stop:
            return await self.door.open(await self._running(), port)
        ready = self.keeper.state is KeeperState.READY
        return await self.door.close(self.keeper.child if ready else None)

    def release(self) -> None:
        """A turn that held the model is over."""
        self._turns -= 1
        self._news()

    def status(self, rss: Callable[[int | None], int]) -> ModelStatus:
        """Return the part of the status report."""
        keeper, state = self.keeper, self._state
        # After a failed switch the one before answers on; whoever asked for it was told.
        error: WireError | None = state.error if state and self.info is None else None
        ready = keeper.state is KeeperState.READY
        if keeper.state is KeeperState.FAILED:
            error = self._unavailable()
        return ModelStatus(
            name=self.name,
            folder=self.info.folder if self.info else "",
            state=_load(state).value if ready else keeper.state.value,
            pid=keeper.pid,
            rss_bytes=rss(keeper.pid),
            error=error,
            engine=self._engine,
            door=self.door.status(),
            settings=self.settings,
        )

    def _draft_fault(self) -> WireError | None:
        """Why the draft model is not used. The host loads a model without one that does not fit:
        what is right for the config file's is not for one that was just asked for."""
        text = self._engine.draft_model.error if self._engine is not None else ""
        folder = self.settings.draft_model or ""
        return ModelLoadFailed(message=text, folder=folder, file="") if text else None

    def _other(self) -> str | None:
        return self._fallback if self._fallback != self.asked else None

    def _is(self, model: str) -> bool:
        # Not the name of what is loaded: another folder may be called the same.
        return model == self.asked or (self.info is not None and model == self.info.folder)

    @asynccontextmanager
    async def _first_in_line(self, model: str | None, progress: Progress) -> AsyncGenerator[None]:
        """Wait until it is our turn to have a model loaded: what is done then may wait, too."""
        place = object()
        self._line.append(place)
        try:
            async with asyncio.timeout(LOAD_TIMEOUT):
                # A load that nobody waits for any more is still one.
                while self._line[0] is not place or self._loads:
                    self._report(progress)
                    await self._change()
                yield
        except TimeoutError:
            text = f"model {model or self.asked} was not there within {LOAD_TIMEOUT:g} s"
            raise PunieError(TimedOut(message=text, limit_s=LOAD_TIMEOUT)) from None
        finally:
            self._line.remove(place)
            self._news()

    async def _change_to(
        self, model: str | None, settings: EngineSettings, progress: Progress
    ) -> None:
        if self.rests:
            await self._begin_with(model, settings, progress)
            return
        await self._until_no_turn(progress)
        await self._switch(model or self.asked, settings, progress)

    async def _begin_with(
        self, model: str | None, settings: EngineSettings, progress: Progress
    ) -> None:
        before = self.settings
        self._adopt(model or self.asked, settings)
        if model is None:
            return
        try:
            await self._settled(progress, retry=None)
        except PunieError:
            self._adopt(model, before)
            raise

    def _adopt(self, model: str, settings: EngineSettings) -> None:
        """The next process begins with these."""
        self.asked, self.settings = model, settings
        self.keeper.replace(self._make_spec(model, settings))

    async def _until_no_turn(self, progress: Progress) -> None:
        while self._turns:
            self._report(progress)
            await self._change()

    async def _obtain(self, model: str | None, progress: Progress) -> None:
        if model is not None and self.rests:
            # Its first model is the one that is wanted now.
            self._adopt(model, self.settings)
        if model is None or self._is(model):
            await self._settled(progress, retry=model or self._other())
            return
        await self._until_no_turn(progress)
        await self._switch(model, self.settings, progress)

    async def _settled(self, progress: Progress, *, retry: str | None) -> None:
        while self.info is None:
            self._check_alive()
            state = self._state
            if state and state.state is Load.FAILED and state.error:
                if retry is None:
                    raise RemoteError(state.error)
                await self._switch(retry, self.settings, progress)
                return
            self._report(progress)
            await self._change()

    async def _switch(self, model: str, settings: EngineSettings, progress: Progress) -> None:
        try:
            await self._load(model, settings, progress)
        except PunieError:
            # A process that had to be started for it is not to begin with it again.
            self.keeper.spec = self._make_spec(self.asked, self.settings)
            raise

    async def _load(self, model: str, settings: EngineSettings, progress: Progress) -> None:
        child = await self._host(model, settings, progress)
        id = next(self._ids)
        message = to_model_host.LoadModel(request_id=id, model=model, settings=settings)
        try:
            child.link.send_nowait(message)
        except LinkClosed:
            raise PunieError(self.keeper.lost()) from None
        load = self._loads[id] = _Loading(model, settings)
        while not load.over:
            self._report(progress)
            await self._change()
        if load.error is not None:
            raise RemoteError(load.error)

    async def _host(self, model: str, settings: EngineSettings, progress: Progress) -> Child:
        if self.keeper.state is KeeperState.FAILED:
            # It may have failed because of the model it had: try with the other one.
            self.keeper.replace(self._make_spec(model, settings))
        if self.keeper.state is not KeeperState.READY:
            progress("starting the model host", 0, 0)
        return await self._running()

    async def _running(self) -> Child:
        try:
            return await self.keeper.ready()
        except PunieError:
            raise PunieError(self._unavailable()) from None

    def _check_alive(self) -> None:
        self.keeper.ask()
        if self.keeper.state is KeeperState.FAILED:
            raise PunieError(self._unavailable())

    def _unavailable(self) -> ModelUnavailable:
        return ModelUnavailable(
            message=f"the model host does not run: {self.keeper.failure}",
            hint="see: punie logs; then: punie down, and try again or with another --model",
        )

    def _report(self, progress: Progress) -> None:
        if self.keeper.state is not KeeperState.READY:
            progress("starting the model host", 0, 0)
        elif line := model_text.loading(self._state, self._engine if self._loads else None):
            progress(*line)
        elif self._turns:
            progress(model_text.waiting(self._turns, "turn", self.name), 0, 0)
        else:
            load = next(iter(self._loads.values()), None)
            progress(f"loading model {load.model if load else self.asked}", 0, 0)

    async def _change(self) -> None:
        """Wait for news of the model or of its process."""
        news = [
            asyncio.ensure_future(self._changed.wait()),
            asyncio.ensure_future(self.keeper.changed()),
        ]
        try:
            await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in news:
                task.cancel()

    # the keeper's side

    def ready(self, child: Child) -> None:
        self.door.ready(child)
        self._news()

    async def message(self, child: Child, message: ToSupervisor) -> None:
        match message:
            case ModelState():
                self._changed_model(child, message)
            case EngineReport(engine=engine):
                self._engine = engine
                if self._loads:
                    self._news()  # for those who wait until its requests are over
            case DoorIs():
                self.door.told(child, message)
            case _:
                text = f"a model host does not send {type(message).__name__} then"
                raise ProtocolError(InvalidRequest(message=text))

    def pong(self, child: Child, pong: Pong) -> None:
        """Nothing in it is news."""

    async def down(self, child: Child, exit: Exit) -> None:
        self._state = self._engine = None
        for load in self._loads.values():
            load.over, load.error = True, self._lost(exit)
        self._loads.clear()
        self.door.down(self._lost(exit))
        self._news()

    def _changed_model(self, child: Child, state: ModelState) -> None:
        self._state = state
        if state.state is not Load.LOADING:
            child.log.info("model." + state.state.value, model=state.name)
            self._loaded(state)
        self._news()

    def _loaded(self, state: ModelState) -> None:
        load = self._loads.pop(state.request_id, None)
        if load is None:
            return
        load.over = True
        if state.state is Load.FAILED:
            load.error = state.error or ModelUnavailable(message=f"{load.model} did not load")
            return
        self._adopt(load.model, load.settings)

    def _lost(self, exit: Exit) -> ProcessLost:
        return ProcessLost(
            message=f"the model host (pid {exit.pid}) ended: {exit.reason}",
            hint="see: punie logs",
            process=self.keeper.spec.id,
            pid=exit.pid,
        )

    def _news(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _load(state: ModelState | None) -> Load:
    if state is None:
        return Load.LOADING
    return Load.READY if state.model and state.state is Load.FAILED else state.state
