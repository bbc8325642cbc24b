"""The two servers that `benchmarks.engine` compares, each a child that ends with the benchmark.

`Peer` is ``mlx_lm.server`` with its defaults; `Ours` the real daemon with a home of its own, its
model host asked through the HTTP door. Both compute with the same BLAS on as many threads.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psutil

from benchmarks.engine_client import Server, answered
from punie_model_host import blas

START: Final = 120.0
"""Seconds a server may take until it answers."""
COMMAND: Final = 60.0
"""Seconds a command of ours may take."""
_PUNIE: Final = str(Path(sys.executable).with_name("punie"))
_SUPERVISOR: Final = str(Path(sys.executable).with_name("punie-supervisor"))


def conditions() -> dict[str, Any]:
    """Return what holds for both servers."""
    library = blas.wanted(os.environ, Path(sys.prefix), sys.platform)
    return {
        "blas": library.name if library else "built into MLX",
        "blas_threads": blas.threads(os.process_cpu_count() or 1),
        "sampling": "greedy",
        "transport": "HTTP/1.1, a connection for each request, streamed, usage included",
        "theirs": "python -m mlx_lm server with its defaults; the BLAS is preloaded",
        "weights": "float32; the embedded model's bfloat16, which ours computes in float32",
        "ours": "the daemon, its door; [engine] with its defaults, disk_mb = 0 where time is "
        'measured, so that nothing is written while theirs has its turn; cpu_kernels = "on", '
        "because theirs compiles its kernels at first use",
    }


class Peer:
    """``mlx_lm.server`` on a model folder."""

    name = "theirs"

    def __init__(self, folder: Path, scratch: Path, *options: str) -> None:
        self._folder = folder
        self._scratch = scratch
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.server = Server(0)

    async def start(self) -> None:
        """Start it and wait until it answers."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        self.server = Server(_free_port())
        command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(self._folder)]
        command += ["--port", str(self.server.port), "--log-level", "ERROR", *self._options]
        self._process = _spawn(command, self._environ(), self._scratch / "log")
        await self._until_it_answers()

    def _environ(self) -> dict[str, str]:
        environ = _environ(self._scratch)
        library = blas.wanted(os.environ, Path(sys.prefix), sys.platform)
        if library is not None:
            environ["LD_PRELOAD"] = str(library)
        threads = blas.threads(os.process_cpu_count() or 1)
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        temporary = {"TMPDIR": str(self._scratch), "OPENBLAS_NUM_THREADS": str(threads)}
        return environ | offline | temporary

    async def _until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(ConnectionError, RuntimeError):
                await answered(self.server, [{"role": "user", "content": "aaa"}], 2)
                return
            await asyncio.sleep(0.2)
        raise RuntimeError(f"mlx_lm.server does not answer: {_tail(self._scratch / 'log')}")

    async def restart(self) -> None:
        """End it as a person would, and start it again."""
        self.stop(signal.SIGINT)
        await self.start()

    async def kill(self) -> None:
        """End it as a crash would, and start it again."""
        self.stop(signal.SIGKILL)
        await self.start()

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it; waits until it is gone."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(how)
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(COMMAND)
        self._process = None

    def cpu_seconds(self) -> float:
        """Return the processor time it has used."""
        assert self._process is not None
        return _cpu_seconds(self._process.pid)


class Ours:
    """The daemon on a model folder. `settings` are lines of ``[engine]`` in its config file."""

    name = "ours"

    def __init__(self, folder: Path, home: Path, settings: Iterable[str] = ()) -> None:
        self._home = home
        self._environ = _environ(home) | {"PUNIE_HOME": str(home)}
        config = home / "config" / "config.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"model = {json.dumps(str(folder))}", "[engine]", 'cpu_kernels = "on"', *settings]
        config.write_text("\n".join(lines) + "\n")
        self._daemon: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self.server = Server(0)

    async def start(self) -> None:
        """Start the daemon and wait until its door is open and the model answers."""
        self._daemon = _spawn([_SUPERVISOR], self._environ, self._home / "daemon.log")
        await self._open()

    async def _open(self) -> None:
        deadline = time.monotonic() + START
        error = "it did not start"
        while time.monotonic() < deadline:
            try:
                door = json.loads(self.punie("model", "serve", "--openai-port", "0", "--json"))
                self.server = _server(door)
                await answered(self.server, [{"role": "user", "content": "aaa"}], 2)
            except (ConnectionError, RuntimeError) as fault:
                error = str(fault)
                await asyncio.sleep(0.2)
            else:
                self._pid = self.status()["pid"]
                return
        raise RuntimeError(f"our door does not answer: {error} {_tail(self._home / 'daemon.log')}")

    def punie(self, *arguments: str) -> str:
        """Run a command of ours; return what it printed. Raises `RuntimeError` when it fails."""
        done = subprocess.run(
            [_PUNIE, *arguments],
            env=self._environ,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"punie {arguments}: exit {done.returncode}: {done.stderr[-1000:]}")
        return done.stdout

    def status(self) -> dict[str, Any]:
        """Return the model's part of the status report."""
        return json.loads(self.punie("status", "--json"))["model"]

    async def restart(self) -> None:
        """Stop the daemon in good order, and start it again."""
        self.stop()
        await self.start()

    async def kill(self) -> None:
        """Kill the model host; the daemon replaces it."""
        pid = self._pid
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + START
        while (present := self.status())["pid"] in (None, pid) or present["state"] != "ready":
            if time.monotonic() > deadline:
                raise RuntimeError(f"the model host was not replaced: {present}")
            await asyncio.sleep(0.1)
        await self._open()

    def stop(self) -> None:
        """End the daemon and its children in good order; waits until it is gone."""
        if self._daemon is None:
            return
        self._daemon.terminate()
        try:
            self._daemon.wait(COMMAND)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait(COMMAND)
        self._daemon = None

    def cpu_seconds(self) -> float:
        """Return the processor time that the model host has used."""
        return _cpu_seconds(self._pid)


type AnyServer = Peer | Ours


@asynccontextmanager
async def running(*servers: AnyServer) -> AsyncGenerator[None]:
    """Start the servers; end them with the context, however it is left."""
    try:
        for server in servers:
            await server.start()
        yield
    finally:
        for server in servers:
            server.stop()


def _server(door: dict[str, Any]) -> Server:
    """Return where the door is, and its key."""
    return Server(urlsplit(door["url"]).port or 0, Path(door["key_file"]).read_text().strip())


def _environ(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONUNBUFFERED": "1"}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _spawn(command: list[str], environ: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a server that ends with this process, even if that is killed."""
    leash = [sys.executable, "-P", "-m", "punie_supervisor.leash", str(os.getpid())]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*leash, *command],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:] if log.exists() else ""
