"""Model servers besides our host: named by a prompt, set in the config file, kept by Punie."""

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from punie_protocol.backends import Backend, Server
from punie_protocol.errors import ModelFault, ModelUnavailable
from punie_supervisor.config import Config
from punie_supervisor.servers import Servers
from tests.support.supervisor_rig import (
    SUPPORT,
    Client,
    Failed,
    alive,
    eventually,
    paths_of,
    running,
)

PROGRAM = str(SUPPORT / "supervisor_server.py")
EMBEDDED = SUPPORT.parents[1] / "model_host/punie_model_host/embedded"


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1"


def managed(port: int, *words: str, ready_s: float = 10, **options: Any) -> Config:
    """A config whose default model is on a server that Punie starts."""
    command = [sys.executable, PROGRAM, str(port), *words]
    server = Server(url=url(port), command=command, ready_s=ready_s, **options)
    return Config(model=f"{url(port)}#coder", servers=[server])


@contextmanager
def somebody_elses(port: int, *words: str) -> Generator[int]:
    process = subprocess.Popen(
        [sys.executable, PROGRAM, str(port), *words], stdout=subprocess.DEVNULL
    )
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


async def backend(client: Client, session: str, **punie: Any) -> dict[str, Any] | None:
    """Return the server that the worker is told to ask."""
    known = json.loads(await client.said(session, "state", **punie))
    return known["meta"].get("backend")


async def the_server(client: Client) -> dict[str, Any]:
    return (await client.call("_punie/status"))["servers"][0]


