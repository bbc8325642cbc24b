"""Projects and their isolation as a user sees and sets them, and the doctor."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from punie_protocol.messages.common import Isolation
from tests.support.cli import COMMAND, Punie, wait_until
from tests.support.openai_server import say
from tests.support.scripted_user import Script, program, use
from tests.support.terminal import Terminal

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("projects")]

LOOK = program("print(read_file('a.py').text)")
EDIT = use("edit_file", path="a.py", old_text="x = 1", new_text="x = 2")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.py").write_text("x = 1\n")
    return folder


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Punie]:
    """Levels are what this module is about: it begins with the default."""
    punie = Punie(tmp_path_factory.mktemp("u"), Isolation.PROCESS)
    yield punie
    punie.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Punie]:
    """A user of their own, without a daemon so far."""
    own = Punie(tmp_path / "u", Isolation.PROCESS)
    own.home.mkdir()
    yield own
    own.close()


def known(user: Punie, project: Path) -> dict[str, Any]:
    """Return what ``punie projects --json`` says of a project."""
    done = user.run("projects", "--json")
    assert done.returncode == 0, done.stderr
    [found] = [one for one in json.loads(done.stdout)["projects"] if one["root"] == str(project)]
    return found


def isolate(user: Punie, project: Path, level: str) -> str:
    done = user.run("projects", "isolate", project, level)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_that_a_daemon_is_started_is_said(own: Punie, project: Path) -> None:
    began = "punie: starting the daemon (stop it with: punie down)\n"
    assert own.run("projects", "isolate", project, "interpreter").stderr == began
    assert own.run("projects", "isolate", project, "process").stderr == ""
    assert own.run("down").returncode == 0
    assert own.run("projects", "unconfined", project).stderr == began


def test_a_project_whose_folder_is_gone_is_marked(user: Punie, project: Path) -> None:
    isolate(user, project, "process")
    assert not known(user, project)["gone"]
    (project / "a.py").unlink()
    project.rmdir()
    assert known(user, project)["gone"]
    lines = user.run("projects").stdout.splitlines()
    [at] = [at for at, line in enumerate(lines) if line.endswith(f"  {project}")]
    assert lines[at + 1] == "  its folder is gone"


def test_a_project_in_use_is_listed(user: Punie, project: Path) -> None:
    with Script(LOOK, say("One.")) as model:
        assert model.ask(user, project).returncode == 0
    found = known(user, project)
    assert (found["isolation"], found["state"], found["sessions"]) == ("process", "active", 1)
    [worker] = [w for w in user.status()["workers"] if w["id"] == found["worker"]]
    assert worker["pid"] == found["pid"]
    assert worker["projects"] == [str(project)]
    for command in (("projects",), ("projects", "list")):
        shown = user.run(*command).stdout
        [line] = [line for line in shown.splitlines() if line.endswith(f"  {project}")]
        assert line.split()[:4] == ["process", "active", str(found["pid"]), "1"]
    assert user.run("projects", "list", "--json").stdout.startswith("{")


def test_a_worker_is_shown_with_what_it_uses_of_its_limits(user: Punie, project: Path) -> None:
    with Script(LOOK, say("One.")) as model:
        assert model.ask(user, project).returncode == 0
    worker_id = known(user, project)["worker"]

    def measured() -> dict[str, Any] | None:
        [worker] = [w for w in user.status()["workers"] if w["id"] == worker_id]
        assert worker["limits"]["memory_mb"] == 4096
        return worker["usage"]

    wait_until(lambda: measured() is not None, "usage measured")
    usage = measured()
    assert usage is not None
    assert 1e6 < usage["memory_bytes"] < 1e9
    assert usage["processes"] >= 1
    assert usage["files"] >= 3
    shown = user.run("status").stdout
    assert " of 4096 MB, cpu " in shown
    assert " of 512 processes, " in shown


def test_a_level_is_kept_over_a_restart_both_ways(own: Punie, project: Path) -> None:
    answers = [say(f"{n}.") for n in range(3)]
    with Script(LOOK, *answers) as model:
        assert model.ask(own, project).returncode == 0
        assert isolate(own, project, "interpreter") == f"{project}: process → interpreter\n"
        assert known(own, project)["isolation"] == "interpreter"
        assert model.ask(own, project, "--last").stdout == "1.\n"
        assert own.run("down").returncode == 0
        assert isolate(own, project, "interpreter") == f"{project}: interpreter, as it was\n"
        assert own.run("down").returncode == 0
        assert isolate(own, project, "process") == f"{project}: interpreter → process\n"
        assert own.run("down").returncode == 0
        assert own.run("up").returncode == 0
        assert known(own, project)["isolation"] == "process"
        done = model.ask(own, project, "--last")
        assert (done.returncode, done.stdout) == (0, "2.\n"), done.stderr
    assert known(own, project)["sessions"] == 1


def test_a_move_for_programs(user: Punie, project: Path) -> None:
    done = user.run("projects", "isolate", project, "interpreter", "--json")
    report = json.loads(done.stdout)
    assert report.pop("confined", "") == ""
    assert report == {"root": str(project), "isolation": "interpreter", "before": "process"}


def test_a_project_does_not_move_under_a_prompt(user: Punie, project: Path) -> None:
    with (
        Script(EDIT, say("Done.")) as model,
        model.ask_on_terminal(user, project) as terminal,
    ):
        terminal.wait_for("never? ")
        done = user.run("projects", "isolate", project, "interpreter")
        assert done.returncode == 2
        assert done.stdout == ""
        assert f"{project} has a prompt under way" in done.stderr
        terminal.type("y\n")
        assert terminal.end() == 0, terminal.shown
    assert known(user, project)["isolation"] == "process"
    assert (project / "a.py").read_text() == "x = 2\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("isolate", "no-such-folder", "process"), "no-such-folder is not a folder"),
        (("isolate", ".", "proces"), "'proces' is not one of"),
        (("isolate", "."), "interpreter|process"),
        (("unconfined", "no-such-folder"), "no-such-folder is not a folder"),
        (("--json", "list"), "it belongs behind list"),
    ],
)
def test_what_cannot_be_meant(user: Punie, args: tuple[str, ...], said: str) -> None:
    done = user.run("projects", *args)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_commands_without_a_sandbox_are_said_to_be(user: Punie, project: Path) -> None:
    done = user.run("projects", "unconfined", project)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{project}: where there is no sandbox ")
    assert known(user, project)["unconfined"] is True
    assert "its commands may run without a sandbox" in user.run("projects").stdout
    done = user.run("projects", "unconfined", "--revoke", "--json", project)
    assert json.loads(done.stdout) == {"root": str(project), "unconfined": False}
    assert known(user, project)["unconfined"] is False


def test_looking_starts_no_daemon(own: Punie) -> None:
    assert own.run("projects").returncode == 3
    done = own.run("doctor", "--json")
    assert done.returncode in (0, 1)
    checks = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
    assert checks["daemon"]["level"] == "ok"
    assert "not running" in checks["daemon"]["text"]
    assert not (own.home / "punie").exists()


# the doctor


def diagnosis(user: Punie) -> tuple[bool, dict[str, dict[str, str]]]:
    """Return whether the doctor found that all is well, and each check."""
    done = user.run("doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1)
    assert report["ok"] == all(one["level"] != "fail" for one in report["checks"])
    return report["ok"], {one["name"]: one for one in report["checks"]}


def test_the_doctor_of_a_daemon_that_works(user: Punie, project: Path) -> None:
    with Script(LOOK, say("One.")) as model:
        assert model.ask(user, project).returncode == 0
    _, checks = diagnosis(user)
    for name in ("daemon", "model", "workers", "journal", "state", "run", "socket", "config"):
        assert checks[name]["level"] == "ok", checks[name]
    done = user.run("doctor")
    assert "ok    daemon     runs, version " in done.stdout
    assert "\x1b" not in done.stdout


def test_colours_are_for_terminals(user: Punie) -> None:
    with Terminal([*COMMAND, "doctor"], user.environ, user.home) as terminal:
        assert terminal.end() in (0, 1)
        assert "\x1b[32mok  \x1b[0m  python" in terminal.shown
    environ = {**user.environ, "NO_COLOR": "1"}
    with Terminal([*COMMAND, "doctor"], environ, user.home) as terminal:
        assert terminal.end() in (0, 1)
        assert "ok    python" in terminal.shown


def test_the_doctor_of_a_user_whose_config_is_wrong(own: Punie) -> None:
    folder = own.home / "punie" / "config"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("[limits]\nmemory_mb = 0\n")
    well, checks = diagnosis(own)
    assert not well
    assert "[limits] memory_mb: it must be a whole number >= 256" in checks["config"]["text"]
    shown = own.run("doctor")
    assert shown.returncode == 1
    assert "fail  config" in shown.stdout
    (folder / "config.toml").unlink()


def test_the_doctor_of_a_home_that_is_no_folder(own: Punie) -> None:
    (own.home / "punie").write_text("")
    well, checks = diagnosis(own)
    assert not well
    assert checks["state"]["level"] == checks["run"]["level"] == "fail"
    (own.home / "punie").unlink()


def test_the_doctor_of_a_daemon_that_hangs(own: Punie) -> None:
    assert own.run("up").returncode == 0
    pid = own.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        well, checks = diagnosis(own)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert not well
    assert "does not answer" in checks["daemon"]["text"]
    assert "punie restart" in checks["daemon"]["hint"]
