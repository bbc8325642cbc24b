"""The command line against daemons that are not as they should be."""

import asyncio
import fcntl
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, unix_serve

from punie_protocol.limits import PROTOCOL
from punie_supervisor.paths import Paths
from tests.support.cli import Punie

type Serve = Callable[[ServerConnection], Awaitable[None]]


async def against(home: Path, serve: Serve, *args: str) -> tuple[int, str, str]:
    """Run a command against a stand-in for the daemon; return its exit code and output."""
    user = Punie(home)
    paths = Paths.from_environment(user.environ)
    paths.prepare()
    with paths.lock_file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with unix_serve(serve, str(paths.socket)):
            process = await asyncio.to_thread(user.run, *args)
    return process.returncode, process.stdout, process.stderr


def speaking(version: str, protocol: int) -> Serve:
    """A daemon of that version, which knows ``initialize`` and nothing else."""

    async def serve(connection: ServerConnection) -> None:
        async for body in connection:
            message = json.loads(body)
            answer = {"jsonrpc": "2.0", "id": message["id"]}
            if message["method"] == "initialize":
                meta = {"punie": {"protocol": protocol}}
                about = {"agentInfo": {"name": "punie", "version": version}, "_meta": meta}
                await connection.send(json.dumps(answer | {"result": about}))
            else:
                error = {"code": -32601, "message": "no such method"}
                await connection.send(json.dumps(answer | {"error": error}))

    return serve


async def hang_up(connection: ServerConnection) -> None:
    """A daemon that ends after the first message."""
    await connection.recv()
    await connection.close(1001, "going away")


@pytest.mark.parametrize("command", [("ask", "x"), ("status",), ("up",)])
def test_another_protocol_number(tmp_path: Path, command: tuple[str, ...]) -> None:
    daemon = speaking("9.0.0", PROTOCOL + 1)
    code, out, err = asyncio.run(against(tmp_path, daemon, *command))
    assert code == 3
    assert "punie restart" in err
    assert out == ""


def test_another_minor_version_is_a_note(tmp_path: Path) -> None:
    code, _, err = asyncio.run(against(tmp_path, speaking("0.99.0", PROTOCOL), "ask", "x"))
    assert "note: the daemon is 0.99.0" in err
    assert "no such method" in err
    assert code == 1


@pytest.mark.parametrize("command", [("ask", "x"), ("status",)])
def test_a_daemon_that_hangs_up(tmp_path: Path, command: tuple[str, ...]) -> None:
    code, out, err = asyncio.run(against(tmp_path, hang_up, *command))
    assert code == 3
    assert "going away" in err
    assert out == ""
    assert "Traceback" not in err


def test_a_daemon_that_says_nothing(tmp_path: Path) -> None:
    async def silent(connection: ServerConnection) -> None:
        await connection.wait_closed()

    code, _, err = asyncio.run(against(tmp_path, silent, "status"))
    assert code == 3
    assert "Traceback" not in err
