"""The engine of a rank, which plays after rank 0's script; rank 0's own does so too. For the
engine's thread."""

import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import assert_never

import msgspec

from punie_model_host.engine import Engine
from punie_model_host.engine_messages import Command, Emission
from punie_model_host.lines import (
    Chore,
    CommandLine,
    End,
    Name,
    Read,
    Reading,
    SubmitLine,
    Take,
    Turn,
    Work,
    command_of,
    frame,
    line_of,
)
from punie_model_host.prepare import Prepared
from punie_model_host.ranks import Place, Sharding, for_ranks
from punie_model_host.script import Follower, Leader, Script, gather
from punie_model_host.world import join
from punie_protocol.engine import EngineSettings
from punie_protocol.errors import Internal, InvalidRequest, PunieError

_log = logging.getLogger(__name__)


class Player:
    """An engine whose clock, ids and readings are rank 0's. Nothing of it is kept on disk: what
    one rank finds there another may not."""

    def __init__(self, models_dir: Path, settings: EngineSettings, script: Script) -> None:
        self._script = script
        self._loads = False
        self.engine = Engine(
            models_dir,
            for_ranks(settings),
            script.out,
            new_call_id=self._name,
            clock=self._clock,
            read=self._read,
        )

    def play(self, turn: Turn) -> None:
        """Do what the script says."""
        match turn:
            case Take(command):
                self.engine.handle(command_of(command))
            case Work(loads):
                self._loads = loads
                self.engine.step()
                self._loads = False
            case Chore():
                self.engine.do_chore()
            case End(deadline):
                self.engine.close(deadline)
            case _:
                assert_never(turn)
        self._script.close_turn()

    def _clock(self) -> float:
        """While models are read, which have other tensors on each rank, time decides nothing."""
        if self._loads:
            return time.perf_counter()
        return self._script.ask(Reading, lambda: Reading(time.perf_counter())).seconds

    def _name(self) -> str:
        return self._script.ask(Name, lambda: Name(f"call_{secrets.token_hex(8)}")).text

    def _read(self, prepare: Callable[[], Prepared]) -> Prepared:
        """Have rank 0 read a request: it may have to draw a seed, and templates ask what day it
        is."""
        read = self._script.ask(Read, lambda: _sendable(_answer_of(prepare)))
        if read.error is not None:
            raise PunieError(read.error)
        assert read.prepared is not None
        return read.prepared


def _answer_of(prepare: Callable[[], Prepared]) -> Read:
    try:
        return Read(prepare())
    except PunieError as error:
        return Read(None, error.error)
    except Exception as error:  # noqa: BLE001  the wall round a request, on all ranks
        _log.error("request-not-read", exc_info=error)
        message = f"the request cannot be read: {type(error).__name__}"
        return Read(None, Internal(message=message, hint="see punie logs"))


def _sendable(read: Read) -> Read:
    """Return what other ranks can be told: the schemas of tools hold what clients like."""
    try:
        frame(read)
    except ValueError as error:
        hint = "numbers of 64 bits at most in the schemas of tools"
        return Read(None, InvalidRequest(message=f"with ranks: {error}", hint=hint))
    return read


def _sendable_command(line: CommandLine) -> CommandLine:
    """Return a request that other ranks cannot be told as one that nobody read: `_sendable` then
    refuses it, everywhere."""
    if not isinstance(line, SubmitLine) or line.prepared is None:
        return line
    try:
        frame(Take(line))
    except ValueError:
        return msgspec.structs.replace(line, prepared=None)
    return line


class LedEngine:
    """Rank 0's engine, for `EngineThread`: an `Engine` that has the others do the same. `out` gets
    emissions when all have said them, in any thread."""

    def __init__(
        self,
        models_dir: Path,
        settings: EngineSettings,
        out: Callable[[Emission], None],
        place: Place,
        sharding: Sharding,
    ) -> None:
        self._script = Leader(gather(place, join(sharding)), out)
        self._player = Player(models_dir, settings, self._script)
        self._engine = self._player.engine

    @property
    def has_work(self) -> bool:
        """As of `Engine`."""
        return self._engine.has_work

    @property
    def is_answering(self) -> bool:
        """As of `Engine`."""
        return self._engine.is_answering

    @property
    def has_chores(self) -> bool:
        """As of `Engine`."""
        return self._engine.has_chores

    @property
    def beats(self) -> int:
        """As of `Engine`."""
        return self._engine.beats

    def handle(self, command: Command) -> None:
        """As of `Engine`."""
        if (line := line_of(command)) is not None:
            self._do(Take(_sendable_command(line)))

    def step(self) -> None:
        """As of `Engine`."""
        self._do(Work(loads=not self._engine.is_answering))

    def do_chore(self) -> bool:
        """As of `Engine`, but there is never more to do at once: nothing is written."""
        self._do(Chore())
        return False

    def close(self, deadline: float) -> None:
        """As of `Engine`."""
        self._do(End(deadline))

    def _do(self, turn: Turn) -> None:
        self._script.say(turn)
        self._player.play(turn)


def follow(
    models_dir: Path,
    settings: EngineSettings,
    place: Place,
    sharding: Sharding,
    joined: Callable[[], None],
    lost: Callable[[str], None],
) -> None:
    """Be another rank than 0, until that says `End`. `joined` is called when this is one; `lost` in
    another thread when rank 0 is gone before its `End`. Raises `PunieError` when there is no group,
    `RanksFault` when the ranks do not do the same."""
    links = gather(place, join(sharding))
    joined()
    script = Follower(links[0], lost)
    player = Player(models_dir, settings, script)
    turn: Turn | None = None
    while not isinstance(turn, End):
        turn = script.hear()
        player.play(turn)
