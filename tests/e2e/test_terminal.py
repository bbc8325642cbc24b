"""Permission questions on a real terminal: what is shown, each answer, and every way out."""

from pathlib import Path

import pytest

from tests.support.cli import COMMAND, Punie
from tests.support.openai_server import Reply, chunk, ended, say
from tests.support.scripted_user import Script, program, snapshot, use
from tests.support.terminal import Terminal

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("terminal")]

FIRST = use("edit_file", path="a.py", old_text="x = 1", new_text="x = 2")
SECOND = use("edit_file", path="b.py", old_text="y = 1", new_text="y = 2")
BOTH = program("edit_file('a.py', 'x = 1', 'x = 2')\nedit_file('b.py', 'y = 1', 'y = 2')\n")
KEYS = "y, s, n, never? "


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.py").write_text("x = 1\n")
    (folder / "b.py").write_text("y = 1\n")
    return folder


def texts(project: Path) -> tuple[str, str]:
    """Return what is in both files."""
    return (project / "a.py").read_text().strip(), (project / "b.py").read_text().strip()


def test_yes_is_for_one_call_and_no_for_another(user: Punie, project: Path) -> None:
    with (
        Script(FIRST, SECOND, say("That is it.")) as model,
        model.ask_on_terminal(user, project) as terminal,
    ):
        terminal.wait_for("punie wants to: edit_file: a.py")
        terminal.wait_for("-x = 1")
        terminal.wait_for("+x = 2")
        terminal.wait_for("[s] Allow all edits in this session")
        terminal.wait_for(KEYS)
        assert texts(project) == ("x = 1", "y = 1"), "nothing happens before the answer"
        terminal.type("y\n")
        terminal.wait_for("punie wants to: edit_file: b.py")
        terminal.wait_for(KEYS)
        assert texts(project) == ("x = 2", "y = 1")
        terminal.type("n\n")
        assert terminal.end() == 0, terminal.shown
        assert terminal.is_sane
        assert "That is it." in terminal.shown
        assert "the user rejected it" in model.told[1]
    assert texts(project) == ("x = 2", "y = 1")


@pytest.mark.parametrize("script", [(FIRST, SECOND), (BOTH,)], ids=["directly", "in one program"])
def test_for_the_session_asks_once(user: Punie, project: Path, script: tuple[Reply, ...]) -> None:
    with (
        Script(*script, say("Done.")) as model,
        model.ask_on_terminal(user, project) as terminal,
    ):
        terminal.wait_for(KEYS)
        terminal.type("s\n")
        assert terminal.end() == 0, terminal.shown
        assert terminal.shown.count("punie wants to") == 1
    assert texts(project) == ("x = 2", "y = 2")


def test_an_answer_for_the_session_holds_when_it_is_continued(user: Punie, project: Path) -> None:
    with Script(FIRST, say("One."), SECOND, say("Two.")) as model:
        with model.ask_on_terminal(user, project) as terminal:
            terminal.wait_for(KEYS)
            terminal.type("s\n")
            assert terminal.end() == 0, terminal.shown
        assert user.run("down").returncode == 0
        with model.ask_on_terminal(user, project, "--last") as terminal:
            assert terminal.end() == 0, terminal.shown
            assert "punie wants to" not in terminal.shown
    assert texts(project) == ("x = 2", "y = 2")


def test_never_is_for_the_session(user: Punie, project: Path) -> None:
    before = snapshot(project)
    with (
        Script(FIRST, SECOND, say("I could not.")) as model,
        model.ask_on_terminal(user, project) as terminal,
    ):
        terminal.wait_for(KEYS)
        terminal.type("perhaps\n")
        terminal.wait_for(KEYS)
        terminal.type("never\n")
        assert terminal.end() == 0, terminal.shown
        assert terminal.shown.count("punie wants to") == 1
        assert all("for the rest of the session" in told for told in model.told)
    assert snapshot(project) == before


def test_the_end_of_input_is_a_no(user: Punie, project: Path) -> None:
    before = snapshot(project)
    with (
        Script(FIRST, say("I could not.")) as model,
        model.ask_on_terminal(user, project) as terminal,
    ):
        terminal.wait_for(KEYS)
        terminal.type("\x04")
        assert terminal.end() == 0, terminal.shown
        assert terminal.is_sane
        assert "the question was dismissed" in model.told[0]
    assert snapshot(project) == before


@pytest.mark.parametrize("tool", [FIRST, BOTH], ids=["directly", "in one program"])
def test_interrupt_while_asked(user: Punie, project: Path, tool: Reply) -> None:
    before = snapshot(project)
    with Script(tool, say("Done.")) as model:
        with model.ask_on_terminal(user, project) as terminal:
            terminal.wait_for(KEYS)
            terminal.type("\x03")
            assert terminal.end() == 130, terminal.shown
            assert terminal.is_sane
            assert "interrupted" in terminal.shown
            assert "Traceback" not in terminal.shown
        assert snapshot(project) == before
        with model.ask_on_terminal(user, project, "--last", text="Go on") as terminal:
            assert terminal.end() == 0, terminal.shown
    assert snapshot(project) == before


def test_time_out_while_asked(user: Punie, project: Path) -> None:
    before = snapshot(project)
    with (
        Script(FIRST, say("Done.")) as model,
        model.ask_on_terminal(user, project, "--timeout", "6") as terminal,
    ):
        terminal.wait_for(KEYS)
        assert terminal.end() == 6, terminal.shown
        assert terminal.is_sane
        assert "within 6 s" in terminal.shown
    assert snapshot(project) == before


