"""The `punie` command as a child process, with a home of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from punie_protocol.messages.common import Isolation

LEVEL = Isolation(os.environ.get("PUNIE_TEST_ISOLATION", Isolation.PROCESS))
"""The level of projects for which a test asks for none: ``make test-all`` goes through both."""
COMMAND = [sys.executable, "-m", "punie_supervisor.cli.main"]
PATIENCE = 60.0
"""A busy machine may take so long for one command, seconds."""


class Punie:
    """A user with an empty home. `close` stops the daemon and says whether it went."""

    def __init__(self, home: Path, level: Isolation = LEVEL) -> None:
        self.home = home
        self.level = level
        kept = ("PATH", "LANG", "TMPDIR")
        self.environ = {name: os.environ[name] for name in kept if name in os.environ}
        self.environ |= {"HOME": str(home), "PUNIE_HOME": str(home / "punie")}

    def _set_level(self) -> None:
        """Before the first command, and unless the test has a config file of its own."""
        config = self.home / "punie" / "config" / "config.toml"
        if self.level is not Isolation.PROCESS and not config.exists():
            config.parent.mkdir(parents=True, exist_ok=True)
            config.write_text(f'isolation = "{self.level}"\n')

    def popen(self, *args: str | Path) -> subprocess.Popen[str]:
        """Start the command; stdin is empty."""
        self._set_level()
        return self.popen_of([*COMMAND, *map(str, args)])

    def popen_of(self, command: list[str]) -> subprocess.Popen[str]:
        """Start any command in this user's place; stdin is empty."""
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environ,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
        )

    def run(self, *args: str | Path, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        self._set_level()
        return subprocess.run(
            [*COMMAND, *map(str, args)],
            capture_output=True,
            text=True,
            env=self.environ,
            cwd=self.home,
            timeout=PATIENCE,
            check=False,
            input=input or "",
        )

    def ask(self, directory: Path, text: str, *args: str) -> dict[str, Any]:
        """Ask and return the report; the command has to succeed."""
        result = self.run("ask", "-C", directory, "--format", "json", *args, "--", text)
        assert result.returncode == 0, f"{text!r}: {result.stderr}\n{self.log()}"
        return json.loads(result.stdout)

    def status(self) -> dict[str, Any]:
        """Return the status report."""
        result = self.run("status", "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def log(self) -> str:
        """Return the end of the daemon's log."""
        file = self.home / "punie" / "state" / "punie.log"
        return file.read_text(errors="replace")[-4000:] if file.exists() else "(no log)"

    def kill(self, pid: int) -> None:
        """Kill -9."""
        os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Stop the daemon; nothing of it may stay."""
        pids = daemon_pids(self.home)
        result = self.run("down")
        assert result.returncode == 0, result.stderr
        wait_until(lambda: not alive(pids), "daemon and children gone", lambda: str(alive(pids)))
        shutil.rmtree(self.home, ignore_errors=True)


def daemon_pids(home: Path) -> set[int]:
    """Return the daemon of this home and all that descends from it."""
    lock = home / "punie" / "run" / "punie.lock"
    text = lock.read_text().strip() if lock.exists() else ""
    if not text or not psutil.pid_exists(int(text)):
        return set()
    daemon = psutil.Process(int(text))
    return {daemon.pid} | {child.pid for child in daemon.children(recursive=True)}


def alive(pids: set[int]) -> set[int]:
    """Return those that still run (a zombie does not)."""
    running = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state != "Z":
            running.add(pid)
    return running


def wait_until(
    condition: Callable[[], bool],
    what: str,
    detail: Callable[[], str] = str,
    patience: float = 10.0,
) -> None:
    """Poll until `condition` holds; fail with `what` and `detail` after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what} {detail()}"
        time.sleep(0.02)
