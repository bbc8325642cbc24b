"""Model hosts without a supervisor: one alone, or ranks under the real ``mlx.launch``."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import openai
import psutil

DEADLINE = 40.0
"""Seconds for what has to happen; nothing is asserted of how fast it does."""
KEY = "k" * 43
ROOT = Path(__file__).parents[2]
PROGRAM = ("-m", "punie_model_host.main")
LAUNCH = Path(sys.executable).parent / "mlx.launch"


@dataclass
class Hosts:
    """`process` is the launcher, or the host itself when it is alone."""

    process: subprocess.Popen[bytes]
    socket: Path
    log: Path

    def client(self) -> openai.AsyncOpenAI:
        """Return the official client, to be used as a context manager; it tries nothing again."""
        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=DEADLINE)

    @property
    def port(self) -> int:
        """Where the HTTP door is open."""
        found = re.search(r"door-open .*port=(\d+)", self.log.read_text())
        assert found is not None
        return int(found[1])

    def until(self, line: str) -> None:
        """Wait for a line of the log."""
        deadline = time.monotonic() + DEADLINE
        while line not in self.log.read_text():
            assert self.process.poll() is None, f"ended without {line!r}"
            assert time.monotonic() < deadline, f"no {line!r} within {DEADLINE} s"
            time.sleep(0.02)

    def until_there(self) -> None:
        """Wait for its socket."""
        deadline = time.monotonic() + DEADLINE
        while not self.socket.exists():
            assert time.monotonic() < deadline, f"no socket within {DEADLINE} s"
            time.sleep(0.02)

    def ended(self) -> int:
        """Wait for its end, and return its exit code."""
        return self.process.wait(DEADLINE)

    def ranks(self) -> dict[int, psutil.Process]:
        """Return the ranks' processes."""
        joined = re.findall(r"joined rank=(\d+) .*pid=(\d+)", self.log.read_text())
        return {int(rank): psutil.Process(int(pid)) for rank, pid in joined}


@contextmanager
def alone(
    folder: Path, model: Path, *options: str, environment: Mapping[str, str] = {}
) -> Generator[Hosts]:
    """Run one host, which has the whole model unless its `environment` says otherwise."""
    with _running([sys.executable, *PROGRAM], folder, model, options, environment) as hosts:
        yield hosts


@contextmanager
def launched(
    folder: Path, model: Path, *options: str, ranks: int = 2, program: Sequence[str] = PROGRAM
) -> Generator[Hosts]:
    """Run a host of several ranks."""
    launch = [str(LAUNCH), "--backend", "ring", "-n", str(ranks), "-p", str(free_ports(ranks))]
    start = [*launch, "--", sys.executable, *program]
    with _running(start, folder, model, options) as hosts:
        yield hosts


@contextmanager
def _running(
    start: list[str],
    folder: Path,
    model: Path,
    options: tuple[str, ...],
    environment: Mapping[str, str] = {},
) -> Generator[Hosts]:
    folder.mkdir(exist_ok=True)
    path, log, key = folder / "model.sock", folder / "host.log", folder / "key"
    key.write_text(KEY + "\n")
    command = [*start, "--socket", str(path), "--model", str(model)]
    command += ["--openai-port", "0", "--openai-key-file", str(key)]
    env = {"PATH": os.environ["PATH"], "HOME": str(folder)} | dict(environment)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *options],
            env=env,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            start_new_session=True,
        )
    hosts = Hosts(process, path, log)
    try:
        yield hosts
    except BaseException as error:
        error.add_note(log.read_text())
        raise
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and whatever is left of it: all are one session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(DEADLINE)
    assert process.stdin is not None
    process.stdin.close()


def free_ports(count: int) -> int:
    """Return the first of `count` ports in a row that nobody has: where MLX's ring listens."""
    for _ in range(100):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            first = probe.getsockname()[1]
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise OSError(f"no {count} free ports in a row")


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
