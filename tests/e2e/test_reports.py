"""What can be looked at: timings of turns, prompts of models, the daemon with its servers."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import COMMAND, LEVEL, Punie
from tests.support.openai_server import say
from tests.support.scripted_user import Script, program, use

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("reports")]

TIMINGS = {
    "total", "queue", "ttft", "prefill", "decode", "tools", "permission_wait", "framework",
}  # fmt: skip


@pytest.fixture(scope="module")
def project(user: Punie, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project where two sessions had three turns."""
    folder = tmp_path_factory.mktemp("worked")
    (folder / "a.py").write_text("x = 1\n")
    edit = use("edit_file", path="a.py", old_text="x = 1", new_text="x = 2")
    new = use("write_file", path="b.py", text="y = 1\n")
    look = program("print(read_file('a.py').text, list_files().count)")
    with Script(look, edit, say("One."), say("Two."), new, say("Three.")) as model:
        for args in (("--edit",), ("--last",), ()):
            done = model.ask(user, folder, *args, text="Do <b>it</b>")
            assert done.returncode == (0 if args else 5), done.stderr
    return folder


def perf(user: Punie, *args: str | Path) -> list[dict]:
    """Return the turns of the JSON report."""
    done = user.run("perf", "--json", *args)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["turns"]


def test_every_turn_has_its_timings(user: Punie, project: Path) -> None:
    last, second, first = perf(user, "-C", project)
    assert first["session_id"] == second["session_id"] != last["session_id"]
    for turn in (first, second, last):
        times = turn["meta"]["timings_ms"]
        assert set(times) == TIMINGS
        assert times["total"] > 0
        assert turn["root"] == str(project)
    assert [call["tool"] for call in first["meta"]["tools"]] == [
        "execute_code",
        "read_file",
        "list_files",
        "edit_file",
    ]
    outer, inner, *_ = first["meta"]["tools"]
    assert inner["parent"] == outer["id"]
    assert {call["isolation"] for call in first["meta"]["tools"]} == {LEVEL}
    assert [call["outcome"] for call in last["meta"]["tools"]] == ["denied"]
    assert len(first["meta"]["steps"]) == 3


def test_one_session_by_the_beginning_of_its_id(user: Punie, project: Path) -> None:
    session = perf(user, "-C", project)[1]["session_id"]
    assert len(perf(user, session)) == len(perf(user, session[:8])) == 2
    assert len(perf(user, session[:8], "-n", "1")) == 1
    done = user.run("perf", session[:8])
    assert session[:8] in done.stdout
    assert "edit_file" in done.stdout


@pytest.mark.parametrize("session", ["no-such-session", "a", "ffff"])
def test_an_unknown_session(user: Punie, project: Path, session: str) -> None:
    done = user.run("perf", session)
    assert done.returncode == 2
    assert session in done.stderr
    assert done.stdout == ""


def test_the_page_stands_alone(user: Punie, project: Path, tmp_path: Path) -> None:
    page = tmp_path / "perf.html"
    done = user.run("perf", "-C", project, "--html", page)
    assert done.returncode == 0, done.stderr
    assert f"report: {page}" in done.stderr
    assert page.stat().st_mode & 0o777 == 0o600
    html = page.read_text()
    assert "Do &lt;b&gt;it&lt;/b&gt;" in html
    assert html.count("<details>") == html.count("<svg") == 3
    assert not re.search(r"""(?:src|href|@import|url\()\s*=?\s*["']?[a-z]+:""", html)
    assert "<script" not in html
    done = user.run("perf", "-C", project, "--html", tmp_path / "no" / "such" / "folder.html")
    assert done.returncode == 2
    assert "--html" in done.stderr


@pytest.mark.usefixtures("project")  # it starts the daemon, for a server's model
def test_up_does_not_wait_for_a_model_that_nobody_has_asked_for(user: Punie) -> None:
    done = user.run("up")
    assert done.returncode == 0, done.stderr
    assert "not loaded" in done.stderr


