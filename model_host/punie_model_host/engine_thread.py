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
    Command,
    Died,
    Emission,
    LoadCommand,
    Quit,
)

if TYPE_CHECKING:
    from punie_model_host.engine import Engine

_log = logging.getLogger(__name__)

CAPACITY: Final = 512
"""Commands that wait; callers keep to fewer, see `EngineThread.post`."""

FIRST_LOAD: Final = -1


class EngineThread:
    """Runs one `Engine`; all methods are for the event loop's thread and never block.

    `deliver` is called on `loop` for every emission, in order. The thread is a daemon: a step that
    hangs in MLX cannot be interrupted, the process leaves by `os._exit`.
    """

    def __init__(
        self,
        models_dir: Path,
        cache_budget: int,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[Emission], None],
    ) -> None:
        self._models_dir = models_dir
        self._cache_budget = cache_budget
        self._loop = loop
        self._deliver = deliver
        self._commands: queue.Queue[Command] = queue.Queue(CAPACITY)
        self._quitting = False
        self._steps = 0
        self._answering = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, model: str) -> None:
        """Start the thread; its first work is to load `model`."""
        self.post(LoadCommand(FIRST_LOAD, model))
        self._thread.start()

    def post(self, command: Command) -> bool:
        """Queue a command; False when `CAPACITY` commands wait."""
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            return False
        return True

    def quit(self) -> None:
        """Ask the thread to end after its present step, whatever waits."""
        self._quitting = True
        self.post(Quit())

    @property
    def progress(self) -> int | None:
        """A number that changes with each prompt chunk and token; None when no request is under
        way."""
        return self._steps if self._answering else None

    # the engine's thread

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # noqa: BLE001  reported, and the process ends
            _log.critical("engine-died", exc_info=error)
            self._out(Died(f"{type(error).__name__}: {error}"))

    def _serve(self) -> None:
        from punie_model_host.engine import Engine  # a second, not before Ready

        engine = Engine(
            self._models_dir,
            self._cache_budget,
            self._out,
            look_up=lambda: self._take_in(engine),
            clock=time.perf_counter,
        )
        while not self._quitting:
            if not engine.has_work:
                engine.handle(self._commands.get())
            self._take_in(engine)
            if not self._quitting:
                self._step(engine)

    def _step(self, engine: Engine) -> None:
        self._answering = engine.is_answering
        engine.step()
        self._steps += 1
        self._answering = engine.is_answering

    def _take_in(self, engine: Engine) -> None:
        for _ in range(CAPACITY):
            try:
                engine.handle(self._commands.get_nowait())
            except queue.Empty:
                return

    def _out(self, emission: Emission) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, emission)
        except RuntimeError:  # the loop is closed: the process is leaving
            self._quitting = True
