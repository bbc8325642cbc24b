"""The corpus of escape attempts against the file tools, through a real project half.

The repositories that attack are tried with every tool, commands and tests among them.
"""

import asyncio
from pathlib import Path

import msgspec
import pytest

from punie_protocol.errors import Denied, PunieError, ToolFailed
from punie_protocol.tool_types import Permission
from punie_protocol.tools import TOOLS
from punie_workers.project_tools import ProjectTools
from tests.support.checking import opened
from tests.support.escape_ground import Call, Case, Ground, cases

CONTAINED = "contained"


@pytest.mark.parametrize("case", cases("files.toml"), ids=lambda case: case.id)
def test_nothing_gets_out(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ground = Ground(tmp_path)
    monkeypatch.setenv("HOME", str(ground.home))
    _attempt(case, ground)


@pytest.mark.parametrize("case", cases("repository.toml"), ids=lambda case: case.id)
def test_no_repository_has_anything_run(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = Ground(tmp_path)
    monkeypatch.setenv("HOME", str(ground.home))
    _attempt(case, ground)
    assert [name for name in case.absent if (ground.project / name).exists()] == []


def _attempt(case: Case, ground: Ground) -> None:
    with ground.listening():
        ground.prepare(case)
        told = asyncio.run(_tell(ground, case.calls))
    for call, (kind, text) in zip(case.calls, told, strict=True):
        assert not ground.shows(text, case), (call, text)
        assert case.expect in (kind, CONTAINED), (call, text)
    assert ground.damage() == []
    if case.alike:
        names = [str(ground.filled(call.arguments)["path"]) for call in case.calls]
        said = {text.replace(name, "") for name, (_, text) in zip(names, told, strict=True)}
        assert len(said) == 1, said


async def _tell(ground: Ground, calls: list[Call]) -> list[tuple[str, str]]:
    async with opened(ground.project) as halves:
        tools = ProjectTools(str(ground.project), halves)
        try:
            return [await _call(tools, call.tool, ground.filled(call.arguments)) for call in calls]
        finally:
            tools.close()


async def _call(tools: ProjectTools, name: str, arguments: dict[str, object]) -> tuple[str, str]:
    """Return the kind of the failure, empty for none, and all that the model is told."""
    tool = TOOLS[name]
    wanted = msgspec.convert(arguments, tool.arguments)
    try:
        if tool.permission is Permission.READ:
            result = await tools.read(wanted)
        else:
            result = await (await tools.prepare(wanted)).run()
    except PunieError as error:
        return _said(error)
    return "", msgspec.json.encode(result).decode()


def _said(error: PunieError) -> tuple[str, str]:
    match error.error:
        case ToolFailed(kind=kind, message=message, hint=hint):
            return kind, f"{message} {hint}"
        case Denied(message=message, hint=hint):
            return "denied", f"{message} {hint}"
        case _:
            raise error
