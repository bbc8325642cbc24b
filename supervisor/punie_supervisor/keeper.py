"""Keeps one child alive as its spec says: starts, greets, pings, restarts, stops.

::

    IDLE ─ask─► STARTING ─Ready─► READY ──stop──► STOPPING ──► IDLE
                 ▲   └──end──┐      │end
              BACKOFF ◄──────┴──────┴────► FAILED | IDLE     (as `RestartPolicy` decides)
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from enum import StrEnum
from typing import Any, Final, Protocol

import msgspec

from punie_protocol.errors import (
    Internal,
    InvalidRequest,
    LinkClosed,
    ProcessLost,
    ProtocolError,
    PunieError,
    VersionMismatch,
)
from punie_protocol.handshake import check_protocol
from punie_protocol.messages.to_supervisor import Hello, Pong, Ready, ToSupervisor
from punie_supervisor import logs
from punie_supervisor.child import Child, ChildState, Exit
from punie_supervisor.child_spec import ChildSpec
from punie_supervisor.restart_policy import GiveUp, LetRest, RestartPolicy, StartAgain

PING_EVERY: Final = 5.0
SILENCE: Final = 30.0
"""Seconds without any message after which a child counts as hung and is killed."""

type Birth = Callable[[ChildSpec], Awaitable[Child]]
"""Starts a child of a spec. Raises `OSError` when it cannot be run."""


class KeeperState(StrEnum):
    """State of a supervised child; also what the status report calls it."""

    IDLE = "idle"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"


_S = KeeperState
TRANSITIONS: Final = {
    _S.IDLE: {_S.STARTING},
    _S.STARTING: {_S.READY, _S.STOPPING, _S.BACKOFF, _S.FAILED, _S.IDLE},
    _S.READY: {_S.STOPPING, _S.BACKOFF, _S.FAILED, _S.IDLE},
    _S.STOPPING: {_S.IDLE},
    _S.BACKOFF: {_S.STARTING, _S.IDLE},
    _S.FAILED: {_S.STARTING, _S.IDLE},
}


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """The supervisor's three messages as this kind of child reads them; `welcome` is made for each
    life anew, and may raise `OSError`: that life is over then."""

    welcome: Callable[[Child], msgspec.Struct]
    ping: Callable[[int], msgspec.Struct]
    stop: Callable[[str, float], msgspec.Struct]


class Inmate(Protocol):
    """Who works with the child. `message` may wait: the child is then slowed."""

    def ready(self, child: Child) -> None:
        """The child can take work."""
        ...

    async def message(self, child: Child, message: ToSupervisor) -> None:
        """It said something else than hello, ready or pong, perhaps before READY."""
        ...

    def pong(self, child: Child, pong: Pong) -> None:
        """It answered a ping."""
        ...

    async def down(self, child: Child, exit: Exit) -> None:
        """It ended; called once for each child that said anything or became ready."""
        ...


class Keeper:
    """Owns the child of one spec and its restarts. `was_ready`: the last one came up."""

    def __init__(
        self,
        spec: ChildSpec,
        dialect: Dialect,
        inmate: Inmate,
        *,
        clock: Callable[[], float] = time.monotonic,
        birth: Birth | None = None,
    ) -> None:
        self.spec = spec
        self.state = KeeperState.IDLE
        self.restarts = 0
        self.failure = ""
        self.was_ready = False
        self.child: Child | None = None
        self._dialect = dialect
        self._inmate = inmate
        self._clock = clock
        self._birth = birth or Child.spawn
        self._policy = RestartPolicy(spec.restart, intensity=spec.intensity, period_s=spec.period_s)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ending = False
        self._heard: float | None = None
        self.log = logs.get(child=spec.id)

    @property
    def pid(self) -> int | None:
        """Pid of the live process."""
        alive = self.child is not None and self.child.state is not ChildState.ENDED
        return self.child.pid if alive and self.child else None

    def ask(self) -> None:
        """Start it unless it runs, is about to, or was given up a short while ago."""
        rested = self.state is KeeperState.FAILED and self._policy.may_start(self._clock())
        if not self._ending and (self.state is KeeperState.IDLE or rested):
            self._become(KeeperState.STARTING)
            self._task = asyncio.get_running_loop().create_task(self._run(), name=self.spec.id)

    def replace(self, spec: ChildSpec) -> None:
        """Use `spec` from the next start on; a child that was given up may be tried again."""
        self.spec = spec
        if self.state is KeeperState.FAILED:
            self._policy.forgive()

    async def ready(self) -> Child:
        """Start it if need be and return the READY child. Raises `PunieError` when given up."""
        while True:
            self.ask()
            child = self.child
            if self.state is KeeperState.READY and child and not child.link.is_closed:
                return child
            if self.state is KeeperState.FAILED or self._ending:
                raise PunieError(self.lost())
            await self.changed()

    def changed(self) -> Coroutine[Any, Any, object]:
        """Return a wait for the next change of state from now on."""
        return self._changed.wait()

    def lost(self) -> ProcessLost:
        """Return the error for whoever needed the child that is not there."""
        return ProcessLost(
            message=f"{self.spec.id} is not running: {self.failure or 'it was stopped'}",
            hint="see: punie logs",
            process=self.spec.id,
            pid=self.pid or 0,
        )

    async def stop(self, reason: str) -> None:
        """End the child within its `shutdown_s` + 0.3 s. It can be asked for again."""
        task = self._task
        if task is None or task.done():
            self._rest()
            return
        if self.state is KeeperState.BACKOFF:
            task.cancel()
        elif self.state is not KeeperState.STOPPING:
            self._become(KeeperState.STOPPING)
            if (child := self.child) is not None:
                await child.stop(self._dialect.stop(reason, child.spec.shutdown_s), reason)
        await asyncio.wait([task])
        if self.state is KeeperState.BACKOFF:
            self._rest()

    async def close(self, reason: str) -> None:
        """`stop` for good."""
        self._ending = True
        await self.stop(reason)
        self._notify()

    def kill(self, reason: str) -> None:
        """SIGKILL the child, if there is one; the policy decides what comes next."""
        if self.child is not None:
            self.child.kill(reason)

    def end_now(self, reason: str) -> None:
        """SIGKILL the child, if there is one, for good: what `close` did not come to in time."""
        self._ending = True
        self.kill(reason)

    async def _run(self) -> None:
        try:
            while await self._again(await self._one_life()):
                self._become(KeeperState.STARTING)
        except Exception:
            self.log.exception("keeper.failed")
            self.kill("defect in its supervision")
            self._policy.ended(self._clock(), failed=True, hopeless=True)
            self._give_up("defect in its supervision; see the log")

    async def _again(self, exit: Exit | PunieError) -> bool:
        if self.state is KeeperState.STOPPING or self._ending:
            self._become(KeeperState.IDLE)
            return False
        failed = isinstance(exit, PunieError) or exit.failed
        reason = str(exit) if isinstance(exit, PunieError) else exit.reason
        hopeless = isinstance(exit, VersionMismatch)
        match self._policy.ended(self._clock(), failed=failed, hopeless=hopeless):
            case LetRest():
                self._become(KeeperState.IDLE)
                return False
            case GiveUp(reason=why):
                self._give_up(f"{reason}; {why}")
                return False
            case StartAgain(after_s=seconds):
                self.restarts += 1
                self.failure = reason
                self._become(KeeperState.BACKOFF)
                self.log.info("child.restarting", after_s=seconds, reason=reason)
                await asyncio.sleep(seconds)
                if self._ending:
                    self._become(KeeperState.IDLE)
                return not self._ending

    async def _one_life(self) -> Exit | PunieError:
        started = self._clock()
        self.child, self.was_ready = None, False
        try:
            child = self.child = await self._birth(self.spec)
        except OSError as error:
            program = self.spec.command[0]
            return PunieError(Internal(message=f"cannot run {program}: {error.strerror}"))
        child.log.info("child.started")
        if self.state is KeeperState.STOPPING:
            child.kill("it was stopped before it had begun")
        timer = asyncio.get_running_loop().call_later(
            self.spec.start_s, child.kill, f"not ready within {self.spec.start_s:g} s"
        )
        fault: PunieError | None = None
        try:
            await self._greet(child)
            await self._receive(child, started, timer)
        except PunieError as error:
            fault = error
            child.kill(str(error))
        except asyncio.CancelledError:
            child.kill("its supervision was cancelled")
            raise
        finally:
            timer.cancel()
        exit = await child.finish()
        child.log.info("child.died", reason=exit.reason, code=exit.code, asked=exit.asked)
        await self._inmate.down(child, exit)
        return fault if isinstance(fault, VersionMismatch) else exit

    async def _greet(self, child: Child) -> None:
        # Not `accept_child`: a cold import may take longer than a handshake between running
        # processes; the deadline here is `start_s`.
        async for hello in child.link:
            if not isinstance(hello, Hello):
                raise ProtocolError(
                    InvalidRequest(message=f"expected hello, got {type(hello).__name__}")
                )
            check_protocol(hello.protocol)
            child.link.send_nowait(self._welcome(child))
            return

    def _welcome(self, child: Child) -> msgspec.Struct:
        try:
            return self._dialect.welcome(child)
        except OSError as error:
            text = f"cannot prepare for {self.spec.id}: {error}"
            raise PunieError(Internal(message=text)) from None

    async def _receive(self, child: Child, started: float, timer: asyncio.TimerHandle) -> None:
        pings: asyncio.Task[None] | None = None
        try:
            async for message in child.link:
                match message:
                    case Pong():
                        self._inmate.pong(child, message)
                    case Ready() if child.state is ChildState.STARTING:
                        timer.cancel()
                        child.become(ChildState.READY)
                        self._ready(child, started)
                        pings = asyncio.create_task(self._ping(child))
                    case Ready() if child.state is ChildState.STOPPING:
                        pass
                    case Hello() | Ready():
                        raise ProtocolError(
                            InvalidRequest(message=f"unexpected {type(message).__name__}")
                        )
                    case _:
                        self._heard = None  # its pongs wait meanwhile: that is not its silence
                        await self._inmate.message(child, message)
                self._heard = self._clock()
        finally:
            if pings is not None:
                pings.cancel()

    def _ready(self, child: Child, started: float) -> None:
        child.log.info("child.ready", ms=round((self._clock() - started) * 1000))
        self.was_ready = True
        self._inmate.ready(child)
        self._become(KeeperState.READY)

    async def _ping(self, child: Child) -> None:
        nonce = 0
        while not child.link.is_closed:
            silent = 0.0 if self._heard is None else self._clock() - self._heard
            if silent > SILENCE:
                child.kill(f"no answer for {silent:.0f} s")
                return
            nonce += 1
            try:
                child.link.send_nowait(self._dialect.ping(nonce))
            except LinkClosed:
                return
            await asyncio.sleep(PING_EVERY)

    def _give_up(self, reason: str) -> None:
        self.failure = reason
        self._become(KeeperState.FAILED)
        self.log.error("child.given_up", reason=reason)

    def _rest(self) -> None:
        if self.state is not KeeperState.IDLE:
            self._become(KeeperState.IDLE)

    def _become(self, state: KeeperState) -> None:
        assert state in TRANSITIONS[self.state], (self.spec.id, self.state, state)
        self.state = state
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