def test_a_prompt_that_names_a_server_leaves_our_host_alone(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            asked = await backend(client, session, model="http://127.0.0.1:9/v1/#some/model")
            assert asked == {"url": "http://127.0.0.1:9/v1", "name": "some/model"}
            assert await backend(client, session) is None
            assert (await client.call("_punie/status"))["model"]["name"] == "tiny"
            for model, match in (
                ("http://[", "is not a server's address"),
                ("http://me:secret@127.0.0.1:9/v1", "may hold no password"),
            ):
                with pytest.raises(Failed, match=match) as failed:
                    await client.answer(session, "state", model=model)
                assert failed.value.punie["type"] == "invalid_request"
                assert "secret" not in str(failed.value)

    asyncio.run(scenario())


def test_a_turn_on_a_server_does_not_wait_for_a_switch(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home, model="slow") as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            assert await client.said(session, "say at once", model="http://127.0.0.1:9/v1")
            assert (await client.call("_punie/status"))["model"]["state"] != "ready"

    asyncio.run(scenario())


def test_a_server_as_default_keeps_our_host_down_until_it_is_wanted(
    punie_home: Path, tmp_path: Path
):
    async def scenario():
        config = Config(model="http://127.0.0.1:9/v1#coder")
        daemon = running(punie_home, config=config)
        async with daemon as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            asked = await backend(client, session)
            assert asked == {"url": "http://127.0.0.1:9/v1", "name": "coder"}
            model = (await client.call("_punie/status"))["model"]
            assert (model["name"], model["state"]) == (config.model, "server")
            assert model["pid"] is None
            assert await backend(client, session, model="qwen") is None
            model = (await client.call("_punie/status"))["model"]
            assert (model["name"], model["state"]) == ("qwen", "ready")
            assert await backend(client, session) == asked

    asyncio.run(scenario())


def test_settings_of_a_server_reach_the_worker_and_its_key_nothing_else(
    punie_home: Path, tmp_path: Path
):
    server = Server(
        url="http://127.0.0.1:9/v1",
        key_env="MY_KEY",
        context_window=1000,
        max_output_tokens=10,
        timeout_s=3,
    )
    environ = dict(os.environ)

    async def scenario():
        config = Config(model="tiny", servers=[server])
        daemon = running(punie_home, config=config, environ=environ)
        async with daemon as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            with pytest.raises(Failed, match="environment variable MY_KEY") as failed:
                await client.answer(session, "state", model=server.url)
            assert "punie restart" in failed.value.punie["hint"]
            environ["MY_KEY"] = "the-secret"
            assert await backend(client, session, model=server.url) == {
                "url": server.url,
                "key": "the-secret",
                "context_window": 1000,
                "max_output_tokens": 10,
                "timeout_s": 3.0,
            }
            await client.answer(session, "say x", model=server.url)
            assert (await the_server(client)) == {
                "url": server.url,
                "state": "external",
                "pid": None,
                "error": None,
            }

    with structlog.testing.capture_logs() as lines:
        asyncio.run(scenario())
    assert "the-secret" not in str(lines)


def test_a_server_is_started_when_needed_and_stopped_at_the_end(
    punie_home: Path, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_SECRET", "not for you")

    async def scenario() -> int:
        config = managed(port, "busy", "2", "key", "k", "noisy", key="k")
        daemon = running(punie_home, config=config)
        async with daemon as (_, paths), Client.connect(paths) as client:
            sessions = [await client.session(tmp_path) for _ in range(3)]
            assert (await the_server(client))["state"] == "idle"
            asked = await asyncio.gather(*(backend(client, one) for one in sessions))
            assert asked == [{"url": url(port), "name": "coder", "key": "k"}] * 3
            server = await the_server(client)
            assert (server["state"], server["error"]) == ("ready", None)
            progress = (await client.method("_punie/progress"))["params"]["text"]
            assert progress == f"waiting for the model server {url(port)}"
            return server["pid"]

    with structlog.testing.capture_logs() as lines:
        pid = asyncio.run(scenario())
    assert not alive(pid)
    started = [line for line in lines if line["event"] == "child.started"]
    assert sum(line["child"].startswith("server ") for line in started) == 1
    said = [line["line"] for line in lines if "environment:" in line.get("line", "")]
    assert "AWS_SECRET" not in said[0]
    assert said[0].endswith(f"in {punie_home / 'run'}")
    assert any(line["event"] == "child.output_dropped" for line in lines)


def test_a_server_that_answers_already_is_used_and_left_alone(
    punie_home: Path, tmp_path: Path, port: int
):
    async def scenario(pid: int) -> None:
        daemon = running(punie_home, config=managed(port))
        async with daemon as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            assert await backend(client, session)
            server = await the_server(client)
            assert (server["state"], server["pid"]) == ("external", None)
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: not alive(pid))
            assert await backend(client, session)
            assert (await the_server(client))["state"] == "ready"

    with somebody_elses(port) as pid:
        asyncio.run(wait_until_it_listens(port))
        asyncio.run(scenario(pid))


def test_somebody_elses_server_is_not_stopped(punie_home: Path, tmp_path: Path, port: int):
    async def scenario() -> None:
        daemon = running(punie_home, config=managed(port))
        async with daemon as (_, paths), Client.connect(paths) as client:
            assert await backend(client, await client.session(tmp_path))

    with somebody_elses(port) as pid:
        asyncio.run(wait_until_it_listens(port))
        asyncio.run(scenario())
        assert alive(pid)


async def wait_until_it_listens(port: int) -> None:
    def listens() -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    await eventually(listens)


def test_a_server_that_ends_early_says_why(punie_home: Path, tmp_path: Path, port: int):
    async def scenario():
        daemon = running(punie_home, config=managed(port, "exit", "7"))
        async with daemon as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            with pytest.raises(Failed) as failed:
                await client.answer(session, "state")
            assert failed.value.punie["type"] == "model_unavailable"
            assert "exited with code 7" in str(failed.value)
            assert str(failed.value).endswith("no such model\nI give up")
            assert "config.toml" in failed.value.punie["hint"]
            server = await the_server(client)
            assert server["state"] == "idle"
            assert "exited with code 7" in server["error"]["message"]

    asyncio.run(scenario())


def test_a_server_that_ends_in_mid_answer_is_told_of(tmp_path: Path, port: int):
    async def scenario():
        config = managed(port, "noisy")
        servers = Servers(config.servers, str(tmp_path), os.environ)
        asked = await servers.ready(config.model, lambda *_: None)
        lost = ModelUnavailable(message="nobody answers", hint="start it")
        assert servers.explained(asked, lost) is lost, "it lives"
        pid = servers.status()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: servers.explained(asked, lost) is not lost)
        told = servers.explained(asked, lost)
        assert f"{url(port)}: it was ended by SIGKILL" in told.message
        assert told.message.endswith("noise")
        elsewhere = Backend(url="http://127.0.0.1:9/v1")
        assert servers.explained(elsewhere, lost) is lost
        fault = ModelFault(message="nonsense")
        assert servers.explained(asked, fault) is fault
        await servers.close()

    asyncio.run(scenario())


