"""A client of a daemon of its own, whose model does what a prompt says (`benchmarks.daemon`)."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

from websockets.asyncio.client import ClientConnection, unix_connect

PATIENCE: Final = 120.0
"""Seconds anything may take before the benchmark fails."""
WARM_TRIES: Final = 10
_ROOT: Final = Path(__file__).resolve().parent.parent

type Json = dict[str, Any]
type Steps = list[list[tuple[str, Json]]]
"""What the model is to do in one turn, see `benchmarks.scripted_model`."""


@asynccontextmanager
async def running(home: Path, settings: str = "", *options: str) -> AsyncGenerator[Client]:
    """Run a daemon with that config file while the context is open; yield a client. `options` are
    those of `benchmarks.daemon`."""
    (home / "config").mkdir(parents=True, exist_ok=True)
    (home / "config" / "config.toml").write_text(settings)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PUNIE_HOME": str(home)}
    command = [sys.executable, "-m", "benchmarks.daemon", *options]
    log = home / "daemon.log"
    with log.open("a") as output:
        daemon = await asyncio.create_subprocess_exec(
            *command,
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
        )
    try:
        assert daemon.stdout is not None
        if not await daemon.stdout.readline():
            raise RuntimeError(f"the daemon did not start: {log.read_text()[-2000:]}")
        async with Client.connect(home / "run" / "punie.sock") as client:
            yield client
    finally:
        with contextlib.suppress(ProcessLookupError):
            daemon.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            await daemon.wait()


class Client:
    """JSON-RPC over the daemon's socket. Questions for permission are answered with yes."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Json]] = {}
        self.watch: Callable[[Json], None] = lambda update: None
        """Called with the params of each ``session/update``."""

    @classmethod
    @asynccontextmanager
    async def connect(cls, path: Path) -> AsyncGenerator[Self]:
        """Connect, read until the context is left."""
        async with unix_connect(str(path), compression=None, max_size=None) as socket:
            client = cls(socket)
            reading = asyncio.create_task(client._read())
            try:
                yield client
            finally:
                reading.cancel()
                await asyncio.wait([reading])

    async def call(self, method: str, **params: Any) -> Json:
        """Return the result of a request; raises `RuntimeError` for an error."""
        number = next(self._ids)
        answer: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        await self._send({"id": number, "method": method, "params": params})
        async with asyncio.timeout(PATIENCE):
            message = await answer
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]

    async def session(self, root: Path, isolation: str) -> str:
        """Open a session of a project in which everything is allowed."""
        meta = {"punie": {"isolation": isolation, "mode": "trusted"}}
        made = await self.call("session/new", cwd=str(root), mcpServers=[], _meta=meta)
        return made["sessionId"]

    async def warm(self, folder: Path) -> None:
        """Open projects until a worker is not started from nothing: from then on none is. Raises
        `RuntimeError` when that does not happen."""
        for number in range(WARM_TRIES):
            root = folder / f"warm{number}"
            root.mkdir()
            await self.session(root, "process")
            status = await self.status()
            starts = [
                one["start"] for one in status["workers"] if str(root.resolve()) in one["projects"]
            ]
            if starts != ["spawn"]:
                return
            await asyncio.sleep(1.0)
        raise RuntimeError(f"{WARM_TRIES} workers were started from nothing: see the daemon's log")

    async def prompt(self, session: str, steps: Steps) -> Json:
        """Run a turn; return the ``_meta.punie`` of its end. Raises `RuntimeError` unless it, and
        every tool call in it, ended well."""
        text = json.dumps(steps)
        result = await self.call(
            "session/prompt", sessionId=session, prompt=[{"type": "text", "text": text}]
        )
        meta = result["_meta"]["punie"]
        bad = [one for one in meta.get("tools", []) if one["outcome"] != "ok"]
        if result["stopReason"] != "end_turn" or bad:
            raise RuntimeError(f"a turn went wrong: {result['stopReason']} {bad}")
        return meta

    async def status(self) -> Json:
        """Return the status report."""
        return await self.call("_punie/status")

    async def until(self, holds: Callable[[Json], Any]) -> Any:
        """Ask for the status until `holds` of it is true, and return that."""
        async with asyncio.timeout(PATIENCE):
            while True:
                if value := holds(await self.status()):
                    return value
                await asyncio.sleep(0.02)

    async def _send(self, message: Json) -> None:
        await self._socket.send(json.dumps({"jsonrpc": "2.0"} | message))

    async def _read(self) -> None:
        async for body in self._socket:
            message = json.loads(body)
            match message.get("method"):
                case None:
                    self._answers.pop(message["id"]).set_result(message)
                case "session/update":
                    self.watch(message["params"])
                case "session/request_permission":
                    await self._allow(message)
                case _:
                    pass

    async def _allow(self, question: Json) -> None:
        options = question["params"]["options"]
        yes = next(one["optionId"] for one in options if one["kind"] == "allow_once")
        outcome = {"outcome": {"outcome": "selected", "optionId": yes}}
        await self._send({"id": question["id"], "result": outcome})
