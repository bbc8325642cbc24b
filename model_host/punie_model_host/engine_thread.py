"""The engine's thread: commands in through a queue, emissions out on the event loop."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from punie_model_host.engine_messages import (
    Closed,
    Command,
    Died,
    Emission,
    LoadCommand,
    Quit,
    Refused,
)
from punie_model_host.lifetime import own_descriptor_limit
from punie_model_host.ranks import Place, Sharding
from punie_protocol.engine import EngineSettings

if TYPE_CHECKING:
    from punie_model_host.engine import Engine
    from punie_model_host.player import LedEngine

_log = logging.getLogger(__name__)

CAPACITY: Final = 4096
"""Commands that wait; callers keep to fewer, see `EngineThread.post`."""

FIRST_LOAD: Final = -1
_REST: Final = 1.0
"""Seconds between two looks at what an idle engine could do."""


class EngineThread:
    """Runs one `Engine`; all methods are for the event loop's thread and never block.

    `deliver` is called on `loop` for every emission, in order. With `ranks` it leads others, which
    compute with it. The thread is a daemon: a step that hangs in MLX cannot be interrupted, the
    process leaves by `os._exit`.
    """

    def __init__(
        self,
        models_dir: Path,
        settings: EngineSettings,
        cache_dir: Path | None,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[Emission], None],
        ranks: tuple[Place, Sharding] | None = None,
    ) -> None:
        self._places = models_dir, cache_dir
        self._ranks = ranks
        self._settings = settings
        self._loop = loop
        self._deliver = deliver
        self._commands: queue.Queue[Command] = queue.Queue(CAPACITY)
        self._quit: Quit | None = None
        self._steps = 0
        self._working = False
        self._engine: Engine | LedEngine | None = None
        self._out_lock = threading.Lock()
        self._waiting: list[Emission] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, model: str) -> None:
        """Start the thread; its first work is to load `model`."""
        self.post(LoadCommand(FIRST_LOAD, model))
        self._thread.start()

    def post(self, command: Command) -> bool:
        """Queue a command; False when `CAPACITY` commands wait. A `Refused` may be lost, it only
        counts: whoever is refused often leaves half of the room to the requests of others."""
        if isinstance(command, Refused) and self._commands.qsize() >= CAPACITY // 2:
            return False
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            return False
        return True

    def quit(self, save_s: float) -> None:
        """Ask the thread to end after its present step, whatever waits; it may take `save_s`
        seconds to save its cache, then delivers `Closed`."""
        self._quit = Quit(time.perf_counter() + save_s)
        self.post(self._quit)

    @property
    def progress(self) -> int | None:
        """A number that changes with each piece of work that requests wait for: a step, or what
        the thread does while it has none. None while it waits itself, and while it loads."""
        beats = self._engine.beats if self._engine is not None else 0
        return self._steps + beats if self._working else None

    # the engine's thread

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # noqa: BLE001  reported, and the process ends
            _log.critical("engine-died", exc_info=error)
            self._out(Died(f"{type(error).__name__}: {error}"))

    def _serve(self) -> None:
        engine = self._engine = self._led() if self._ranks else self._alone()
        while self._quit is None:
            if not engine.has_work:
                self._rest(engine)
            self._take_in(engine)
            if self._quit is None and engine.has_work:
                self._step(engine)
        engine.close(self._quit.deadline)
        self._out(Closed())

    def _alone(self) -> Engine:
        with own_descriptor_limit():
            from punie_model_host.engine import Engine  # a second, not before Ready

        models_dir, cache_dir = self._places
        engine = Engine(
            models_dir,
            self._settings,
            self._out,
            cache_dir=cache_dir,
            look_up=lambda: self._take_in(engine),
            clock=time.perf_counter,
        )
        return engine

    def _led(self) -> LedEngine:
        with own_descriptor_limit():
            from punie_model_host.player import LedEngine

        assert self._ranks is not None
        return LedEngine(self._places[0], self._settings, self._out, *self._ranks)

    def _rest(self, engine: Engine | LedEngine) -> None:
        """Wait for a command; between, let an idle engine do what waited for a quiet moment."""
        more = False
        while True:
            try:
                wait = 0.0 if more else _REST
                engine.handle(self._commands.get(timeout=wait if engine.has_chores else None))
            except queue.Empty:
                self._working = True  # a disk can hang, and whoever comes then waits for it
                more = engine.do_chore()
                self._steps += 1
                self._working = False
            else:
                return

    def _step(self, engine: Engine | LedEngine) -> None:
        self._working = engine.is_answering
        engine.step()
        self._steps += 1
        self._working = engine.is_answering

    def _take_in(self, engine: Engine | LedEngine) -> None:
        for _ in range(CAPACITY):
            try:
                engine.handle(self._commands.get_nowait())
            except queue.Empty:
                return

    def _out(self, emission: Emission) -> None:
        """Many emissions of a step wake the loop once."""
        with self._out_lock:
            self._waiting.append(emission)
            if len(self._waiting) > 1:
                return
        try:
            self._loop.call_soon_threadsafe(self._deliver_all)
        except RuntimeError:  # the loop is closed: the process is leaving
            self._quit = self._quit or Quit(0.0)

    def _deliver_all(self) -> None:
        with self._out_lock:
            emissions, self._waiting = self._waiting, []
        for emission in emissions:
            self._deliver(emission)