def test_a_key_that_a_server_says_is_not_repeated(punie_home: Path, tmp_path: Path, port: int):
    said = "print('args: api_key=the-secret', flush=True); exit(7)"
    server = Server(url=url(port), command=[sys.executable, "-c", said], key="the-secret")

    async def scenario():
        daemon = running(punie_home, config=Config(model=url(port), servers=[server]))
        async with daemon as (_, paths), Client.connect(paths) as client:
            with pytest.raises(Failed, match="args: api_key=…") as failed:
                await client.answer(await client.session(tmp_path), "state")
            shown = str(failed.value.error) + json.dumps(await client.call("_punie/status"))
            assert "the-secret" not in shown
        stored = b"".join(file.read_bytes() for file in paths.state_dir.iterdir())
        assert b"api_key" in stored
        assert b"the-secret" not in stored

    with structlog.testing.capture_logs() as lines:
        asyncio.run(scenario())
    assert "api_key" in str(lines)
    assert "the-secret" not in str(lines)


def test_a_server_that_always_ends_is_given_up(
    punie_home: Path, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("punie_supervisor.restart_policy.FIRST_BACKOFF", 0.01)

    async def scenario():
        daemon = running(punie_home, config=managed(port, "exit", "7"))
        async with daemon as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            for _ in range(6):
                with pytest.raises(Failed, match="code 7"):
                    await client.answer(session, "state")
            assert (await the_server(client))["state"] == "failed"
            before = len(client.seen)
            with pytest.raises(Failed, match="5 restarts within 180 s"):
                await client.answer(session, "state")
            assert len(client.seen) > before
            assert await client.said(session, "say ours", model="tiny") == "ours"

    asyncio.run(scenario())


def test_a_program_that_is_not_there_is_named(punie_home: Path, tmp_path: Path, port: int):
    async def scenario(server: Server, match: str):
        config = Config(model=url(port), servers=[server])
        daemon = running(punie_home, config=config)
        async with daemon as (_, paths), Client.connect(paths) as client:
            with pytest.raises(Failed, match=match):
                await client.answer(await client.session(tmp_path), "state")

    asyncio.run(scenario(Server(url=url(port), command=["no-such-program"]), "no-such-program"))
    nowhere = Server(url=url(port), command=["true"], cwd="/nowhere")
    asyncio.run(scenario(nowhere, "cannot be run in /nowhere: No such file"))


def test_a_server_that_is_never_ready_is_killed(punie_home: Path, tmp_path: Path, port: int):
    async def scenario():
        daemon = running(punie_home, config=managed(port, "silent", ready_s=0.5))
        async with daemon as (_, paths), Client.connect(paths) as client:
            with pytest.raises(Failed, match=r"did not become ready within 0\.5 s") as failed:
                await client.answer(await client.session(tmp_path), "state")
            assert failed.value.punie["type"] == "model_unavailable"
            assert (await the_server(client))["pid"] is None

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["key", "other"], "does not take the key: it answered 401"),
        (["busy", "1000"], "it answered 503"),
    ],
)
def test_a_port_that_somebody_else_has_is_said(
    punie_home: Path, tmp_path: Path, port: int, words: list[str], match: str
):
    async def scenario():
        daemon = running(punie_home, config=managed(port, ready_s=0.3))
        async with daemon as (_, paths), Client.connect(paths) as client:
            with pytest.raises(Failed, match=match) as failed:
                await client.answer(await client.session(tmp_path), "state")
            assert failed.value.punie["type"] == "model_unavailable"
            assert (await the_server(client))["pid"] is None

    with somebody_elses(port, *words):
        asyncio.run(wait_until_it_listens(port))
        asyncio.run(scenario())