@pytest.mark.usefixtures("project")
def test_a_project_without_turns(user: Punie, tmp_path: Path) -> None:
    done = user.run("perf", "-C", tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "no turns yet" in done.stderr
    assert perf(user, "-C", tmp_path) == []


def test_the_embedded_model_is_told_little(user: Punie, tmp_path: Path) -> None:
    done = user.run("prompt", "show", "-C", tmp_path, "--model", "embedded", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["exact"] is True
    assert 0 < report["tokens"] <= 150
    assert report["style"] == "learned"


def test_a_server_is_told_the_tools(user: Punie, tmp_path: Path) -> None:
    (tmp_path / "AGENTS.md").write_text("Speak like a pirate.\n")
    with Script() as model:
        args = ("prompt", "show", "-C", tmp_path, "--model", model.model)
        report = json.loads(user.run(*args, "--json").stdout)
        shown = user.run(*args).stdout
    parts = [part["name"] for part in report["parts"]]
    assert parts[:3] == ["core", "stubs", "tools"]
    assert sum(part["tokens"] for part in report["parts"]) == report["tokens"] <= 2000
    assert report["exact"] is False
    assert "guessed" in shown
    assert "Speak like a pirate." in shown
    assert "execute_code" in shown


def test_the_prompt_of_a_model_that_is_not_there(user: Punie, tmp_path: Path) -> None:
    for model, code in (("/no/such/model", 4), ("ftp://x", 2), ("http://", 2)):
        done = user.run("prompt", "show", "-C", tmp_path, "--model", model)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


# servers


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Punie]:
    """A user of their own."""
    own = Punie(tmp_path / "u")
    (own.home / "punie" / "config").mkdir(parents=True)
    yield own
    own.close()


def test_status_shows_the_servers(own: Punie, tmp_path: Path) -> None:
    with Script(say("Hello.")) as model:
        url, _, name = model.model.partition("#")
        file = own.home / "punie" / "config" / "config.toml"
        file.write_text(f'model = "{model.model}"\n[[servers]]\nurl = "{url}"\nkey = "s3cret"\n')
        (tmp_path / "project").mkdir()
        done = own.run("ask", "-C", tmp_path / "project", "Hello")
        assert (done.returncode, done.stdout) == (0, "Hello.\n"), done.stderr
        shown = own.run("status").stdout
        [server] = own.status()["servers"]
    assert (server["url"], server["pid"]) == (url, None)
    assert f"{url}#{name}, a server ({server['state']})" in shown
    assert f"config   {file}\n" in shown
    assert re.search(rf"{re.escape(url)} +{server['state']}", shown)
    everything = shown + own.log() + own.run("perf", "--all").stdout
    assert "s3cret" not in everything


# the command itself


@pytest.mark.parametrize(
    "command",
    [
        *([], ["ask"], ["perf"], ["trust"], ["prompt"], ["prompt", "show"], ["doctor"]),
        *(["projects"], ["projects", "list"]),
        *(["projects", "isolate"], ["projects", "unconfined"]),
    ],
)
def test_help_fits_a_narrow_terminal(user: Punie, command: list[str]) -> None:
    done = user.run(*command, "--help")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    if command == ["ask"]:
        for option in ("--edit", "--run", "--yes", "--session", "--timeout"):
            assert re.search(rf"{option}\b.* \w", done.stdout), option


HEAVY = {"mlx", "rich", "websockets", "asyncio", "sqlite3", "psutil", "structlog"}


@pytest.mark.parametrize(
    ("command", "heavy"),
    # typer itself imports pydantic as soon as a command has parameters
    [("--help", HEAVY | {"pydantic"}), ("ask --help", HEAVY), ("status --help", HEAVY)],
)
def test_what_asks_nobody_imports_little(user: Punie, command: str, heavy: set[str]) -> None:
    trace = [sys.executable, "-X", "importtime", *COMMAND[1:], *command.split()]
    done = subprocess.run(
        trace, env=user.environ, capture_output=True, text=True, check=True, timeout=60
    )
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
    }
    assert "typer" in imported
    assert not imported & heavy
