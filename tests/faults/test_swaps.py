"""Names that are swapped for links out of the project while every tool reads and writes.

``PUNIE_KILLS`` is the dose; ``make test-all`` swaps 10,000 times. Nothing outside is ever shown or
changed, whatever a tool is told instead: that a file is gone, or changed, or outside.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from punie_protocol.errors import PunieError, ToolFailed
from punie_protocol.tool_types import Arguments
from punie_protocol.tools_checks import RuffCheck, Typecheck
from punie_protocol.tools_code import Symbols
from punie_protocol.tools_files import (
    DeleteFile,
    EditFile,
    ListFiles,
    MoveFile,
    ReadFile,
    Search,
    WriteFile,
)
from punie_protocol.tools_git import GitDiff, GitStatus
from punie_workers.project_tools import ProjectTools
from tests.support.checking import opened, snapshot
from tests.support.repositories import Repository
from tests.support.swapper import KEPT, SECRET, Swapper, build

DOSE = 400 * int(os.environ.get("PUNIE_KILLS", "4"))
ROUNDS = max(6, DOSE // 200)

READS: tuple[Arguments, ...] = (
    ReadFile("data.py"),
    ReadFile("pkg/mod.py"),
    ReadFile("pkg/deep/leaf.py"),
    Search(SECRET),
    Search("CANARY|kept", "*.py", "pkg"),
    ListFiles(),
    ListFiles("*", "pkg"),
    Symbols(),
    Symbols(name=f"{SECRET}_function", references=True),
    RuffCheck(),
    Typecheck(),
    GitStatus(),
    GitDiff(),
)
CHANGES: tuple[Arguments, ...] = (
    WriteFile("data.py", f"{KEPT} = 2\n"),
    EditFile("data.py", KEPT, f"{KEPT}_"),
    WriteFile("new.py", f"{KEPT}\n"),
    WriteFile("pkg/deep/new.py", f"{KEPT}\n"),
    WriteFile("pkg/made/new.py", f"{KEPT}\n"),
    MoveFile("pkg/deep/leaf.py", "pkg/moved.py"),
    MoveFile("pkg/moved.py", "pkg/deep/leaf.py"),
    MoveFile("still.py", "pkg/deep/still.py"),
    MoveFile("pkg/deep/still.py", "still.py"),
    DeleteFile("pkg/deep/new.py"),
    DeleteFile("pkg/made/new.py"),
    DeleteFile("new.py"),
)
EXPECTED = {
    *("not_found", "not_a_directory", "not_a_file", "outside_root", "changed", "exists", "io"),
    *("protected", "git_failed", "no_match", "not_unique", "no_change", "permission"),
}
"""What a tool may say of a project in which nothing stays where it is."""


class Tally:
    """What was shown, and what was said, of all calls."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.shown: Counter[str] = Counter()
        self.leaks: dict[str, str] = {}

    async def call(self, tool: str, work: Callable[[], Awaitable[object]]) -> None:
        """Do one call, and see whether its answer holds anything from outside."""
        try:
            answer = msgspec.json.encode(await work()).decode()
            self.shown[tool] += 1
        except PunieError as error:
            answer = _said(error)
        self.answers[tool] += 1
        if SECRET in answer:
            self.leaks.setdefault(tool, answer[:300])


def _said(error: PunieError) -> str:
    match error.error:
        case ToolFailed(kind=kind, message=message) if kind in EXPECTED:
            return f"{kind} {message}"
        case _:
            raise error


async def read(tools: ProjectTools, tally: Tally, swapper: Swapper) -> None:
    for _ in range(ROUNDS):
        for arguments in READS:
            await tally.call(type(arguments).__name__, lambda one=arguments: tools.read(one))
    while swapper.swaps() < DOSE:
        for arguments in READS[:8]:
            await tally.call(type(arguments).__name__, lambda one=arguments: tools.read(one))


async def change(tools: ProjectTools, tally: Tally, reading: asyncio.Task[None]) -> None:
    async def one(arguments: Arguments) -> object:
        return await (await tools.prepare(arguments)).run()

    while not reading.done():
        for arguments in CHANGES:
            await tally.call(type(arguments).__name__, lambda given=arguments: one(given))


@pytest.mark.timeout(60 + DOSE // 20)
def test_no_tool_reads_or_changes_anything_outside(tmp_path: Path) -> None:
    root, outside = build(tmp_path)
    repository = Repository(root)
    repository.commit({".gitignore": ".links\n"})
    before = snapshot(outside)
    tally = Tally()

    async def main(swapper: Swapper) -> None:
        async with opened(root) as halves:
            tools = ProjectTools(str(root), halves)
            try:
                async with asyncio.TaskGroup() as group:
                    reading = group.create_task(read(tools, tally, swapper))
                    group.create_task(change(tools, tally, reading))
            finally:
                tools.close()

    with Swapper(root, outside) as swapper:
        asyncio.run(main(swapper))
        assert swapper.swaps() >= DOSE
    assert not tally.leaks
    assert snapshot(outside) == before
    for tool in {type(one).__name__ for one in (*READS, *CHANGES)}:
        assert tally.shown[tool], f"{tool} never answered: it was not tested"
