"""A daemon in this process with fake children, and a bare client for it."""

import asyncio
import contextlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed

from punie_supervisor.child_spec import Programs
from punie_supervisor.config import Config
from punie_supervisor.daemon import Daemon
from punie_supervisor.paths import Paths
from tests.support.cli import LEVEL

SUPPORT = Path(__file__).parent
PROGRAMS = Programs(
    model_host=(
        *(sys.executable, str(SUPPORT / "supervisor_model_host.py")),
        *("--control-fd", "{fd}", "--model", "{model}", "--settings", "{settings}"),
    ),
    worker=(sys.executable, str(SUPPORT / "supervisor_worker.py"), "--control-fd", "{fd}"),
)
DEADLINE = 10.0


def paths_of(home: Path) -> Paths:
    """Return paths below `home`, prepared."""
    paths = Paths.from_environment({"PUNIE_HOME": str(home)})
    paths.prepare()
    return paths


@asynccontextmanager
async def running(
    home: Path, *, model: str = "tiny", **options: Any
) -> AsyncGenerator[tuple[Daemon, Paths]]:
    """Run a daemon while the context is open; `config` instead of `model` for more settings."""
    paths = paths_of(home)
    config = options.pop("config", Config(model=model, isolation=LEVEL))
    daemon = Daemon(paths, config, programs=PROGRAMS, **options)
    listening = asyncio.Event()
    task = asyncio.create_task(daemon.run(listening.set))
    waiting = asyncio.create_task(listening.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        if task.done():
            task.result()
        yield daemon, paths
    finally:
        daemon.stop("the test is over")
        async with asyncio.timeout(DEADLINE):
            await task


class Failed(Exception):
    """An error response; `error` is its object."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.error = error
        self.punie: dict[str, Any] = error.get("data", {}).get("punie", {})


class Client:
    """JSON-RPC by hand. `seen` is all that came, in order; nothing is answered by itself."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seen: list[dict[str, Any]] = []
        self._news = asyncio.Event()
        self._ids = iter(range(100, 1_000_000))
        self._reader = asyncio.create_task(self._read())

    @classmethod
    @asynccontextmanager
    async def connect(cls, paths: Paths) -> AsyncGenerator[Self]:
        async with unix_connect(str(paths.socket), compression=None, max_size=None) as socket:
            client = cls(socket)
            try:
                yield client
            finally:
                client._reader.cancel()
                await asyncio.wait([client._reader])

    async def send(self, **members: Any) -> None:
        await self.socket.send(json.dumps({"jsonrpc": "2.0"} | members))

    def together(self, *messages: dict[str, Any]) -> None:
        """Send messages in one write."""
        for members in messages:
            text = json.dumps({"jsonrpc": "2.0"} | members)
            self.socket.protocol.send_text(text.encode())
        self.socket.transport.write(b"".join(self.socket.protocol.data_to_send()))

    async def start(self, method: str, **params: Any) -> int:
        """Send a request and return its id."""
        id = next(self._ids)
        await self.send(id=id, method=method, params=params)
        return id

    async def result(self, id: Any) -> Any:
        """Wait for the response to `id`."""
        answer = await self.until(lambda m: m.get("id") == id and "method" not in m)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["result"]

    async def call(self, method: str, **params: Any) -> Any:
        return await self.result(await self.start(method, **params))

    async def until(self, matches: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first message, seen or to come, that matches."""
        async with asyncio.timeout(DEADLINE):
            while True:
                for message in self.seen:
                    if matches(message):
                        return message
                self._news.clear()
                await self._news.wait()

    async def method(self, name: str) -> dict[str, Any]:
        return await self.until(lambda message: message.get("method") == name)

    async def session(self, cwd: Path, isolation: str | None = None) -> str:
        meta = {"punie": {"isolation": isolation}} if isolation else {}
        made = await self.call("session/new", cwd=str(cwd), mcpServers=[], _meta=meta)
        return made["sessionId"]

    async def ask(self, session: str, text: str, **punie: Any) -> int:
        prompt = [{"type": "text", "text": text}]
        meta = {"punie": punie}
        return await self.start("session/prompt", sessionId=session, prompt=prompt, _meta=meta)

    async def answer(self, session: str, text: str, **punie: Any) -> Any:
        return await self.result(await self.ask(session, text, **punie))

    async def said(self, session: str, text: str, **punie: Any) -> str:
        return (await self.answer(session, text, **punie))["_meta"]["punie"]["said"]

    def updates(self) -> list[dict[str, Any]]:
        return [m["params"] for m in self.seen if m.get("method") == "session/update"]

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for body in self.socket:
                self.seen.append(json.loads(body))
                self._news.set()


async def eventually(holds: Callable[[], Any], within: float = DEADLINE) -> Any:
    """Poll until `holds` returns something true, and return that."""
    deadline = time.monotonic() + within
    while not (value := holds()):
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)
    return value


def prompt_state(journal: Path, prompt: str) -> str | None:
    """Return the state of a prompt in the journal, ``None`` when it is not there."""
    db = sqlite3.connect(journal)
    try:
        row = db.execute("SELECT state FROM prompts WHERE id = ?", (prompt,)).fetchone()
        return row and row[0]
    finally:
        db.close()


def alive(pid: int) -> bool:
    """Return whether a process runs (a zombie does not)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
