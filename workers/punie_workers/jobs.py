"""Background commands of one project: started, listed, read, stopped.

They belong to the project, not to the session that started them, and end with it: when it is
closed or its worker ends. What they print is kept like that of any command, between two looks.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from secrets import token_hex
from typing import Final

from punie_protocol.client import BackgroundCommand
from punie_protocol.errors import (
    Cancelled,
    Internal,
    NotFound,
    Overloaded,
    PunieError,
    TimedOut,
    WireError,
)
from punie_protocol.tools_commands import ALL_JOBS, RunCommandResult
from punie_workers.following import Ended
from punie_workers.printed import Printed

MAX_RUNNING: Final = 8
MAX_KNOWN: Final = 32
"""Jobs that are remembered, ended ones too: the first of those make room."""
LIFETIME: Final = 12 * 3600.0
"""Seconds after which a forgotten one is ended."""
EARLY: Final = 0.5
"""Seconds that a start waits for a program that fails at once."""
STOP_TIMEOUT: Final = 5.0

_SHOWN: Final = 200
_TOLD: Final = 4096
"""Characters of a command that the model and the user are told."""

_log = logging.getLogger(__name__)

type Work = Callable[[Callable[[bytes], None]], Awaitable[Ended]]
"""Runs a program to its end; what it prints goes to its argument. Cancelled, it ends it."""


class JobState(StrEnum):
    """``RUNNING``, then one of the others for good."""

    RUNNING = "running"
    ENDED = "ended"
    FAILED = "failed"
    STOPPED = "stopped"


class Job:
    """One background command; `exit_code` when it has ended, `error` when it has failed."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.state = JobState.RUNNING
        self.exit_code: int | None = None
        self.error: WireError | None = None
        self.printed = Printed()
        self._begun = time.monotonic()
        self._seconds: float | None = None

    def take(self, data: bytes) -> None:
        """It has printed more."""
        self.printed.add(data)

    @property
    def seconds(self) -> float:
        """Seconds from its start to its end, or so far."""
        return time.monotonic() - self._begun if self._seconds is None else self._seconds

    def end(self, state: JobState) -> None:
        """It runs no more; the first to say so is right."""
        if self.state is JobState.RUNNING:
            self.state, self._seconds = state, self.seconds

    def describe(self) -> str:
        """Return its state in words."""
        match self.state:
            case JobState.ENDED:
                how = f"ended with status {self.exit_code}"
            case JobState.FAILED if self.error is not None:
                how = f"failed: {self.error.message}"
            case _:
                how = str(self.state)
        return f"{how} after {self.seconds:.0f} s: {self.command[:_SHOWN]}"


class Jobs:
    """Those of one project; owns their processes until `close`. `on_change` is told how many run,
    at each change."""

    def __init__(self, on_change: Callable[[int], None]) -> None:
        self._on_change = on_change
        self._jobs: dict[str, Job] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._numbers = itertools.count(1)
        self._closed = False

    async def start(self, command: str, work: Work) -> RunCommandResult:
        """Run `work` in the background; return its job. Raises `PunieError`: `Overloaded`, and
        what a program fails with that cannot be started."""
        if self._closed:
            raise PunieError(Cancelled(message="the project is closed: no command is started"))
        if len(self._tasks) >= MAX_RUNNING:
            message = f"{MAX_RUNNING} background commands of this project run already"
            hint = f'stop one: run_command(job=ID, stop=True); job="{ALL_JOBS}" lists them'
            raise PunieError(Overloaded(message=message, hint=hint))
        id, job = f"job{next(self._numbers)}-{token_hex(2)}", Job(command)
        self._jobs[id] = job
        task = asyncio.create_task(_run(job, work), name=f"job {id}")
        self._tasks[id] = task
        task.add_done_callback(lambda _: self._ended(id))
        self._on_change(len(self._tasks))
        self._forget()
        await asyncio.wait([task], timeout=EARLY)
        if job.error is not None:
            self._jobs.pop(id, None)
            raise PunieError(job.error)
        return _result(id, job)

    def look(self, id: str) -> RunCommandResult:
        """Return the state of a job, or of all, and what was printed since the last look. Raises
        `PunieError` with `NotFound`."""
        return self._all() if id == ALL_JOBS else _result(id, self._find(id))

    async def stop(self, id: str) -> RunCommandResult:
        """End a job, or all; return what `look` does then. Raises `PunieError`."""
        ids = list(self._tasks) if id == ALL_JOBS else [id] if self._find(id) else []
        tasks = [self._tasks[one] for one in ids if one in self._tasks]
        for one in ids:
            self._jobs[one].end(JobState.STOPPED)
        for task in tasks:
            task.cancel()
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=STOP_TIMEOUT)
            if left:
                message = f"{len(left)} commands did not end within {STOP_TIMEOUT:g} s"
                raise PunieError(TimedOut(message=message, limit_s=STOP_TIMEOUT))
        return self.look(id)

    def running(self) -> list[BackgroundCommand]:
        """Return those that run, the oldest first."""
        return [
            BackgroundCommand(job=id, command=job.command[:_TOLD], seconds=round(job.seconds, 3))
            for id, job in self._jobs.items()
            if job.state is JobState.RUNNING
        ]

    def close(self) -> None:
        """End all, and start no more; does not wait."""
        self._closed = True
        for id, task in self._tasks.items():
            self._jobs[id].end(JobState.STOPPED)
            task.cancel()

    def _find(self, id: str) -> Job:
        if job := self._jobs.get(id):
            return job
        message = f"there is no background command '{id[:100]}'; they end with their project"
        raise PunieError(NotFound(message=message, hint=f'job="{ALL_JOBS}" lists them', what="job"))

    def _all(self) -> RunCommandResult:
        lines = [f"{id} {job.describe()}" for id, job in self._jobs.items()]
        return RunCommandResult(
            ok=True,
            exit_code=None,
            output="\n".join(lines) or "no background commands",
            truncated=False,
            duration=0.0,
            job=ALL_JOBS,
            running=bool(self._tasks),
        )

    def _ended(self, id: str) -> None:
        del self._tasks[id]
        self._on_change(len(self._tasks))

    def _forget(self) -> None:
        ended = [id for id in self._jobs if id not in self._tasks]
        for id in ended[: max(0, len(self._jobs) - MAX_KNOWN)]:
            del self._jobs[id]


async def _run(job: Job, work: Work) -> None:
    """Run the program of a job; never raises but when cancelled."""
    try:
        ended = await work(job.take)
    except PunieError as error:
        job.error = error.error
        job.end(JobState.FAILED)
    except asyncio.CancelledError:
        job.end(JobState.STOPPED)
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, who looks is told
        _log.exception("a background command failed")
        job.error = Internal(message=f"{type(error).__name__}: {error}")
        job.end(JobState.FAILED)
    else:
        job.exit_code = ended.code if ended.code >= 0 else 128 - ended.code
        job.end(JobState.ENDED)


def _result(id: str, job: Job) -> RunCommandResult:
    """Return a job as its state is now; its next output is what comes from now on."""
    printed, job.printed = job.printed, Printed()
    text = printed.text()
    if job.error is not None:
        text = "\n".join(filter(None, [text, f"[{job.describe()}]"]))
    return RunCommandResult(
        ok=job.state is not JobState.FAILED and job.exit_code in (None, 0),
        exit_code=job.exit_code,
        output=text,
        truncated=printed.truncated,
        duration=round(job.seconds, 3),
        job=id,
        running=job.state is JobState.RUNNING,
    )
