"""Child programs: run to the end, output kept, failure as one exception."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Mapping, Sequence

TAIL_LINES = 6

inherited: list[int] = []
"""Descriptors every child keeps open: what a killed run leaves behind still holds the lock."""


class CommandFailed(Exception):
    """A child program failed, hung or could not be started; the text is the end of its output."""


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 900,
) -> str:
    """Run a program without input and return its stdout; raise `CommandFailed` otherwise."""
    command = [str(word) for word in argv]
    try:
        done = subprocess.run(
            command,
            env=None if env is None else dict(env),
            cwd=cwd,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            pass_fds=inherited,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"{command[0]} did not end within {timeout_s:.0f} s") from None
    except OSError as error:
        raise CommandFailed(f"{command[0]} cannot be started: {error}") from None
    if done.returncode != 0:
        raise CommandFailed(_failure(command[0], done))
    return done.stdout


def _failure(program: str, done: subprocess.CompletedProcess[str]) -> str:
    said = tail(done.stderr) or tail(done.stdout)
    return said or f"{program} ended with status {done.returncode}"


def tail(text: str) -> str:
    """The last lines that carry text, less mere warnings."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.lower().startswith("warning")] or lines
    return "\n".join(lines[-TAIL_LINES:])
