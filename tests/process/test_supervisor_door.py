"""The HTTP door as the supervisor keeps it: opened, closed, and open again in the next host."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from punie_protocol.engine import EngineSettings
from punie_supervisor.config import Config
from punie_supervisor.paths import Paths
from tests.support.cli import LEVEL
from tests.support.supervisor_rig import DEADLINE, Client, Failed, eventually, running

type Test = Callable[[Client, Paths], Awaitable[None]]


def with_daemon(home: Path, test: Test, **options: Any) -> None:
    async def main() -> None:
        async with running(home, **options) as (_, paths), Client.connect(paths) as client:
            await test(client, paths)

    asyncio.run(main())


def with_port(port: int, model: str = "tiny") -> Config:
    return Config(model=model, isolation=LEVEL, engine=EngineSettings(openai_port=port))


async def model_of(client: Client) -> dict[str, Any]:
    return (await client.call("_punie/status"))["model"]


async def until_model(client: Client, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Poll the status report until it is so, and return what it says of the model."""
    deadline = time.monotonic() + DEADLINE
    while not holds(model := await model_of(client)):
        assert time.monotonic() < deadline, model
    return model


def test_nobody_wants_a_door_at_first(punie_home: Path):
    async def test(client: Client, paths: Paths) -> None:
        model = await until_model(client, lambda model: model["state"] == "ready")
        assert model["door"] is None
        assert not paths.openai_key.exists()

    with_daemon(punie_home, test)


def test_it_opens_and_closes(punie_home: Path):
    async def test(client: Client, paths: Paths) -> None:
        opened = await client.call("_punie/serve", port=5000)
        key_file = str(paths.openai_key)
        door = {"url": "http://127.0.0.1:5000/v1", "key_file": key_file, "error": ""}
        assert opened == door
        assert (await model_of(client))["door"] == door
        assert (await client.call("_punie/serve")) == door, "where it is open already"
        assert paths.openai_key.stat().st_mode & 0o777 == 0o600
        assert len(paths.openai_key.read_text().strip()) > 40
        assert (await client.call("_punie/serve", stop=True))["url"] == ""
        assert (await model_of(client))["door"] is None
        assert (await client.call("_punie/serve"))["url"] == "http://127.0.0.1:4242/v1"

    with_daemon(punie_home, test)


def test_a_new_host_has_it_at_the_same_port(punie_home: Path):
    async def test(client: Client, paths: Paths) -> None:
        await client.call("_punie/serve", port=5000)
        key = paths.openai_key.read_text()
        before = await model_of(client)
        os.kill(before["pid"], signal.SIGKILL)
        after = await until_model(client, lambda now: now["pid"] not in (None, before["pid"]))
        after = await until_model(client, lambda now: now["door"]["url"])
        assert after["door"] == before["door"]
        assert paths.openai_key.read_text() == key
        await client.call("_punie/serve", stop=True)
        os.kill(after["pid"], signal.SIGKILL)
        last = await until_model(client, lambda now: now["pid"] not in (None, after["pid"]))
        assert last["door"] is None, "nobody wants it any more"

    with_daemon(punie_home, test)


def test_a_port_that_cannot_be_had(punie_home: Path):
    async def test(client: Client, paths: Paths) -> None:
        with pytest.raises(Failed, match="port 1 is taken"):
            await client.call("_punie/serve", port=1)
        assert (await model_of(client))["door"] is None
        await client.call("_punie/serve", port=5000)
        with pytest.raises(Failed, match="port 1 is taken"):
            await client.call("_punie/serve", port=1)
        assert (await model_of(client))["door"]["url"] == "http://127.0.0.1:5000/v1"

    with_daemon(punie_home, test)


@pytest.mark.parametrize("wish", [{"port": -1}, {"port": 65536}, {"port": "x"}, {"stop": 1}])
def test_a_faulty_wish_is_refused(punie_home: Path, wish: dict[str, Any]):
    async def test(client: Client, _paths: Paths) -> None:
        with pytest.raises(Failed):
            await client.call("_punie/serve", **wish)

    with_daemon(punie_home, test)


def test_the_config_file_opens_it(punie_home: Path):
    async def test(client: Client, paths: Paths) -> None:
        model = await until_model(client, lambda model: (model["door"] or {}).get("url"))
        assert model["door"]["url"] == "http://127.0.0.1:5001/v1"
        assert paths.openai_key.exists()
        assert (await client.call("_punie/serve"))["url"] == "http://127.0.0.1:5001/v1"

    with_daemon(punie_home, test, config=with_port(5001))


def test_a_port_of_the_config_file_that_is_taken_is_said(punie_home: Path):
    async def test(client: Client, _paths: Paths) -> None:
        model = await until_model(client, lambda model: (model["door"] or {}).get("error"))
        assert model["door"]["error"] == "port 1 is taken"
        assert model["door"]["url"] == ""
        assert (await client.call("_punie/serve", port=5000))["error"] == ""

    with_daemon(punie_home, test, config=with_port(1))


def test_a_host_that_would_rest_is_started_for_it(punie_home: Path):
    server = "http://127.0.0.1:9/v1#big"

    async def rests(client: Client, _paths: Paths) -> None:
        assert (await model_of(client))["state"] == "server"
        assert (await client.call("_punie/serve", stop=True))["url"] == ""
        assert (await model_of(client))["state"] == "server", "a closed door is no reason"
        assert (await client.call("_punie/serve"))["url"]
        assert (await model_of(client))["pid"] is not None

    async def wanted(client: Client, _paths: Paths) -> None:
        await until_model(client, lambda model: (model["door"] or {}).get("url"))

    with_daemon(punie_home, rests, model=server)
    with_daemon(punie_home, wanted, config=with_port(0, server))
    with_daemon(punie_home, wanted, config=with_port(0), rest=True)


def test_a_key_that_others_may_read_is_not_used(punie_home: Path):
    async def test(client: Client, paths: Paths) -> None:
        await eventually(paths.openai_key.exists)
        await until_model(client, lambda model: model["door"]["url"])
        paths.openai_key.chmod(0o644)
        with pytest.raises(Failed, match="others may read"):
            await client.call("_punie/serve", port=5000)
        model = await model_of(client)
        os.kill(model["pid"], signal.SIGKILL)
        model = await until_model(client, lambda model: model["door"]["error"])
        assert "others may read" in model["door"]["error"]
        paths.openai_key.chmod(0o600)
        assert (await client.call("_punie/serve"))["url"] == "http://127.0.0.1:4242/v1"

    with_daemon(punie_home, test, config=with_port(0))


def test_a_host_that_is_given_up_has_no_door(punie_home: Path):
    async def test(client: Client, _paths: Paths) -> None:
        with pytest.raises(Failed, match="model host"):
            await client.call("_punie/serve")

    with_daemon(punie_home, test, model="crash")
