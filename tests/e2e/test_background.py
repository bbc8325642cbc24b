"""What runs on, and what does not, when the one who asked is gone; background commands."""

import json
import signal
from pathlib import Path

import psutil
import pytest

from tests.support.cli import COMMAND, Punie, wait_until
from tests.support.openai_server import say
from tests.support.scripted_user import Script, use

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("background")]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def mark(tmp_path: Path) -> str:
    """An argument of ``sleep`` that no other test has."""
    return f"5{abs(hash(str(tmp_path))) % 10**9}"


def runs(mark: str) -> bool:
    """Whether a ``sleep`` of that length runs."""
    return any(one.info["cmdline"] == ["sleep", mark] for one in psutil.process_iter(["cmdline"]))


def asking(model: Script, project: Path) -> list[str]:
    return ["ask", "-C", str(project), "--model", model.model, "--run", "--", "Do it"]


def test_a_client_that_is_told_to_end_ends_its_turn(user: Punie, project: Path, mark: str) -> None:
    with Script(use("run_command", command=["sleep", mark])) as model:
        client = user.popen(*asking(model, project))
        wait_until(lambda: runs(mark), "the command runs", patience=60)
        client.send_signal(signal.SIGTERM)
        _, said = client.communicate(timeout=60)
        wait_until(lambda: not runs(mark), "the command is ended")
    assert client.returncode == 130
    assert "punie: interrupted" in said


def test_a_closed_terminal_ends_the_turn(user: Punie, project: Path, mark: str) -> None:
    with (
        Script(use("run_command", command=["sleep", mark])) as model,
        model.ask_on_terminal(user, project, "--run") as terminal,
    ):
        wait_until(lambda: runs(mark), "the command runs", patience=60)
        terminal.hang_up()
        assert terminal.process.wait(timeout=60) == 130
        wait_until(lambda: not runs(mark), "the command is ended")


def test_under_nohup_a_closed_terminal_ends_nothing(user: Punie, project: Path) -> None:
    wait = use("run_command", command="touch begun; until [ -e go ]; do sleep 0.05; done")
    with Script(wait, say("Done.")) as model:
        client = user.popen_of(["nohup", *COMMAND, *asking(model, project)])
        wait_until((project / "begun").exists, "the command runs", patience=60)
        client.send_signal(signal.SIGHUP)
        (project / "go").touch()
        printed, said = client.communicate(timeout=60)
    assert (client.returncode, printed) == (0, "Done.\n"), said


def test_background_commands_are_named_listed_and_stopped(
    user: Punie, project: Path, mark: str
) -> None:
    serve = use("run_command", command=["sleep", mark], background=True)
    hint = f"punie: 1 background command goes on: punie projects stop {project}"
    with Script(serve, say("Done.")) as model:
        assert hint in model.ask(user, project, "--run").stderr
    listed = user.run("projects", "commands", project)
    assert f": sleep {mark}\n" in listed.stdout
    assert runs(mark)
    stopped = user.run("projects", "stop", project, "--json")
    [one] = json.loads(stopped.stdout)["commands"]
    assert one["command"] == f"sleep {mark}"
    assert one["job"] in listed.stdout
    wait_until(lambda: not runs(mark), "it is ended")
    again = user.run("projects", "stop", project)
    assert (again.returncode, again.stdout) == (0, f"no background commands in {project}\n")
    with Script(say("Done.")) as model:
        assert "goes on" not in model.ask(user, project, "--run").stderr


def test_an_interrupted_turn_says_what_goes_on(user: Punie, project: Path, mark: str) -> None:
    serve = use("run_command", command=["sleep", mark], background=True)
    wait = use("run_command", command=["sleep", mark + "1"])
    with Script(serve, wait) as model:
        client = user.popen(*asking(model, project))
        wait_until(lambda: runs(mark + "1"), "the second command runs", patience=60)
        client.send_signal(signal.SIGINT)
        _, said = client.communicate(timeout=60)
    assert client.returncode == 130
    assert "1 background command goes on: punie projects stop " in said
    assert runs(mark)
    assert "stopped job1-" in user.run("projects", "stop", project).stdout
    wait_until(lambda: not runs(mark), "it is ended")


def test_without_a_daemon_nothing_runs_and_none_is_started(tmp_path: Path, project: Path) -> None:
    own = Punie(tmp_path / "u")
    own.home.mkdir()
    done = own.run("projects", "stop", project)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"no background commands in {project}\n"
    assert own.run("status").returncode == 3


def test_each_whole_line_is_shown_at_once(user: Punie, project: Path) -> None:
    wait = use("run_command", command="echo hi; echo go; until [ -e over ]; do sleep 0.05; done")
    with (
        Script(wait, say("Done.")) as model,
        model.ask_on_terminal(user, project, "--run") as terminal,
    ):
        terminal.wait_for("  hi\x1b[0m\n")
        terminal.wait_for("  go\x1b[0m\n")
        (project / "over").touch()
        assert terminal.end() == 0


def test_what_the_tool_itself_refuses_is_said_with_its_reason(user: Punie) -> None:
    with Script(use("run_command", command=["true"]), say("No.")) as model:
        done = model.ask(user, user.home, "--run")
    assert done.returncode == 5
    [line] = [line for line in done.stderr.splitlines() if "error: not allowed" in line]
    assert f"not allowed: run_command true: no program is run in '{user.home}'" in line
    assert "open a folder of its own as the project" in line


def test_a_text_that_a_rule_may_be_about_says_what_it_needs(tmp_path: Path, project: Path) -> None:
    own = Punie(tmp_path / "u")
    config = own.home / "punie" / "config" / "config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text('[permissions]\ndeny = [{ command = "git push" }]\n')
    try:
        with Script(use("run_command", command="echo $x"), say("No.")) as model:
            done = model.ask(own, project, "--run")
        assert done.returncode == 5
        assert "a rule denies commands and this text may run anything" in done.stderr
        assert "to allow it" not in done.stderr
    finally:
        own.close()
