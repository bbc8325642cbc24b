"""What may happen without a terminal: flags, the user's settings, a project's own. Refused means
that nothing happened, and that everybody is told."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Punie
from tests.support.openai_server import say
from tests.support.scripted_user import Script, program, snapshot, use

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("permissions")]

EDIT = use("edit_file", path="a.py", old_text="x = 1", new_text="x = 2")
WRITE = use("write_file", path="new/b.py", text="y = 1\n")
DELETE = use("delete_file", path="a.py")
MOVE = use("move_file", path="a.py", destination="c.py")
NESTED = program(
    "try:\n    edit_file('a.py', 'x = 1', 'x = 2')\n"
    "except RuntimeError as error:\n    print(error)\n"
)
ROUTES = [EDIT, WRITE, DELETE, MOVE, NESTED]
NAMES = ["edit", "write", "delete", "move", "nested"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.py").write_text("x = 1\n")
    (folder / "keep.txt").write_text("kept\n")
    return folder


def test_without_flags_nothing_changes(user: Punie, project: Path) -> None:
    before = snapshot(project)
    for name, tool in zip(NAMES, ROUTES, strict=True):
        with Script(tool, say("I could not.")) as model:
            done = model.ask(user, project)
            assert "denied" in model.told[0], name
            assert "do not try it again" in model.told[0], name
        assert done.returncode == 5, name
        assert done.stdout == "I could not.\n", name
        assert "read-only mode" in done.stderr, name
        assert "to allow it: --edit" in done.stderr, name
    assert snapshot(project) == before


def test_the_report_of_a_refusal(user: Punie, project: Path) -> None:
    with Script(NESTED, say("I could not.")) as model:
        done = model.ask(user, project, "--format", "json")
    assert done.returncode == 5
    outer, inner = json.loads(done.stdout)["tool_calls"]
    assert (outer["name"], outer["outcome"]) == ("execute_code", "ok")
    assert (inner["name"], inner["outcome"], inner["ok"]) == ("edit_file", "denied", False)
    assert inner["parent"] == outer["id"]


@pytest.mark.parametrize("flag", ["--edit", "--yes"])
def test_flags_allow(user: Punie, project: Path, flag: str) -> None:
    with Script(EDIT, WRITE, MOVE, say("Done.")) as model:
        done = model.ask(user, project, flag)
    assert done.returncode == 0, done.stderr
    assert (project / "c.py").read_text() == "x = 2\n"
    assert (project / "new" / "b.py").read_text() == "y = 1\n"
    assert "move_file a.py → c.py" in done.stderr


def test_run_allows_no_edit(user: Punie, project: Path) -> None:
    before = snapshot(project)
    with Script(EDIT, say("I could not.")) as model:
        done = model.ask(user, project, "--run")
    assert done.returncode == 5
    assert "no terminal to ask on: edit_file: a.py" in done.stderr
    assert "the user rejected" not in done.stderr, "nobody was there"
    assert "to allow it: --edit" in done.stderr
    assert snapshot(project) == before


# the user's settings


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[tuple[Punie, Path]]:
    """A user of their own and the place of their settings."""
    own = Punie(tmp_path / "u")
    file = own.home / "punie" / "config" / "config.toml"
    file.parent.mkdir(parents=True)
    yield own, file
    own.close()


def test_a_deny_rule_wins_over_yes(settings: tuple[Punie, Path], project: Path) -> None:
    own, file = settings
    file.write_text('[[permissions.deny]]\npath = "a.py"\n')
    before = snapshot(project)
    for flag in ("--yes", "--edit"):
        with Script(EDIT, DELETE, MOVE, NESTED, say("I could not.")) as model:
            done = model.ask(own, project, flag)
            assert all("rule deny path=a.py" in told for told in model.told)
        assert done.returncode == 5
        assert "rule deny path=a.py in the user's settings" in done.stderr
        assert "to allow it" not in done.stderr
    assert snapshot(project) == before


@pytest.mark.parametrize("mode", ["accept-edits", "trusted"])
def test_a_script_needs_a_flag_whatever_the_mode(
    settings: tuple[Punie, Path], project: Path, mode: str
) -> None:
    own, file = settings
    file.write_text(f'[permissions]\nmode = "{mode}"\n')
    before = snapshot(project)
    with Script(EDIT, say("I could not."), EDIT, say("Done.")) as model:
        assert model.ask(own, project).returncode == 5
        assert snapshot(project) == before
        assert model.ask(own, project, "--edit").returncode == 0
    assert snapshot(project) != before


@pytest.mark.parametrize(("mode", "code"), [("accept-edits", 0), ("trusted", 0), ("read-only", 5)])
def test_the_mode_counts_on_a_terminal(
    settings: tuple[Punie, Path], project: Path, mode: str, code: int
) -> None:
    own, file = settings
    file.write_text(f'[permissions]\nmode = "{mode}"\n')
    with (
        Script(EDIT, say("That is it.")) as model,
        model.ask_on_terminal(own, project) as terminal,
    ):
        assert terminal.end() == code, terminal.shown
        assert "punie wants to" not in terminal.shown
    assert (project / "a.py").read_text() == ("x = 2\n" if code == 0 else "x = 1\n")


def test_read_only_mode_yields_to_a_flag(settings: tuple[Punie, Path], project: Path) -> None:
    own, file = settings
    file.write_text('[permissions]\nmode = "read-only"\n')
    with Script(EDIT, say("Done.")) as model:
        assert model.ask(own, project, "--edit").returncode == 0
    assert (project / "a.py").read_text() == "x = 2\n"


# a project's own settings

DENY = '[permissions]\ndeny = [{ path = "a.py" }]\n'


def test_a_project_s_settings_need_trust(user: Punie, project: Path) -> None:
    own = project / ".punie" / "config.toml"
    own.parent.mkdir()
    own.write_text(DENY)

    def edits() -> str:
        """Ask for an edit and say what came of it."""
        (project / "a.py").write_text("x = 1\n")
        with Script(EDIT, say("That is it.")) as model:
            done = model.ask(user, project, "--edit")
        changed = (project / "a.py").read_text() == "x = 2\n"
        assert done.returncode == (0 if changed else 5), done.stderr
        return f"{'edited' if changed else 'refused'}: {done.stderr}"

    asked = edits()
    assert asked.startswith("edited")
    assert "punie trust" in asked
    done = user.run("trust", project)
    assert "trusted: .punie/config.toml" in done.stdout
    assert edits().startswith("refused")
    own.write_text(DENY + "# one byte more\n")
    changed = edits()
    assert changed.startswith("refused"), "whoever trusted a rule has not taken it back"
    assert "have changed since you trusted them: .punie/config.toml" in changed
    own.write_text(DENY)
    assert edits().startswith("refused"), "the bytes that were trusted"
    assert user.run("trust", "--revoke", project).returncode == 0
    assert edits().startswith("edited")


def test_a_project_cannot_widen_what_a_script_may(user: Punie, project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool.punie.permissions]\nmode = "trusted"\n')
    assert user.run("trust", project).returncode == 0
    before = snapshot(project)
    with Script(EDIT, say("I could not.")) as model:
        assert model.ask(user, project).returncode == 5
    assert snapshot(project) == before


def test_settings_that_are_ignored_are_named(user: Punie, project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool.punie.permissions]\nmode = "trusted"\n')
    with Script(say("Hello.")) as model:
        done = model.ask(user, project)
    assert done.returncode == 0
    assert "note: this project's settings (pyproject.toml) are ignored" in done.stderr
    assert done.stdout == "Hello.\n"


def test_settings_that_cannot_be_used_cannot_be_trusted(user: Punie, project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool.punie.permissions]\nmood = "trusted"\n')
    done = user.run("trust", project)
    assert done.returncode == 2
    assert "pyproject.toml" in done.stderr
    assert "mood" in done.stderr


def test_trust_as_json(user: Punie, project: Path) -> None:
    assert "has no settings of its own" in user.run("trust", project).stdout
    (project / ".punie").mkdir()
    (project / ".punie" / "config.toml").write_text(DENY)
    report = json.loads(user.run("trust", "--json", project).stdout)
    assert report["files"] == [".punie/config.toml"]
    assert report["trusted"] is True
    assert len(report["digest"]) == 64
    assert report["root"] == str(project)
