"""Commands as a person sees them: the question, what is printed meanwhile, what is said after."""

import json
from pathlib import Path

import pytest

from tests.support.cli import Punie
from tests.support.openai_server import say
from tests.support.scripted_user import Script, use

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("commands-shown")]

LINES = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo line-$i; done; printf '\\033[2Jend'"
COUNT = use("run_command", command=LINES)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def test_a_command_is_asked_about_whole_and_streamed(user: Punie, project: Path) -> None:
    with (
        Script(COUNT, say("Done.")) as model,
        model.ask_on_terminal(user, project) as terminal,
    ):
        terminal.wait_for("punie wants to: run_command: ")
        terminal.wait_for(LINES)
        terminal.wait_for("[s] Allow exactly this command in this session")
        terminal.wait_for("never? ")
        terminal.type("y\n")
        assert terminal.end() == 0, terminal.shown
        assert terminal.is_sane
    after = terminal.shown.rpartition("never? ")[2]
    assert "punie: run_command " in after
    assert "\x1b[2m  line-1\x1b[0m\n" in after
    assert "\x1b[2m  line-20\x1b[0m\n" in after
    assert "\x1b[2m  line-21\x1b[0m\n" not in after, "only the first lines stay"
    assert "… 21 more lines\x1b[0m\n" in after
    assert "exit code 0\n" in after
    assert "\x1b[2J" not in after
    assert after.endswith("Done.\n")


def test_a_command_without_a_terminal_is_a_line(user: Punie, project: Path) -> None:
    with Script(COUNT, use("run_command", command=["false"]), say("Done.")) as model:
        done = model.ask(user, project, "--run")
    assert (done.returncode, done.stdout) == (0, "Done.\n"), done.stderr
    first, second = [line for line in done.stderr.splitlines() if "run_command" in line]
    assert first.endswith(": exit code 0")
    assert second == "punie: run_command false: exit code 1"
    assert "line-1" not in done.stderr


def test_a_command_that_is_not_allowed(user: Punie, project: Path) -> None:
    with Script(use("run_command", command=["touch", "made"]), say("No.")) as model:
        done = model.ask(user, project)
    assert done.returncode == 5
    assert "error: not allowed: run_command touch made (" in done.stderr
    assert "to allow it: --run" in done.stderr
    assert list(project.iterdir()) == []


def test_the_output_comes_as_events(user: Punie, project: Path) -> None:
    with Script(COUNT, say("Done.")) as model:
        done = model.ask(user, project, "--run", "--format", "jsonl")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    printed = "".join(event["text"] for event in events if event["type"] == "tool_output")
    assert [line for line in printed.splitlines() if line.startswith("line-")] == [
        f"line-{n}" for n in range(1, 41)
    ]
    [result] = [event["result"] for event in events if event["type"] == "tool_result"]
    assert result["exit_code"] == 0
    assert "line-40" in result["output"]


def test_a_command_sees_the_variables_that_the_user_names(tmp_path: Path, project: Path) -> None:
    own = Punie(tmp_path / "u")
    config = own.home / "punie" / "config" / "config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text('[sandbox]\nenvironment = ["SDK_ROOT", "NOT_SET"]\n')
    own.environ |= {"SDK_ROOT": "/opt/sdk", "OTHER": "no"}
    echo = use("run_command", command="echo [$SDK_ROOT] [$NOT_SET] [$OTHER]")
    try:
        with Script(echo, say("Done.")) as model:
            done = model.ask(own, project, "--run")
            assert done.returncode == 0, done.stderr
            assert "[/opt/sdk] [] []" in model.told[0]
    finally:
        own.close()