def session_of(user: Punie, project: Path) -> str:
    """Return the project's session."""
    [found] = [p for p in user.status()["projects"] if p["root"] == str(project)]
    return found["last_session"]


def test_answered_by_another_client_first(user: Punie, project: Path) -> None:
    with (
        Script(FIRST, say("One."), say("Two.")) as model,
        model.ask_on_terminal(user, project) as terminal,
    ):
        terminal.wait_for(KEYS)
        command = [*COMMAND, "ask", "-C", str(project), "--session", session_of(user, project)]
        command += ["--model", model.model, "And then?"]
        with Terminal(command, user.environ, user.home) as other:
            other.wait_for("+x = 2")
            other.wait_for(KEYS)
            other.type("y\n")
            terminal.wait_for("the question is withdrawn")
            assert terminal.end() == 0, terminal.shown
            assert terminal.is_sane
            assert other.end() == 0, other.shown
    assert texts(project) == ("x = 2", "y = 1")


def test_a_client_without_terminal_leaves_the_question_to_the_other(
    user: Punie, project: Path
) -> None:
    with (
        Script(FIRST, say("One."), say("Two.")) as model,
        model.ask_on_terminal(user, project) as terminal,
    ):
        terminal.wait_for(KEYS)
        command = ["ask", "-C", project, "--session", session_of(user, project)]
        command += ["--model", model.model, "--format", "jsonl", "And then?"]
        other = user.popen(*command)
        try:
            assert other.stdout is not None
            assert '"accepted"' in other.stdout.readline()
            terminal.type("y\n")
            assert terminal.end() == 0, terminal.shown
        finally:
            out, errors = other.communicate(timeout=60)
        assert other.returncode == 0, errors
        assert "Two." in out
    assert texts(project) == ("x = 2", "y = 1")


def test_a_lost_worker_asks_again_in_the_next(user: Punie, project: Path) -> None:
    with (
        Script(FIRST, FIRST, say("Done.")) as model,
        model.ask_on_terminal(user, project) as terminal,
    ):
        terminal.wait_for(KEYS)
        [worker] = [w for w in user.status()["workers"] if str(project) in w["projects"]]
        user.kill(worker["pid"])
        terminal.wait_for("the question is withdrawn")
        terminal.wait_for(KEYS)
        assert texts(project) == ("x = 1", "y = 1")
        terminal.type("y\n")
        assert terminal.end() == 0, terminal.shown
        assert "had changed nothing" in model.told[0]
    assert texts(project) == ("x = 2", "y = 1")


def test_the_daemon_ends_while_asked(user: Punie, project: Path) -> None:
    before = snapshot(project)
    with (
        Script(FIRST, say("Done.")) as model,
        model.ask_on_terminal(user, project) as terminal,
    ):
        terminal.wait_for(KEYS)
        assert user.run("down").returncode == 0
        assert terminal.end() == 3, terminal.shown
        assert terminal.is_sane
        assert "Traceback" not in terminal.shown
    assert snapshot(project) == before


def test_a_project_s_settings_are_asked_about(user: Punie, project: Path) -> None:
    (project / ".punie").mkdir()
    (project / ".punie" / "config.toml").write_text('[permissions]\nmode = "accept-edits"\n')
    with (
        Script(FIRST, say("Done.")) as model,
        model.ask_on_terminal(user, project) as terminal,
    ):
        terminal.wait_for("use the settings that this project brings along")
        terminal.wait_for("mode: accept-edits")
        terminal.wait_for("[y] Trust them as they are now")
        terminal.wait_for("y, n? ")
        terminal.type("y\n")
        assert terminal.end() == 0, terminal.shown
        assert "edit_file a.py +1 -1" in terminal.shown
    assert texts(project) == ("x = 2", "y = 1")


def test_what_the_model_says_first_stays_on_the_screen(user: Punie, project: Path) -> None:
    edit = '{"path": "a.py", "old_text": "x = 1", "new_text": "x = 2"}'
    head = {"index": 0, "id": "c1", "type": "function"}
    asks = {"tool_calls": [{**head, "function": {"name": "edit_file", "arguments": edit}}]}
    first = Reply((chunk({"content": "I edit \x1b[2Ja.py:"}), chunk(asks), *ended("tool_calls")))
    with (
        Script(first, say("Done.")) as model,
        model.ask_on_terminal(user, project) as terminal,
    ):
        terminal.wait_for("I edit ␛[2Ja.py:\n")
        terminal.wait_for(KEYS)
        terminal.type("y\n")
        assert terminal.end() == 0, terminal.shown
        assert terminal.shown.rstrip().endswith("Done.")


def test_what_was_typed_before_the_question_is_no_answer(user: Punie, project: Path) -> None:
    slow = Reply((1.0, *FIRST.body))
    with (
        Script(slow, say("I could not.")) as model,
        model.ask_on_terminal(user, project) as terminal,
    ):
        terminal.type("y\n")
        terminal.wait_for("punie wants to")
        terminal.wait_for(KEYS)
        assert texts(project) == ("x = 1", "y = 1")
        terminal.type("n\n")
        assert terminal.end() == 0, terminal.shown
    assert texts(project) == ("x = 1", "y = 1")
