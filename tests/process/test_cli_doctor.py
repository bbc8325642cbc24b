"""The doctor on this machine, and on one where something is broken."""

import asyncio
import os
import sqlite3
import sys
from pathlib import Path

import pytest

from punie_supervisor import journal_schema
from punie_supervisor.cli import probes
from punie_supervisor.cli.checks import Check, Level
from punie_supervisor.cli.doctor import look
from punie_supervisor.paths import Paths
from tests.support.checking import script


def paths_in(home: Path) -> Paths:
    return Paths.from_environment({"PUNIE_HOME": str(home)})


def found(paths: Paths) -> dict[str, Check]:
    """Return what the doctor says, by name."""
    all_of_it = asyncio.run(look(paths))
    by_name = {one.name: one for one in all_of_it}
    assert len(by_name) == len(all_of_it)
    return by_name


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return paths_in(tmp_path / "punie")


def test_a_new_user(paths: Paths) -> None:
    seen = found(paths)
    bad = {one.name: one.text for one in seen.values() if one.level is Level.FAIL}
    assert bad.keys() <= {"sandbox"}, bad
    assert "not made yet" in seen["state"].text
    assert "none yet" in seen["journal"].text
    assert "not running" in seen["daemon"].text
    assert not paths.home.exists(), "nothing is made by looking"


def test_what_came_with_punie_runs(paths: Paths) -> None:
    seen = found(paths)
    for name in ("rg", "ruff", "ty"):
        assert seen[name].level is Level.OK
        assert any(character.isdigit() for character in seen[name].text)


def test_an_old_user(paths: Paths) -> None:
    paths.prepare()
    journal_schema.open_database(paths.journal).close()
    paths.config_dir.mkdir()
    paths.config_file.write_text('isolation = "interpreter"\n[limits]\nfiles = 1000000\n')
    seen = found(paths)
    for name in ("state", "run", "socket", "config", "journal"):
        assert seen[name].level is Level.OK, seen[name]
    assert "0 projects" in seen["journal"].text
    assert "should have 1000000" in seen["files"].text


def test_a_journal_in_use_is_read(paths: Paths) -> None:
    paths.prepare()
    db = journal_schema.open_database(paths.journal)
    try:
        db.execute("BEGIN IMMEDIATE")
        assert found(paths)["journal"].level is Level.OK
    finally:
        db.close()


def test_a_journal_that_is_none(paths: Paths) -> None:
    paths.prepare()
    paths.journal.write_bytes(b"this is no database, " * 100)
    check = found(paths)["journal"]
    assert check.level is Level.FAIL
    assert str(paths.journal) in check.text
    assert "move it away" in check.hint


def test_a_journal_of_a_newer_punie(paths: Paths) -> None:
    paths.prepare()
    db = sqlite3.connect(paths.journal)
    db.execute("PRAGMA user_version = 1000")
    db.close()
    check = found(paths)["journal"]
    assert check.level is Level.FAIL
    assert "update Punie" in check.hint


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "punie").touch()
    seen = found(paths_in(tmp_path / "punie"))
    assert seen["state"].level is seen["run"].level is Level.FAIL
    assert "PUNIE_HOME" in seen["state"].hint


def test_a_run_folder_that_is_a_file(paths: Paths) -> None:
    paths.home.mkdir()
    paths.run_dir.touch()
    seen = found(paths)
    assert "is no folder" in seen["run"].text
    assert "not running" in seen["daemon"].text


def test_a_home_that_is_too_deep(tmp_path: Path) -> None:
    check = found(paths_in(tmp_path / ("x" * 120)))["socket"]
    assert check.level is Level.FAIL
    assert "shorter" in check.hint


def test_a_state_folder_that_others_see(paths: Paths) -> None:
    paths.prepare()
    paths.state_dir.chmod(0o755)
    check = found(paths)["state"]
    assert (check.level, check.hint) == (Level.WARN, f"run: chmod 700 {paths.state_dir}")


def test_a_folder_of_somebody_else(paths: Paths) -> None:
    paths.prepare()
    paths.run_dir.rmdir()
    if os.geteuid():
        paths.run_dir.symlink_to("/")
    else:
        paths.run_dir.mkdir()
        os.chown(paths.run_dir, 65534, 65534)
    assert "another user" in found(paths)["run"].text


def test_a_config_file_with_an_error(paths: Paths) -> None:
    paths.config_dir.mkdir(parents=True)
    paths.config_file.write_text("[limits]\nmemory = 1\n")
    check = found(paths)["config"]
    assert check.level is Level.FAIL
    assert "there is no key 'memory'" in check.text
    assert "did you mean 'memory_mb'?" in check.hint


def test_a_config_file_whose_keys_others_can_read(paths: Paths) -> None:
    paths.config_dir.mkdir(parents=True)
    paths.config_file.write_text('[[servers]]\nurl = "http://h/v1"\nkey = "s3cret"\n')
    paths.config_file.chmod(0o644)
    check = found(paths)["config"]
    assert check.level is Level.WARN
    assert "s3cret" not in check.text + check.hint


def test_a_program_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    [check] = asyncio.run(probes.program("rg"))
    assert check.level is Level.FAIL
    assert str(tmp_path / "rg") in check.text


@pytest.mark.parametrize(
    ("lines", "patience", "text"),
    [("exit 3", 15.0, "exit code 3"), ("exec /bin/sleep 60", 0.2, "did not end within 0.2 s")],
    ids=["crashes", "hangs"],
)
def test_a_program_that_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, patience: float, text: str
) -> None:
    script(tmp_path / "rg", lines)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(probes, "PATIENCE", patience)
    [check] = asyncio.run(probes.program("rg"))
    assert check.level is Level.FAIL
    assert text in check.text
    assert "bootstrap" in check.hint


@pytest.mark.parametrize(
    ("lines", "patience", "text"),
    [
        ("echo no json; echo broken >&2", 15.0, "broken"),
        ("exit 3", 15.0, "exit code 3"),
        ("exec /bin/sleep 60", 0.2, "no answer within 0.2 s"),
    ],
    ids=["garbage", "crashes", "hangs"],
)
def test_a_sandbox_that_cannot_be_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, patience: float, text: str
) -> None:
    monkeypatch.setattr(sys, "executable", str(script(tmp_path / "python", lines)))
    monkeypatch.setattr(probes, "PATIENCE", patience)
    [check] = asyncio.run(probes.sandbox())
    assert check.level is Level.FAIL
    assert text in check.text


def test_modules_of_the_folder_we_are_in_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "punie_workers" / "sandbox"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (package / "available.py").write_text("")
    monkeypatch.chdir(tmp_path)
    asyncio.run(probes.sandbox())
    assert not (tmp_path / "ran").exists()
