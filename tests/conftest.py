"""Fixtures every test may use, and the leak check that every test gets."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

settings.register_profile("punie", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("punie")

LEAK_PATIENCE = 5.0
"""What a test left behind may take so long to go away by itself, seconds."""


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves child processes, descriptors or threads behind."""
    before = _Resources()
    yield
    deadline = time.monotonic() + LEAK_PATIENCE
    while (left := _Resources().beyond(before)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, f"left behind: {left}"


@pytest.fixture
def punie_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh ``PUNIE_HOME``, short enough for a socket."""
    return tmp_path_factory.mktemp("home")


class _Resources:
    """Children, descriptors and threads of this process."""

    def __init__(self) -> None:
        self.children = {
            child.pid: " ".join(_command(child))
            for child in psutil.Process().children(recursive=True)
            if child.is_running() and _status(child) != psutil.STATUS_ZOMBIE
        }
        self.threads = {thread.ident: thread.name for thread in threading.enumerate()}
        self.descriptors = _descriptors()

    def beyond(self, before: _Resources) -> list[str]:
        """Return what is here and was not there before."""
        left = [
            f"process {pid}: {name}"
            for pid, name in self.children.items()
            if pid not in before.children
        ]
        left += [f"thread {name}" for id, name in self.threads.items() if id not in before.threads]
        left += [
            f"descriptor {fd}: {target}"
            for fd, target in self.descriptors.items()
            if before.descriptors.get(fd) != target
        ]
        return left


def _descriptors() -> dict[int, str]:
    folder = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
    found: dict[int, str] = {}
    for entry in folder.iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except OSError:  # the descriptor of the listing itself
            continue
    return found


def _status(process: psutil.Process) -> str:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_ZOMBIE


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return ["?"]
