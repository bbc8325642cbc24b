"""One process: its group, its output, its end. What it is for, its owner knows.

The end is noticed through a pidfd, and whatever it left in its process group, on Linux in its
session too, is killed while its pid is still reserved.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Self

from punie_supervisor import logs, strays

PIPE_GRACE: Final = 0.1
"""After the end, its pipes may be held open by a descendant for so many seconds."""
MAX_LINES: Final = 200
"""Lines of output in one second that reach the log; the rest is counted."""
MAX_LINE: Final = 4096
"""Bytes of a line of output that reach the log."""
TAIL: Final = 8
"""Last lines of output that are remembered."""


class Process:
    """Owns a process in a session of its own, and its output, which goes to `log` by lines, without
    `secret`; `tail` are the last ones."""

    def __init__(
        self, id: str, pid: int, reap: Callable[[], int], output: int, secret: str = ""
    ) -> None:
        self.pid = pid
        self.tail: deque[str] = deque(maxlen=TAIL)
        self.over = False
        self._reap = reap
        self._output = output
        self.rename(id)
        self._secret = secret
        self._lines = logs.LineLimit(MAX_LINES, self._output_dropped)
        self._output_over = asyncio.Event()
        self._pipe: asyncio.BaseTransport | None = None
        strays.remember(pid)

    @classmethod
    def start(
        cls,
        id: str,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        cwd: str,
        pass_fds: Sequence[int] = (),
        secret: str = "",
    ) -> Self:
        """Start it; `watch` and `read_output` are to follow at once. Raises `OSError` when the
        program cannot be run.

        To be called from the main thread: the children's parent-death signal is bound to it.
        """
        read, write = os.pipe()
        try:
            popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                env=environment,
                cwd=cwd,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        return cls(id, popen.pid, popen.wait, read, secret)

    @classmethod
    def adopt(cls, id: str, pid: int, output: int) -> Self:
        """Take over a child of this process that another one forked. It leads a session; `output`
        is the reading end of its output, from now on owned here. `watch` and `read_output` are to
        follow at once."""
        return cls(id, pid, partial(_reap, pid), output)

    def rename(self, id: str) -> None:
        """Log as `id` from now on."""
        self._log = logs.get(child=id, pid=self.pid)

    def watch(self, ended: Callable[[int], None]) -> None:
        """Have `ended` called once, with the exit code (negative for a signal), when it has."""
        loop = asyncio.get_running_loop()
        if not hasattr(os, "pidfd_open"):
            # Not one of the executor's, which are few: it waits as long as the child lives.
            threading.Thread(target=self._wait_blocking, args=(loop, ended), daemon=True).start()
            return
        fd = os.pidfd_open(self.pid)

        def readable() -> None:
            loop.remove_reader(fd)
            os.close(fd)
            self._end(ended)

        loop.add_reader(fd, readable)

    async def read_output(self) -> None:
        """Begin to read what it says."""
        pipe = os.fdopen(self._output, "rb", buffering=0)
        self._pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: Lines(self._say, self._output_over.set), pipe
        )

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the whole process group, unless it has ended."""
        if not self.over:
            os.killpg(self.pid, number)

    async def last_words(self) -> None:
        """After the end: wait up to `PIPE_GRACE` for what it said last, then `close_output`."""
        try:
            async with asyncio.timeout(PIPE_GRACE):
                await self._output_over.wait()
        except TimeoutError:
            self._log.info("child.output_held", detail="a descendant keeps its output open")
        self.close_output()

    def close_output(self) -> None:
        """Read no more of what it says. Idempotent."""
        if self._pipe is not None:
            self._pipe.close()
        self._lines.close()

    def _wait_blocking(self, loop: asyncio.AbstractEventLoop, ended: Callable[[int], None]) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        try:
            loop.call_soon_threadsafe(self._end, ended)
        except RuntimeError:
            if not loop.is_closed():  # then nobody asks any more
                raise

    def _end(self, ended: Callable[[int], None]) -> None:
        # The pid is a zombie's until `wait`, so its group id cannot be somebody else's.
        # macOS says EPERM for a group of zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for pid in _session(self.pid):  # programs of a worker have groups of their own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code = self._reap()
        strays.forget(self.pid)
        self.over = True
        ended(code)
        strays.sweep()

    def _say(self, line: str) -> None:
        if self._secret:
            line = line.replace(self._secret, "…")
        self.tail.append(line)
        if self._lines.passes():
            self._log.info("child.output", line=line)

    def _output_dropped(self, lines: int) -> None:
        self._log.warning("child.output_dropped", lines=lines)


def _reap(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _session(id: int) -> list[int]:
    """Return the processes of a session but its leader; none where there is no ``/proc``."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):  # noqa: PTH208 (hundreds of names, while the loop waits)
            with contextlib.suppress(ProcessLookupError):
                if name.isdecimal() and int(name) != id and os.getsid(int(name)) == id:
                    found.append(int(name))
    return found


def describe(code: int) -> str:
    """Return a line for a person about how a process ended."""
    if code >= 0:
        return f"it exited with code {code}"
    try:
        return f"it was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"it was ended by signal {-code}"


class Lines(asyncio.Protocol):
    """Cuts output into lines of at most `MAX_LINE` bytes; the rest of a longer one is dropped."""

    def __init__(self, say: Callable[[str], None], over: Callable[[], None]) -> None:
        self._say = say
        self._over = over
        self._part = bytearray()

    def data_received(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._keep(line)
            self._end()
        self._keep(rest)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._over()

    def _keep(self, data: bytes) -> None:
        self._part += data[: MAX_LINE - len(self._part)]

    def _end(self) -> None:
        if text := self._part.decode("utf-8", "replace").rstrip():
            self._say(text)
        self._part.clear()
