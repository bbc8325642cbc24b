"""A user whose model is a script: the whole chain runs, only the knowledge is given."""

import asyncio
import json
import subprocess
import threading
from collections.abc import Coroutine
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from tests.support.cli import COMMAND, Punie
from tests.support.openai_server import OpenAIServer, Reply, call
from tests.support.terminal import Terminal


def use(name: str, **arguments: Any) -> Reply:
    """The model calls a tool."""
    return call(name, json.dumps(arguments))


def program(code: str) -> Reply:
    """The model writes a program."""
    return use("execute_code", code=code)


class Script:
    """A model that plays `replies`, or what `server` knows; served from a thread of its own. A
    context manager."""

    def __init__(self, *replies: Reply, server: OpenAIServer | None = None) -> None:
        self._server = server or OpenAIServer(replies)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scripted model")

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._server.start())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._do(self._server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def model(self) -> str:
        """The model's name."""
        return f"{self._server.url}#scripted"

    @property
    def told(self) -> list[str]:
        """What the tools answered, as the model read it in its last request."""
        messages = self._server.requests[-1].body["messages"]
        return [message["content"] for message in messages if message["role"] == "tool"]

    @property
    def steps(self) -> int:
        """How often it was asked."""
        return len(self._server.requests)

    def add(self, *replies: Reply) -> None:
        """Play these too."""
        self._server.script.extend(replies)

    def ask(
        self, user: Punie, project: Path, *args: str, text: str = "Do it"
    ) -> subprocess.CompletedProcess[str]:
        """Ask it without a terminal."""
        return user.run("ask", "-C", project, "--model", self.model, *args, "--", text)

    def ask_on_terminal(
        self, user: Punie, project: Path, *args: str, text: str = "Do it"
    ) -> Terminal:
        """Ask it on a terminal."""
        command = [*COMMAND, "ask", "-C", str(project), "--model", self.model, *args, "--", text]
        return Terminal(command, user.environ, user.home)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Return mode and hash of each file below a folder, git's own left out."""
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_mode,
            sha256(path.read_bytes()).hexdigest(),
        )
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }
