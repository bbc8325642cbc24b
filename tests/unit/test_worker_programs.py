"""The search as a program like any other: what it means when ripgrep misbehaves."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from punie_protocol.errors import PunieError, ToolFailed
from punie_protocol.tools_files import Search, SearchResult
from punie_workers import programs, rg
from punie_workers.file_tools import FileTools
from tests.support.checking import ask, refusal, script, write

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


def test_a_folder_that_is_deleted_meanwhile_is_no_fault_of_the_pattern(tmp_path: Path) -> None:
    """Nothing of its own is blamed on what the model wrote."""
    (gone := tmp_path / "gone").mkdir()
    descriptor = os.open(gone, os.O_RDONLY)
    gone.rmdir()
    try:
        with pytest.raises(PunieError, match="folder was deleted"):
            asyncio.run(rg.search(descriptor, "x", "*", ignore_case=False, at_root=True))
        with pytest.raises(PunieError, match="folder was deleted"):
            asyncio.run(rg.files(descriptor, at_root=True))
    finally:
        os.close(descriptor)


def test_the_real_one(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "a needle\n"})
    result = ask(tmp_path, lambda halves: FileTools(halves).run(FIND))
    assert isinstance(result, SearchResult)
    assert result.match_count == 1
