"""Model servers of the config file: started when a prompt first needs one, stopped at the end.

One that Punie starts::

    IDLE ──need, nobody answers──► STARTING ──answers──► READY
     ▲  └─need, it answers─► EXTERNAL    │ends, late       │ends
     └────need, it does not────┘         ▼                 ▼
                             IDLE | FAILED  (as `RestartPolicy` decides; the next need tries again)
              STARTING, READY ──the daemon ends──► STOPPING ──► IDLE

One without a command, and one that answered before we started it, is somebody else's: EXTERNAL.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from punie_protocol import backends
from punie_protocol.backends import Backend, Server
from punie_protocol.client import ServerState, ServerStatus
from punie_protocol.errors import ModelUnavailable, PunieError, WireError
from punie_protocol.messages.common import Role
from punie_supervisor import logs, probe
from punie_supervisor.child_spec import Restart, child_environment
from punie_supervisor.config import address, key_of
from punie_supervisor.probe import Health
from punie_supervisor.process import PIPE_GRACE, Process, describe
from punie_supervisor.restart_policy import GiveUp, LetRest, RestartPolicy, StartAgain

STOP_GRACE: Final = 1.5
"""Seconds from SIGTERM to SIGKILL."""
FIRST_POLL: Final = 0.05
MAX_POLL: Final = 1.0
"""Seconds between two questions whether it is ready."""

_S = ServerState
TRANSITIONS: Final = {
    _S.IDLE: {_S.STARTING, _S.EXTERNAL},
    _S.EXTERNAL: {_S.IDLE},
    _S.STARTING: {_S.READY, _S.STOPPING, _S.IDLE, _S.FAILED},
    _S.READY: {_S.STOPPING, _S.IDLE, _S.FAILED},
    _S.STOPPING: {_S.IDLE},
    _S.FAILED: {_S.IDLE, _S.EXTERNAL},
}

type Progress = Callable[[str, int, int], None]


class ManagedServer:
    """Owns the process of one server, from the first need to `close`."""

    def __init__(self, server: Server, cwd: str, environ: Mapping[str, str]) -> None:
        self.url = address(server)
        self.state = ServerState.IDLE
        self.error: WireError | None = None
        self._server = server
        self._cwd = str(Path(server.cwd).expanduser()) if server.cwd else cwd
        self._environ = environ
        self._policy = RestartPolicy(Restart.PERMANENT)
        self._not_before = 0.0
        self._process: Process | None = None
        self._over = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self._said = ""
        self._log = logs.get(child=self._id)

    @property
    def pid(self) -> int | None:
        """Pid of the process that is ours and lives."""
        alive = self._process is not None and not self._process.over
        return self._process.pid if alive and self._process else None

    @property
    def _id(self) -> str:
        return f"server {self.url}"

    async def ready(self, key: str, progress: Progress) -> None:
        """Return once it answers; start it if need be. All who wait at once wait for one start.

        Raises `PunieError` (`ModelUnavailable`): it ended, or its `ready_s` are over.
        Cancelling stops the wait, not the start.
        """
        while self.state is not ServerState.READY:
            if self._starting is None:
                work = self._start(key)
                self._starting = asyncio.get_running_loop().create_task(work, name=self._id)
                self._starting.add_done_callback(self._started)
            progress(f"waiting for the model server {self.url}", 0, 0)
            await asyncio.shield(self._starting)
            if self.state is ServerState.EXTERNAL:
                return

    async def close(self) -> None:
        """Stop the process, if it is ours: SIGTERM, SIGKILL after `STOP_GRACE`. For good."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        process = self._process
        if process is None:
            return
        if not process.over:
            self._become(ServerState.STOPPING)
            process.send_signal(signal.SIGTERM)
            if not await _within(STOP_GRACE, self._over):
                self.kill("it did not stop in time")
                await self._over.wait()
        await process.last_words()

    def kill(self, reason: str) -> None:
        """SIGKILL to its whole group, if it is ours and lives."""
        if self._process is not None and not self._process.over:
            self._log.warning("child.killed", reason=reason)
            self._process.send_signal(signal.SIGKILL)

    @property
    def epitaph(self) -> str:
        """How our process ended and what it said last; empty while it lives, or was never ours."""
        if self._process is None or not self._process.over or self.error is None:
            return ""
        tail = "".join(f"\n{line}" for line in self._process.tail)
        message = self.error.message
        return message if message.endswith(tail) else message + tail

    def status(self) -> ServerStatus:
        """Return its line of the status report."""
        return ServerStatus(url=self.url, state=self.state, pid=self.pid, error=self.error)

    async def _start(self, key: str) -> None:
        answer = await probe.ask(self.url, key)
        if answer.health is not Health.SILENT:
            await self._wait_for_others(key, answer)
            return
        self._check_given_up()
        if self.state is not ServerState.IDLE:
            self._become(ServerState.IDLE)
        await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
        process = await self._spawn(key)
        try:
            async with asyncio.timeout(self._server.ready_s):
                answers = await self._until_it_answers(key)
        except TimeoutError:
            raise PunieError(await self._too_late(process)) from None
        if not answers:
            raise PunieError(await self._ended_early(process))
        self.error = None
        self._become(ServerState.READY)
        self._log.info("child.ready", pid=process.pid)

    def _check_given_up(self) -> None:
        if self.state is ServerState.FAILED and not self._policy.may_start(time.monotonic()):
            raise PunieError(self.error or self._unavailable("it was given up"))

    async def _wait_for_others(self, key: str, answer: probe.Answer) -> None:
        """It was there before us: use it as it is, once it is ready."""
        wait = FIRST_POLL
        try:
            async with asyncio.timeout(self._server.ready_s):
                while answer.health is Health.BUSY:
                    await asyncio.sleep(wait)
                    wait = min(MAX_POLL, wait * 2)
                    answer = await probe.ask(self.url, key)
        except TimeoutError:
            raise PunieError(self._late(answer.text)) from None
        if answer.health is Health.SILENT:
            raise PunieError(self._unavailable("what listened there has gone; ask again"))
        if answer.health is Health.REFUSED:
            raise PunieError(self._refused(answer.text))
        self.error = None
        if self.state is not ServerState.EXTERNAL:
            self._become(ServerState.EXTERNAL)

    async def _spawn(self, key: str) -> Process:
        """Start the process; its program is searched in the ``PATH`` it gets."""
        self._become(ServerState.STARTING)
        self._over = asyncio.Event()
        environment = child_environment(self._environ, Role.MODEL_HOST)
        leash = [sys.executable, "-P", "-m", "punie_supervisor.leash", str(os.getpid())]
        try:
            process = Process.start(
                self._id,
                [*leash, *self._server.command],
                environment=environment,
                cwd=self._cwd,
                secret=key,
            )
        except OSError as error:
            fault = self._died(f"it cannot be run in {self._cwd}: {error.strerror}")
            raise PunieError(fault) from None
        self._process = process
        process.watch(lambda code: self._process_ended(process, code))
        self._log.info("child.started", pid=process.pid)
        await process.read_output()
        return process

    async def _until_it_answers(self, key: str) -> bool:
        """Return true once it gives a good answer, false when it ended before."""
        wait = FIRST_POLL
        while not self._over.is_set():
            answer = await probe.ask(self.url, key)
            if answer.health is Health.OK and not self._over.is_set():
                return True
            self._said = answer.text
            await _within(wait, self._over)
            wait = min(MAX_POLL, wait * 2)
        return False

    async def _too_late(self, process: Process) -> WireError:
        self.kill(f"not ready within {self._server.ready_s:g} s")
        await self._over.wait()
        await process.last_words()
        self.error = self._late(self._said or "it gave no answer")
        return self.error

    async def _ended_early(self, process: Process) -> WireError:
        """Why it ended, and what it said last."""
        await process.last_words()
        fault = self.error or self._unavailable("it ended")
        said = "".join(f"\n{line}" for line in process.tail)
        self.error = msgspec.structs.replace(fault, message=f"{fault.message}{said}")
        return self.error

    def _process_ended(self, process: Process, code: int) -> None:
        self._over.set()
        self._log.info("child.died", pid=process.pid, reason=describe(code), code=code)
        if self.state is ServerState.STOPPING:
            self._become(ServerState.IDLE)
            return
        asyncio.get_running_loop().call_later(PIPE_GRACE, process.close_output)
        self._died(describe(code))

    def _died(self, reason: str) -> WireError:
        now = time.monotonic()
        self.error = self._unavailable(reason)
        match self._policy.ended(now, failed=True):
            case StartAgain(after_s=seconds):
                self._not_before = now + seconds
                self._become(ServerState.IDLE)
            case GiveUp(reason=why):
                self.error = self._unavailable(f"{reason}; {why}")
                self._become(ServerState.FAILED)
            case LetRest():
                raise AssertionError(self.state)  # what is permanent does not rest
        return self.error

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting = None
        if not task.cancelled():
            task.exception()  # told to those who waited; perhaps nobody does any more

    def _refused(self, text: str) -> ModelUnavailable:
        return ModelUnavailable(
            message=f"{self._id} is somebody else's and does not take the key: {text}",
            hint="set its key or key_env in config.toml",
        )

    def _late(self, text: str) -> ModelUnavailable:
        limit = self._server.ready_s
        return ModelUnavailable(
            message=f"{self._id} did not become ready within {limit:g} s: {text}",
            hint="see: punie logs; its time is ready_s in config.toml",
        )

    def _unavailable(self, text: str) -> ModelUnavailable:
        return ModelUnavailable(
            message=f"{self._id}: {text}", hint="see: punie logs; its command is in config.toml"
        )

    def _become(self, state: ServerState) -> None:
        assert state in TRANSITIONS[self.state], (self.url, self.state, state)
        self.state = state


