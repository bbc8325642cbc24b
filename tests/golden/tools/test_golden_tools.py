"""What ty, ruff and git print, as recorded, and what is made of it.

The checkers are pinned: they must print the very bytes. Git is the machine's: of another version
only the results must be the same.
"""

import asyncio
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from punie_protocol.limits import MAX_TOOL_OUTPUT
from punie_protocol.tools_checks import RuffCheckResult, TypecheckResult
from punie_protocol.tools_git import GitDiffResult, GitLogResult, GitStatusResult
from punie_workers.interp import git_output, ruff_output, ty_output
from punie_workers.interp.paths import Root
from tests.support.golden_tools import CALLS, FILES, ROOT, run


def recorded(name: str) -> bytes:
    return (FILES / name).read_bytes()


@pytest.mark.parametrize("name", sorted(CALLS))
def test_the_tools_print_what_is_recorded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    printed, result = asyncio.run(run(name, tmp_path))
    if not name.startswith("git"):
        assert printed == recorded(name)
    assert result == parsed(name, tmp_path / "project")


@pytest.mark.parametrize("name", sorted(CALLS))
def test_recorded_output_is_read(name: str, tmp_path: Path) -> None:
    result = msgspec.to_builtins(parsed(name, tmp_path))
    expected = msgspec.json.decode((FILES / f"{Path(name).stem}.result.json").read_bytes())
    assert result == expected


def parsed(name: str, folder: Path) -> msgspec.Struct:
    """Return what the project half makes of the recorded output for a project in `folder`."""
    output = recorded(name)
    match name:
        case "ty.json":
            with closing(Root(str(folder))) as root:
                found = ty_output.typecheck(root, output, 1, "", 100)
            return msgspec.convert(found, TypecheckResult)
        case "ruff.json":
            output = output.replace(ROOT, str(folder.resolve()).encode())
            with closing(Root(str(folder))) as root:
                found = ruff_output.ruff_check(root, output, 1, "", 100)
            return msgspec.convert(found, RuffCheckResult)
        case "git_status.txt":
            return msgspec.convert(git_output.git_status(output, "", 500, True), GitStatusResult)
        case "git_diff.txt":
            found = git_output.git_diff(output, MAX_TOOL_OUTPUT, True)
            return msgspec.convert(found, GitDiffResult)
        case _:
            return msgspec.convert(git_output.git_log(output, 20, True), GitLogResult)
