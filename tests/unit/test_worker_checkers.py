"""The checkers: what they find, what they must not do, and that no failure looks like success."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from punie_protocol.errors import TimedOut, ToolFailed
from punie_protocol.tool_types import Arguments
from punie_protocol.tools_checks import RuffCheck, RuffCheckResult, Typecheck, TypecheckResult
from punie_protocol.tools_files import Search
from punie_workers import checkers, programs
from punie_workers.checkers import Checkers
from punie_workers.file_tools import FileTools
from punie_workers.programs import MAX_ERRORS
from tests.support.checking import (
    PROJECT,
    alive,
    ask,
    opened,
    refusal,
    script,
    snapshot,
    until,
    write,
)

BOTH = pytest.mark.parametrize("call", [Typecheck(), RuffCheck()], ids=["ty", "ruff"])


@pytest.fixture(autouse=True)
def _nobodys_home(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


def typecheck(root: Path, path: str = ".", limit: int = 100) -> TypecheckResult:
    result = ask(root, lambda halves: Checkers(halves).run(Typecheck(path, limit)))
    assert isinstance(result, TypecheckResult)
    return result


def ruff_check(root: Path, path: str = ".", limit: int = 100) -> RuffCheckResult:
    result = ask(root, lambda halves: Checkers(halves).run(RuffCheck(path, limit)))
    assert isinstance(result, RuffCheckResult)
    return result


def failure(root: Path, call: Arguments, program: Path | str | None = None) -> ToolFailed:
    """Return how the call fails, with `program` in place of either checker."""
    find = programs.bundled if program is None else lambda _: str(program)
    error = refusal(root, lambda halves: Checkers(halves, find).run(call))
    assert isinstance(error, ToolFailed), error
    return error


# what they find


def test_a_folder_and_a_file_are_checked_by_the_rules_of_the_project(tmp_path: Path) -> None:
    write(tmp_path, PROJECT)
    whole = typecheck(tmp_path)
    assert (whole.ok, whole.error_count, whole.warning_count, whole.truncated) == (
        False, 5, 1, False,
    )  # fmt: skip
    warning = next(problem for problem in whole.errors if problem.severity == "warning")
    assert (warning.file, warning.line, warning.code) == (
        "shop/prices.py", 10, "division-by-zero",
    )  # fmt: skip
    assert typecheck(tmp_path, "shop").errors == whole.errors
    of_file = typecheck(tmp_path, "shop/stock.py")
    assert [problem.file for problem in of_file.errors] == ["shop/stock.py"]
    assert typecheck(tmp_path, str(tmp_path / "shop" / "clean.py")).ok

    style = ruff_check(tmp_path)
    assert {violation.file for violation in style.violations} == {
        "shop/prices.py", "shop/torn.py",
    }  # fmt: skip
    assert style.fixable_count == sum(violation.fixable for violation in style.violations) > 0
    assert not style.ok
    assert ruff_check(tmp_path, "shop/clean.py") == RuffCheckResult(
        ok=True, violation_count=0, fixable_count=0, truncated=False, violations=[]
    )
    assert ruff_check(tmp_path, "made/code.py").ok, "the project excludes it"


def test_a_result_is_cut_to_its_limit_and_counts_everything(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "import os, sys, re\n" * 5, "b.py": "x: int = ''\n" * 3})
    style = ruff_check(tmp_path, limit=2)
    assert (len(style.violations), style.truncated, style.violation_count > 2) == (2, True, True)
    types = typecheck(tmp_path, limit=2)
    assert (len(types.errors), types.truncated, types.error_count) == (2, True, 3)


def test_a_syntax_error_has_one_name(tmp_path: Path) -> None:
    write(tmp_path, {"torn.py": "def torn(:\n"})
    violations = ruff_check(tmp_path).violations
    assert {violation.code for violation in violations} == {"syntax-error"}
    assert not any(violation.fixable for violation in violations)


def test_an_unsafe_fix_is_none(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "import os\n\n\ndef f():\n    unused = 1\n"})
    fixable = {found.code: found.fixable for found in ruff_check(tmp_path).violations}
    assert fixable == {"F401": True, "F841": False}


def test_strange_names(tmp_path: Path) -> None:
    write(tmp_path, {"-v.py": "import os\n", "a b/é.py": "x: int = ''\nimport os\n"})
    assert [found.file for found in ruff_check(tmp_path, "-v.py").violations] == ["-v.py"]
    assert [found.file for found in typecheck(tmp_path, "a b/é.py").errors] == ["a b/é.py"]
    assert {found.file for found in ruff_check(tmp_path).violations} == {"-v.py", "a b/é.py"}


# where they look


def test_what_is_missing_or_outside_is_refused_before_anything_runs(tmp_path: Path) -> None:
    root = write(tmp_path / "root", PROJECT)
    write(tmp_path, {"outside.py": "import os\n"})
    (root / "out").symlink_to(tmp_path)
    (root / "out.py").symlink_to(tmp_path / "outside.py")
    os.mkfifo(root / "pipe.py")
    marker = tmp_path / "ran"
    program = script(tmp_path / "marker", f'echo "$0" >>"{marker}"; echo "[]"')
    expected = {
        "none.py": "not_found", "none/x.py": "not_found", "..": "outside_root",
        "../outside.py": "outside_root", "out": "outside_root", "out/outside.py": "outside_root",
        "out.py": "outside_root", "/etc": "outside_root", "pipe.py": "not_a_file",
    }  # fmt: skip
    for path, kind in expected.items():
        for call in (Typecheck(path), RuffCheck(path)):
            assert failure(root, call, program).kind == kind, path
    assert not marker.exists()
    ask(root, lambda halves: Checkers(halves, lambda _: str(program)).run(RuffCheck()))
    assert marker.exists()


def test_a_file_behind_a_link_that_leads_outside_is_not_told(tmp_path: Path) -> None:
    root = write(tmp_path / "root", {"in.py": "import os\nx: int = ''\n"})
    write(tmp_path, {"outside.py": "import secret\ny: int = ''\n"})
    (root / "out.py").symlink_to(tmp_path / "outside.py")
    (root / "also.py").symlink_to("in.py")
    assert {found.file for found in ruff_check(root).violations} == {"also.py", "in.py"}
    assert {found.file for found in typecheck(root).errors} == {"also.py", "in.py"}


def test_packages_of_the_projects_environment_are_found_and_none_of_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path / "root", PROJECT)
    packages = root / ".venv" / "lib" / "python3.12" / "site-packages"
    write(packages, {"warehouse/__init__.py": "def count() -> int: ...\n"})
    write(root, {".venv/pyvenv.cfg": "home = /usr/bin\nversion_info = 3.12.1\n", "uv.lock": ""})
    write(root, {"tool.py": '# /// script\n# dependencies = ["requests"]\n# ///\n'})
    marker = tmp_path / "ran"
    for name in ("python", "python3", "ty", "ruff", "uv", "git"):
        script(root / ".venv" / "bin" / name, f'echo "$0" >>"{marker}"')
    monkeypatch.setenv("PATH", f"{root / '.venv' / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("VIRTUAL_ENV", str(root / ".venv"))
    monkeypatch.setenv("UV", str(root / ".venv" / "bin" / "uv"))
    before = snapshot(root)
    stock = typecheck(root, "shop/stock.py")
    assert stock.ok, stock.errors
    assert typecheck(root).error_count == 4
    assert not ruff_check(root).ok
    assert snapshot(root) == before, "nothing was fixed, cached or made"
    assert not marker.exists(), marker.read_text()
    assert subprocess.run(["ruff"], check=False).returncode == 0, "the fixture is potent"
    assert marker.exists()


# what goes wrong

SPOILT = {
    "rubbish": ("echo Checking...", "checker_output", "no JSON"),
    "nothing": ("exit 0", "checker_output", "no JSON"),
    "half": ("""printf '[{"code": "F401", "mess'""", "checker_output", "no JSON"),
    "latin": (r"printf '[\351]'", "checker_output", "no JSON"),
    "deep": ("/usr/bin/head -c 200000 /dev/zero | /usr/bin/tr '\\0' '['", "checker_output", "JSON"),
    "object": ("""echo '{"ok": true}'""", "checker_output", "no list"),
    "numbers": ("echo '[1, 2]'", "checker_output", "no list"),
    "shape": ("""echo '[{"code": 1}]'; exit 1""", "checker_output", "another shape"),
    "silent": ("echo '[]'; exit 1", "checker_output", "status 1"),
    "crash": ("echo '[]'; echo 'thread main panicked' >&2; exit 101", "checker_failed", "panicked"),
    "killed": ("echo '[]'; kill -SEGV $$", "checker_failed", "SIGSEGV"),
    "usage": ("echo 'unknown option' >&2; exit 2", "checker_failed", "unknown option"),
    "flood": ("/usr/bin/head -c 40000000 /dev/zero", "checker_output", "32 MB"),
}


@BOTH
@pytest.mark.parametrize("spoilt", sorted(SPOILT))
def test_a_checker_that_fails_is_an_error_and_never_a_clean_project(
    call: Arguments, spoilt: str, tmp_path: Path
) -> None:
    lines, kind, words = SPOILT[spoilt]
    error = failure(tmp_path, call, script(tmp_path / "bin" / "checker", lines))
    assert (error.kind, words in error.message) == (kind, True), error


@BOTH
def test_a_checker_that_is_missing_or_is_no_program(call: Arguments, tmp_path: Path) -> None:
    write(tmp_path, {"text": "hello\n", "binary": "\0\1"})
    assert failure(tmp_path, call, tmp_path / "none").kind == "checker_missing"
    assert failure(tmp_path, call, tmp_path / "text").kind == "checker_missing"
    assert failure(tmp_path, call, tmp_path).kind == "checker_missing"
    (tmp_path / "binary").chmod(0o755)
    assert failure(tmp_path, call, tmp_path / "binary").kind == "checker_missing"


def test_a_wrong_configuration_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "", "ruff.toml": "[lint]\nselect = ['BOGUS']\n"})
    error = failure(tmp_path, RuffCheck())
    assert error.kind == "checker_failed"
    assert "BOGUS" in error.message
    write(tmp_path, {"ty.toml": "[environment]\npython = './none'\n"})
    error = failure(tmp_path, Typecheck())
    assert error.kind == "checker_failed"
    assert "environment.python" in error.message
    assert "does not point to" in error.message


@BOTH
def test_a_line_of_a_file_elsewhere_is_not_told(call: Arguments, tmp_path: Path) -> None:
    """A configuration may be a link, or extend another one: a complaint quotes where it fails."""
    (tmp_path / "credentials").write_text("[default]\nkey = SECRET\n")
    root = write(tmp_path / "root", {"a.py": ""})
    for name in ("ruff.toml", "ty.toml"):
        (root / name).symlink_to("../credentials")
    error = failure(root, call)
    assert error.kind == "checker_failed"
    assert "line 2" in error.message
    assert "SECRET" not in error.message


def test_one_file_that_cannot_be_read_hides_no_finding_in_another(tmp_path: Path) -> None:
    write(tmp_path, {"bad.py": "x: int = 'a'\n"})
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")
    found = typecheck(tmp_path)
    assert [error.file for error in found.errors] == ["bad.py", "latin.py"]
    assert not found.ok


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux")
def test_a_file_without_an_end_does_not_take_all_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "MAX_MEMORY", 256 * 1024**2)
    write(tmp_path, {"a.py": "import os\n"})
    (tmp_path / "endless.py").symlink_to("/dev/zero")
    result = ruff_check(tmp_path)
    assert [found.code for found in result.violations] == ["F401"]
    (tmp_path / ".gitignore").symlink_to("/dev/zero")
    search = refusal(tmp_path, lambda halves: FileTools(halves).run(Search("os")))
    assert isinstance(search, ToolFailed)
    assert search.kind == "search_failed"


def test_a_file_that_cannot_be_read_is_a_violation(tmp_path: Path) -> None:
    """Ruff alone would print a warning and find everything to be in order."""
    write(tmp_path, {"a.py": "", "ruff.toml": "[lint]\nignore = ['E9']\n"})
    gone = f'rm "{tmp_path}/a.py"; exec "{programs.bundled("ruff")}" "$@"'
    program = script(tmp_path / "bin" / "ruff", gone.replace("rm ", "/bin/rm "))
    result = ask(tmp_path, lambda halves: Checkers(halves, lambda _: str(program)).run(
        RuffCheck("a.py")
    ))  # fmt: skip
    assert isinstance(result, RuffCheckResult)
    assert [violation.code for violation in result.violations] == ["E902"]


@BOTH
def test_a_checker_that_hangs_is_ended_with_what_it_started(
    call: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TY", "RUFF"):
        short = msgspec.structs.replace(getattr(checkers, name), timeout=0.5)
        monkeypatch.setattr(checkers, name, short)
    pids = tmp_path / "pids"
    error = refusal(tmp_path, lambda halves: Checkers(halves, lambda _: hanging(pids)).run(call))
    assert isinstance(error, TimedOut), error
    assert error.limit_s == 0.5
    assert "0.5 s" in error.message
    until_gone(pids)


@BOTH
def test_cancelling_a_call_ends_the_checker_with_what_it_started(
    call: Arguments, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"

    async def main() -> None:
        async with opened(tmp_path) as halves:
            running = asyncio.create_task(Checkers(halves, lambda _: hanging(pids)).run(call))
            await asyncio.to_thread(until, pids.exists)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    asyncio.run(main())
    until_gone(pids)


def test_a_flood_of_complaints_stops_nobody(tmp_path: Path) -> None:
    lines = f"/usr/bin/head -c {4 * MAX_ERRORS} /dev/zero >&2; echo '[]'"
    program = script(tmp_path / "bin" / "checker", lines)
    result = ask(tmp_path, lambda halves: Checkers(halves, lambda _: str(program)).run(RuffCheck()))
    assert isinstance(result, RuffCheckResult)
    assert result.ok


def hanging(pids: Path) -> str:
    """A program that starts another one, writes both numbers to `pids`, and waits."""
    lines = f'/bin/sleep 600 &\necho $$ $! >"{pids}.new"\n/bin/mv "{pids}.new" "{pids}"\nwait'
    return str(script(pids.parent / "bin" / "hanging", lines))


def until_gone(pids: Path) -> None:
    numbers = [int(pid) for pid in pids.read_text().split()]
    assert len(numbers) == 2
    until(lambda: not any(map(alive, numbers)))