class Servers:
    """Every server of the config file, and those that only a prompt names."""

    def __init__(self, servers: list[Server], cwd: str, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._settings = {address(server): server for server in servers}
        self._managed = {
            address(server): ManagedServer(server, cwd, environ)
            for server in servers
            if server.command
        }

    async def ready(self, model: str, progress: Progress) -> Backend:
        """Return what `model`, a server's address, stands for, once a server that Punie keeps is
        ready. Raises `PunieError`."""
        url, name = backends.parse(model)
        server = self._settings.get(url)
        if server is None:
            return Backend(url=url, name=name)
        key = key_of(server, self._environ)
        if managed := self._managed.get(url):
            await managed.ready(key, progress)
        return Backend(
            url=url,
            name=name,
            key=key,
            context_window=server.context_window,
            max_output_tokens=server.max_output_tokens,
            timeout_s=server.timeout_s,
        )

    def explained(self, backend: Backend, error: WireError) -> WireError:
        """Return what a worker says of a server that it did not reach, with how the process ended
        if that was ours; any other error as it is."""
        managed = self._managed.get(backend.url)
        if managed is None or not managed.epitaph or not isinstance(error, ModelUnavailable):
            return error
        hint = "the next prompt starts it again; see: punie logs"
        return ModelUnavailable(message=managed.epitaph, hint=hint)

    async def close(self) -> None:
        """Stop every server that is ours, all at once, for good."""
        await asyncio.gather(*(managed.close() for managed in self._managed.values()))

    def kill(self, reason: str) -> None:
        """SIGKILL what is ours."""
        for managed in self._managed.values():
            managed.kill(reason)

    def status(self) -> list[ServerStatus]:
        """Return their part of the status report, in the order of the config file."""
        return [
            managed.status()
            if (managed := self._managed.get(url))
            else ServerStatus(url=url, state=ServerState.EXTERNAL, pid=None)
            for url in self._settings
        ]


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for `event`, `seconds` at most; return whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
