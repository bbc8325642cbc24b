"""The search as a program like any other: what it means when ripgrep misbehaves."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from punie_protocol.errors import PunieError, ToolFailed
from punie_protocol.tools_files import Search, SearchResult
from punie_workers import programs, rg
from punie_workers.file_tools import FileTools
from punie_workers.halves import Halves
from punie_workers.readers import Folder, Reader, nowhere
from punie_workers.sandbox import available
from punie_workers.sandbox.available import Missing
from punie_workers.sandbox.confinement import Sandbox
from tests.support.checking import ask, refusal, script, until, write

FIND = Search("needle")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in ripgrep's place."""

    def put(lines: str) -> None:
        program = script(tmp_path / "bin" / "rg", lines)
        monkeypatch.setattr(programs, "bundled", lambda _: str(program))

    return put


@pytest.mark.parametrize(
    ("lines", "kind", "words"),
    [
        ("kill -SEGV $$", "search_failed", "SIGSEGV"),
        ("echo no >&2; exit 3", "search_failed", "status 3"),
        ("echo 'rg: unclosed group' >&2; exit 2", "invalid_pattern", "unclosed group"),
    ],
)
def test_a_search_that_fails_is_not_one_without_matches(
    lines: str, kind: str, words: str, stand_in: Callable[[str], None], tmp_path: Path
) -> None:
    stand_in(lines)
    error = refusal(tmp_path, lambda halves: FileTools(halves).run(FIND))
    assert isinstance(error, ToolFailed)
    assert (error.kind, words in error.message) == (kind, True), error


def test_a_missing_ripgrep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "bundled", lambda _: str(tmp_path / "none"))
    error = refusal(tmp_path, lambda halves: FileTools(halves).run(FIND))
    assert isinstance(error, ToolFailed)
    assert error.kind == "search_missing"


@pytest.mark.parametrize("find", [nowhere, available.find])
def test_a_folder_that_is_deleted_meanwhile_is_no_fault_of_the_pattern(
    tmp_path: Path, find: Callable[[], Sandbox | Missing]
) -> None:
    """Nothing of its own is blamed on what the model wrote."""
    (gone := tmp_path / "gone").mkdir()
    descriptor = os.open(gone, os.O_RDONLY)
    gone.rmdir()
    folder = Folder(descriptor, "gone")

    async def search(halves: Halves) -> None:
        reader = Reader(halves, find=find)
        with pytest.raises(PunieError, match="folder was deleted"):
            await rg.search(reader, folder, "x", "*", ignore_case=False)
        with pytest.raises(PunieError, match="folder was deleted"):
            await rg.files(reader, folder)

    try:
        ask(tmp_path, search)
    finally:
        os.close(descriptor)


def test_a_sandbox_that_is_installed_later_is_used(tmp_path: Path) -> None:
    """One that was missing is looked for again, not before each use once it is there."""
    machine: list[Sandbox | Missing] = [Missing("not yet", ""), available.find()]
    looks: list[Sandbox | Missing] = []

    def find() -> Sandbox | Missing:
        looks.append(machine[len(looks)])
        return looks[-1]

    async def search(halves: Halves) -> None:
        reader = Reader(halves, find=find)
        place = Folder(descriptor, ".")
        for _ in range(3):
            await rg.files(reader, place)

    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        ask(tmp_path, search)
    finally:
        os.close(descriptor)
    assert looks == machine


def test_the_real_one(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "a needle\n"})
    result = ask(tmp_path, lambda halves: FileTools(halves).run(FIND))
    assert isinstance(result, SearchResult)
    assert result.match_count == 1


def test_cancelled_while_it_starts_the_whole_group_ends(tmp_path: Path) -> None:
    """At any moment of the start: asyncio itself would kill the leader alone."""
    program = script(tmp_path / "bin" / "starts", "/bin/sleep 600 &\nwait")
    kinds = programs.Kinds(missing="missing", failed="failed", output="output")
    starts = programs.Program(name="starts", kinds=kinds, timeout=10.0, limit=1000)

    async def main() -> None:
        folder = os.open(tmp_path, os.O_RDONLY)
        try:
            for step in range(60):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(step / 10_000):
                        await programs.run(starts, [str(program)], folder)
        finally:
            os.close(folder)

    asyncio.run(main())
    until(lambda: not sleeping_in(tmp_path))


def test_a_pipe_held_by_a_process_that_left_the_group_is_closed_on_our_side(
    tmp_path: Path,
) -> None:
    """`wait` of an asyncio process returns before its pipes are at their end."""
    program = script(tmp_path / "bin" / "leaves", "setsid /bin/sleep 600 &\nwait")
    kinds = programs.Kinds(missing="missing", failed="failed", output="output")
    leaves = programs.Program(name="leaves", kinds=kinds, timeout=0.3, limit=1000)

    async def main() -> None:
        folder = os.open(tmp_path, os.O_RDONLY)
        before = open_descriptors()
        try:
            with pytest.raises(PunieError, match="longer than"):
                await programs.run(leaves, [str(program)], folder)
            assert open_descriptors() == before
        finally:
            os.close(folder)

    try:
        asyncio.run(main())
        assert sleeping_in(tmp_path)
    finally:
        for pid in sleeping_in(tmp_path):
            os.kill(pid, signal.SIGKILL)


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/dev/fd").iterdir()}


def sleeping_in(folder: Path) -> list[int]:
    """Return the processes whose folder it is: orphans are nobody's children any more."""
    places = {process.pid: process.info["cwd"] for process in psutil.process_iter(["cwd"])}
    return [pid for pid, place in places.items() if place == str(folder)]
