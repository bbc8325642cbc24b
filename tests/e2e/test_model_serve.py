"""``punie model serve`` as a user has it: the door opens, other programs ask, it closes."""

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.cli import Punie, wait_until

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("serve")]

HELLO: list[Any] = [{"role": "user", "content": "Where is PriceList defined?"}]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Punie]:
    punie = Punie(tmp_path_factory.mktemp("u"))
    yield punie
    punie.close()


def serve(user: Punie, *args: str) -> dict[str, Any]:
    done = user.run("model", "serve", "--json", *args)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def client_of(door: dict[str, Any]) -> openai.OpenAI:
    """Return the official client, which tries again while the model loads."""
    key = Path(door["key_file"]).read_text().strip()
    return openai.OpenAI(base_url=door["url"], api_key=key, max_retries=20, timeout=60)


def ask(door: dict[str, Any]) -> str:
    """Return which tool the embedded model calls for a question."""
    with client_of(door) as client:
        answer = client.chat.completions.create(model="default", messages=HELLO)
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    return call.function.name


def test_what_it_prints_is_what_works(user: Punie) -> None:
    done = user.run("model", "serve")
    assert done.returncode == 0, done.stderr
    base, key, attempt = done.stdout.splitlines()
    url = base.removeprefix("base URL").strip()
    secret = user.run("model", "serve", "--show-key", "--json")
    door = json.loads(secret.stdout)
    assert door["url"] == url
    assert key.endswith(door["key_file"])
    assert door["key"] not in done.stdout + done.stderr + user.log()
    assert door["key"] in user.run("model", "serve", "--show-key").stdout
    assert ask(door) == "execute_code"
    if shutil.which("curl"):
        command = attempt.removeprefix("try").strip()
        tried = subprocess.run(
            ["sh", "-c", command], capture_output=True, text=True, timeout=30, check=True
        )
        assert json.loads(tried.stdout)["data"][0]["id"] == "embedded"
    assert f"door     {url}" in user.run("status").stdout
    assert user.status()["model"]["door"] == {name: door[name] for name in door if name != "key"}


def test_it_is_there_again_after_the_model_host_was_killed(user: Punie) -> None:
    door = serve(user)
    pid = user.status()["model"]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: user.status()["model"]["pid"] not in (None, pid), "another model host")
    wait_until(lambda: user.status()["model"]["door"]["url"] == door["url"], "the same door")
    assert ask(door) == "execute_code"


def test_it_closes(user: Punie) -> None:
    door = serve(user)
    done = user.run("model", "serve", "--stop")
    assert (done.returncode, done.stdout) == (0, "closed\n")
    assert user.status()["model"]["door"] is None
    with (
        client_of(door).with_options(max_retries=0) as client,
        pytest.raises(openai.APIConnectionError),
    ):
        client.models.list()
    assert json.loads(user.run("model", "serve", "--stop", "--json").stdout)["url"] == ""


def test_a_port_that_is_taken(user: Punie) -> None:
    first = serve(user)
    port = int(first["url"].split(":")[2].partition("/")[0])
    assert serve(user, "--openai-port", str(port)) == first
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        done = user.run("model", "serve", "--openai-port", str(taken))
    assert done.returncode == 2
    assert str(taken) in done.stderr
    assert done.stdout == ""
    assert serve(user) == first, "what was open stays so"


@pytest.mark.parametrize(
    "args", [["--openai-port", "x"], ["--openai-port", "70000"], ["--stop", "--openai-port", "1"]]
)
def test_what_makes_no_sense_is_refused(user: Punie, args: list[str]) -> None:
    done = user.run("model", "serve", *args)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_without_a_daemon_it_is_closed(tmp_path: Path) -> None:
    user = Punie(tmp_path)
    done = user.run("model", "serve", "--stop")
    assert (done.returncode, done.stdout) == (0, "closed\n")
    assert user.run("status").returncode == 3, "none was started"
    user.close()
