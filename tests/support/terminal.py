"""A command on a pseudo-terminal: what a person sees, what a person types."""

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

PATIENCE = 60.0
"""A busy machine may take so long, seconds."""


_TAKE = (
    "import fcntl, os, sys, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)
"""Makes standard input the controlling terminal, so that a typed Ctrl-C is a signal."""


class Terminal:
    """Runs a command with all three streams on one terminal. A context manager.

    `shown` is everything that was on the screen, with ``\\r\\n`` as ``\\n``.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], cwd: Path) -> None:
        self._leader, follower = pty.openpty()
        self.before = termios.tcgetattr(follower)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE, *command],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env={**environ, "TERM": "xterm"},
            cwd=cwd,
            start_new_session=True,
        )
        self._follower = follower
        self._data = b""
        self._read_until = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._follower)
        os.close(self._leader)

    @property
    def shown(self) -> str:
        return self._data.decode(errors="replace").replace("\r\n", "\n")

    @property
    def is_sane(self) -> bool:
        """Whether the terminal works as it did before the command."""
        return termios.tcgetattr(self._follower) == self.before

    def wait_for(self, text: str) -> None:
        """Read until `text` is shown after what the last call waited for."""
        deadline = time.monotonic() + PATIENCE
        while (at := self.shown.find(text, self._read_until)) < 0:
            assert time.monotonic() < deadline, f"no {text!r} in {self.shown!r}"
            self._read(0.1)
        self._read_until = at + len(text)

    def type(self, text: str) -> None:
        """Type; ``\\x03`` is Ctrl-C, ``\\x04`` Ctrl-D."""
        os.write(self._leader, text.encode())

    def hang_up(self) -> None:
        """Close the terminal, as when its window is closed."""
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, self._leader)  # `__exit__` closes that
        os.close(null)

    def end(self) -> int:
        """Read to the end of the command; return its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running: {self.shown!r}"
            self._read(0.05)
        while self._read(0):
            pass
        return self.process.returncode

    def _read(self, wait: float) -> bool:
        if not select.select([self._leader], [], [], wait)[0]:
            return False
        self._data += os.read(self._leader, 65536)
        return True
