"""Starting, finding and stopping the daemon."""

import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import msgspec

from punie_protocol.backends import is_backend
from punie_protocol.client import Drafting
from punie_protocol.errors import Internal, TimedOut, WireError
from punie_supervisor.clients.errors import StartFailed
from punie_supervisor.drafting import NOTHING, arguments
from punie_supervisor.paths import Paths

START_TIMEOUT = 20.0
"""From the start of the daemon's process to its listening socket, seconds."""


class Readiness(msgspec.Struct):
    """The line a starting daemon writes: its pid, or why it ends."""

    pid: int | None = None
    error: WireError | None = None


def is_running(paths: Paths) -> bool:
    """Return whether a daemon holds the lifetime lock."""
    try:
        with paths.lock_file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or no such folder: nobody runs there
        return False
    return False


def daemon_pid(paths: Paths) -> int | None:
    """Return the pid in the lock file of a running daemon."""
    if not is_running(paths):
        return None
    text = paths.lock_file.read_text(errors="replace").strip()
    return int(text) if text.isdecimal() else None


def ensure_for_prompt(paths: Paths, *, model: str | None, patience: float) -> int | None:
    """`ensure_running` for a prompt with that `model`. A model of our own host is the daemon's
    from then on; a server's is this prompt's alone, and our host rests until it is needed."""
    if model is not None and is_backend(model):
        return ensure_running(paths, rest=True, patience=patience)
    return ensure_running(paths, model=model, patience=patience)


def ensure_running(
    paths: Paths,
    *,
    model: str | None = None,
    drafting: Drafting = NOTHING,
    rest: bool = False,
    patience: float,
) -> int | None:
    """Start a daemon unless one runs or is just starting; return the pid of one started here, which
    alone has that model and settings.

    Blocks up to `patience` seconds. Raises `StartFailed` with the daemon's own reason.
    """
    if is_running(paths):
        return None
    try:
        return start(paths, model=model, drafting=drafting, rest=rest, patience=patience)
    except StartFailed:
        if is_running(paths):
            return None  # somebody else was faster
        raise


def start(
    paths: Paths,
    *,
    model: str | None = None,
    drafting: Drafting = NOTHING,
    rest: bool = False,
    patience: float = START_TIMEOUT,
) -> int:
    """Start a detached daemon and return its pid once its socket listens.

    Blocks up to `patience` seconds. Raises `StartFailed` with the daemon's own reason.
    """
    paths.prepare()
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "punie_supervisor.main", "--detached"]
    command += ["--ready-fd", str(write_end)]
    if model is not None:
        command += ["--model", model]
    if rest:
        command.append("--rest")
    command += arguments(drafting)
    with os.fdopen(read_end, "rb") as pipe, _open_log(paths.log_file) as log:
        process = subprocess.Popen(
            command,
            env=_environment(paths),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            pass_fds=[write_end],
            start_new_session=True,
        )
        os.close(write_end)
        answer = _read_readiness(process, pipe.fileno(), paths.log_file, patience)
    if answer.error is not None:
        raise StartFailed(answer.error)
    # The daemon outlives us; nobody is to wait for it.
    process.returncode = 0
    return answer.pid or process.pid


def stop_by_signal(paths: Paths, *, patience: float = 6.0) -> bool:
    """End a daemon that does not answer: SIGTERM, after `patience` seconds SIGKILL.

    Returns whether it is gone. Only the process that holds the lock is signalled.
    """
    for step in (signal.SIGTERM, signal.SIGKILL):
        if (pid := daemon_pid(paths)) is None:
            return not is_running(paths)
        try:
            os.kill(pid, step)
        except ProcessLookupError:
            return True
        if wait_gone(paths, patience):
            return True
    return False


def wait_gone(paths: Paths, patience: float) -> bool:
    """Wait up to `patience` seconds until no daemon holds the lock; return whether that is so."""
    deadline = time.monotonic() + patience
    while is_running(paths):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _environment(paths: Paths) -> dict[str, str]:
    """The daemon runs in another folder: a relative home would be another one there."""
    environ = dict(os.environ)
    if environ.get("PUNIE_HOME"):
        environ["PUNIE_HOME"] = str(paths.home)
    return environ


def _open_log(file: Path) -> BinaryIO:
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def _read_readiness(
    process: subprocess.Popen[bytes], fd: int, log_file: Path, patience: float
) -> Readiness:
    ready, _, _ = select.select([fd], [], [], patience)
    if not ready:
        process.kill()
        process.wait()
        message = f"the daemon was not ready within {patience:g} s"
        raise StartFailed(TimedOut(message=message, hint="see: punie logs", limit_s=patience))
    line = os.read(fd, 65536)
    if not line:
        code = process.wait(timeout=5)
        message = f"the daemon ended with exit code {code} before it was ready"
        raise StartFailed(Internal(message=message, hint=f"see {log_file}"))
    return msgspec.json.decode(line, type=Readiness)
