"""Folders that git takes for a repository's own, and what a killed edit leaves behind."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from punie_workers.interp import edits, places, specials
from punie_workers.interp.failures import Failure, Kind
from punie_workers.interp.paths import Root
from punie_workers.interp.places import LEFT_BEHIND
from punie_workers.interp.wire import decode_request
from tests.support.checking import write
from tests.support.repositories import Repository


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    root = Root(str(tmp_path))
    yield root
    root.close()


def put(root: Root, path: str, text: str = "x") -> None:
    """Write a file as the tool does."""
    plan = edits.plan(root, "write_file", {"path": path, "text": text, "content_hash": ""})
    _, arguments = decode_request(plan["apply"])
    edits.apply(root, **arguments)


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def refusal(root: Root, path: str) -> Kind:
    with pytest.raises(Failure) as caught:
        put(root, path)
    return caught.value.kind


def test_a_repository_kept_elsewhere_is_protected(root: Root, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "work")
    repository.git("init", "--quiet", "--separate-git-dir", str(tmp_path / "kept"))
    repository.commit({"a.txt": "a\n"})
    repository.git("worktree", "add", "--quiet", "../tree")
    for path in ("kept/config", "kept/hooks/post-commit", "kept/info/attributes", "work/.git"):
        assert refusal(root, path) is Kind.PROTECTED, path
    assert refusal(root, "kept/worktrees/tree/config.worktree") is Kind.PROTECTED
    put(root, "work/b.txt")
    put(root, "tree/b.txt")


@pytest.mark.parametrize("last", ["HEAD", "config", "objects/info/x", "refs/heads/main"])
def test_no_repository_is_made_piece_by_piece(root: Root, tmp_path: Path, last: str) -> None:
    parts = {"HEAD": "ref: refs/heads/main\n", "objects/x": "", "refs/heads/x": "", "config": ""}
    own = last.partition("/")[0]
    left = {name: text for name, text in parts.items() if name.partition("/")[0] != own}
    if own in ("HEAD", "config"):
        left = {name: text for name, text in left.items() if name not in ("HEAD", "config")}
    write(tmp_path / "made", left)
    assert refusal(root, f"made/{last}") is Kind.PROTECTED
    assert not (tmp_path / "made" / last).exists()


def test_folders_that_only_look_alike_are_not_protected(root: Root, tmp_path: Path) -> None:
    write(
        tmp_path, {"a/objects/x": "", "a/HEAD": "", "b/refs/x": "", "c/objects": "", "c/refs": ""}
    )
    for path in ("a/config", "a/objects/y", "b/HEAD", "c/config", "objects/x", "refs/x"):
        put(root, path)


def test_what_a_killed_edit_left_goes_with_the_next_one(root: Root, tmp_path: Path) -> None:
    names = [".punie-0123456789abcdef", ".punie-0123456789abcdee", ".punie-notes", ".punie-0123"]
    write(tmp_path, dict.fromkeys(names, "x"))
    (tmp_path / ".punie-000000000000000f").mkdir()
    (tmp_path / ".punie-000000000000001f").symlink_to(tmp_path / names[0])
    fresh = set(names_in(tmp_path))
    put(root, "a.txt")
    assert set(names_in(tmp_path)) == fresh | {"a.txt"}, "an edit may still be at work on them"


def test_only_what_is_old_goes(root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / ".punie-0123456789abcdef"
    write(tmp_path, {old.name: "x", ".punie-notes": "x"})
    (tmp_path / ".punie-000000000000000f").mkdir()
    (tmp_path / ".punie-000000000000001f").symlink_to(old)
    (tmp_path / ".punie-000000000000002f").hardlink_to(tmp_path / ".punie-notes")
    now = time.time()
    monkeypatch.setattr(places.time, "time", lambda: now + LEFT_BEHIND + 5)
    put(root, "a.txt")
    assert not old.exists()
    assert len(names_in(tmp_path)) == 5


def test_pipes_and_devices_are_found(root: Root, tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "", "deep/b.py": "", "node_modules/c.py": ""})
    os.mkfifo(tmp_path / "deep" / "wait.py")
    os.mkfifo(tmp_path / "node_modules" / "wait.py")
    os.mkfifo(tmp_path / "plain-pipe")
    (tmp_path / "zero.py").symlink_to("/dev/zero")
    assert sorted(specials.find(root)) == ["deep/wait.py", "zero.py"]