def test_a_server_that_died_is_started_again_when_needed(
    punie_home: Path, tmp_path: Path, port: int
):
    async def scenario():
        daemon = running(punie_home, config=managed(port))
        async with daemon as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            await backend(client, session)
            pid = (await the_server(client))["pid"]
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: not alive(pid))
            assert await backend(client, session)
            server = await the_server(client)
            assert server["pid"] not in (pid, None)
            assert server["state"] == "ready"

    asyncio.run(scenario())


def test_a_stubborn_server_and_what_it_started_are_killed_at_the_end(
    punie_home: Path, tmp_path: Path, port: int
):
    grandchild = tmp_path / "grandchild"

    async def scenario() -> int:
        config = managed(port, "stubborn", "grandchild", str(grandchild))
        daemon = running(punie_home, config=config)
        async with daemon as (_, paths), Client.connect(paths) as client:
            await backend(client, await client.session(tmp_path))
            return (await the_server(client))["pid"]

    pid = asyncio.run(scenario())
    assert not alive(pid)
    other = int(grandchild.read_text())
    asyncio.run(eventually(lambda: not alive(other)))


def test_a_wait_for_a_server_can_be_cancelled_and_the_daemon_stopped(
    punie_home: Path, tmp_path: Path, port: int
):
    async def scenario():
        daemon = running(punie_home, config=managed(port, "silent", ready_s=60))
        async with daemon as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            waiting = await client.ask(session, "state")
            await client.method("_punie/progress")
            await client.send(method="session/cancel", params={"sessionId": session})
            answer = await client.result(waiting)
            assert answer["stopReason"] == "cancelled"
            assert answer["_meta"]["punie"]["model"] == f"{url(port)}#coder"
            await client.ask(session, "state")

    asyncio.run(scenario())


def test_a_killed_daemon_takes_its_server_along(punie_home: Path, tmp_path: Path, port: int):
    (punie_home / "config").mkdir()
    command = json.dumps([sys.executable, PROGRAM, str(port)])
    (punie_home / "config" / "config.toml").write_text(
        f'model = "{url(port)}"\n[[servers]]\nurl = "{url(port)}"\ncommand = {command}\n'
    )
    daemon = subprocess.Popen(
        [sys.executable, "-m", "tests.support.supervisor_daemon", str(punie_home), "config"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=SUPPORT.parents[1],
    )
    assert daemon.stdout

    async def scenario() -> None:
        async with Client.connect(paths_of(punie_home)) as client:
            assert await backend(client, await client.session(tmp_path))
            pid = (await the_server(client))["pid"]
            assert alive(pid)
            daemon.kill()
            daemon.wait()
            await eventually(lambda: not alive(pid), within=5)

    try:
        assert daemon.stdout.readline()
        asyncio.run(scenario())
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stdout.close()


def test_a_program_whose_daemon_has_ended_before_it_began_does_not_begin(tmp_path: Path):
    made = tmp_path / "made"
    leash = [sys.executable, "-m", "punie_supervisor.leash"]
    gone, daemon = os.getppid(), os.getpid()
    subprocess.run([*leash, str(gone), "touch", str(made)], check=True, timeout=20)
    assert not made.exists()
    subprocess.run([*leash, str(daemon), "touch", str(made)], check=True, timeout=20)
    assert made.exists()


@pytest.mark.timeout(60)
def test_a_real_server_is_kept(
    punie_home: Path, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tests.support.supervisor_rig.DEADLINE", 50.0)
    program = str(Path(sys.executable).with_name("mlx_lm.server"))
    command = [program, "--model", str(EMBEDDED), "--port", str(port)]

    async def scenario() -> int:
        config = Config(
            model=f"{url(port)}#{EMBEDDED}", servers=[Server(url=url(port), command=command)]
        )
        daemon = running(punie_home, config=config)
        async with daemon as (_, paths), Client.connect(paths) as client:
            asked = await backend(client, await client.session(tmp_path))
            assert asked == {"url": url(port), "name": str(EMBEDDED)}
            server = await the_server(client)
            assert server["state"] == "ready"
            answer = await asyncio.to_thread(complete, port)
            assert answer["usage"]["completion_tokens"] == 2
            return server["pid"]

    pid = asyncio.run(scenario())
    assert not alive(pid)


def complete(port: int) -> dict[str, Any]:
    """Ask for two tokens; blocks."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with closing(connection):
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        return json.loads(connection.getresponse().read())
