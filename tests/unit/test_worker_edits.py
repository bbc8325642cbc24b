"""Edits: what they do to bytes, what they refuse, what a race or a cancellation leaves behind."""

import asyncio
import errno
import marshal
import os
import resource
import signal
import subprocess
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from punie_protocol.errors import PunieError, TimedOut, ToolFailed
from punie_protocol.interp_codec import encode_request
from punie_protocol.tools_files import (
    DeleteFile,
    EditFile,
    EditResult,
    MoveFile,
    ReadFile,
    WriteFile,
)
from punie_workers import project_half
from punie_workers.actions import Action, FileDiff
from punie_workers.edit_tools import EditTools
from punie_workers.file_tools import FileTools
from punie_workers.half import HalfState
from punie_workers.half_calls import Deed, DeedState
from punie_workers.halves import Abandoned, Halves
from punie_workers.interp import diffs, edits, files, places, texts
from punie_workers.interp.failures import Failure, Kind
from punie_workers.interp.paths import Root
from punie_workers.interp.texts import UTF_8, Text

PIECES = st.sampled_from(["a", "b", "é", "☃", "😀", " ", "\n", "\r\n", "\n", "\r"])
RAW = st.lists(PIECES, max_size=30).map("".join)
LINES = st.lists(st.sampled_from(["a\n", "b\n", "c\n", "d\n", "e"]), max_size=25).map("".join)
BOMS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])


class Folder:
    """A root, and edits in it done step by step, without an interpreter."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = Root(str(path))

    def plan(self, tool: str, **arguments: Any) -> dict[str, Any]:
        if tool != "move_file":
            arguments.setdefault("content_hash", "")
        return edits.plan(self.root, tool, arguments)

    def apply(self, plan: dict[str, Any]) -> str:
        operation, arguments = marshal.loads(plan["apply"])
        assert operation == "edits_apply"
        return edits.apply(self.root, **arguments)["trouble"]

    def do(self, tool: str, **arguments: Any) -> dict[str, Any]:
        plan = self.plan(tool, **arguments)
        assert self.apply(plan) == ""
        return plan["result"]

    def edit(self, old: str, new: str, path: str = "f.txt") -> dict[str, Any]:
        return self.do("edit_file", path=path, old_text=old, new_text=new)

    def tried(self, old: str, new: str, path: str = "f.txt") -> dict[str, Any] | Kind:
        try:
            return self.edit(old, new, path)
        except Failure as failure:
            return failure.kind

    def refused(self, tool: str, **arguments: Any) -> tuple[Kind, str]:
        before = self.snapshot()
        with pytest.raises(Failure) as failed:
            self.plan(tool, **arguments)
        assert self.snapshot() == before
        return failed.value.kind, failed.value.message

    def late(self, plan: dict[str, Any]) -> tuple[Kind, str]:
        """Apply a plan that must fail and change nothing."""
        before = self.snapshot()
        with pytest.raises(Failure) as failed:
            self.apply(plan)
        assert self.snapshot() == before
        return failed.value.kind, failed.value.message

    def snapshot(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for path in self.path.rglob("*"):
            name = str(path.relative_to(self.path))
            if path.is_symlink():
                found[name] = path.readlink()
            else:
                found[name] = path.read_bytes() if path.is_file() else path.stat().st_mode
        return found

    def read(self, path: str = "f.txt") -> dict[str, Any]:
        return files.read_file(self.root, path, 1, 100_000)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    path = tmp_path / "project"
    path.mkdir()
    found = Folder(path)
    yield found
    found.root.close()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """One folder for all examples of a property."""
    found = Folder(tmp_path_factory.mktemp("scratch"))
    yield found
    found.root.close()


def encoded(raw: str, encoding: str) -> bytes:
    marks = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}
    return marks.get(encoding, b"") + raw.encode(encoding)


# properties


@given(RAW, RAW, RAW, RAW, BOMS)
def test_an_edit_changes_the_bytes_of_its_region_alone(
    scratch: Folder, before: str, old: str, after: str, new: str, encoding: str
) -> None:
    assume(old and not before.endswith("\r") and not old.endswith("\r"))
    shown_old = old.replace("\r\n", "\n")
    data = encoded(before + old + after, encoding)
    (scratch.path / "f.txt").write_bytes(data)
    shown = (before + old + after).replace("\r\n", "\n")
    assume(shown.startswith("\ufeff") is False)
    result = scratch.tried(shown_old, new)
    if isinstance(result, Kind):
        assert (scratch.path / "f.txt").read_bytes() == data
        odd = "\r" in (before + old + after + new).replace("\r\n", "\n")
        assert result in {Kind.NO_CHANGE, Kind.NOT_UNIQUE, Kind.ENCODING if odd else None}
        if result is Kind.NOT_UNIQUE:
            assert shown.find(shown_old) != shown.rfind(shown_old)
        return
    written = (scratch.path / "f.txt").read_bytes()
    mark = encoded("", encoding)
    codec = encoding.removesuffix("-sig")
    assert written.startswith(mark + before.encode(codec))
    assert written.endswith(after.encode(codec))
    shown_new = scratch.read()["text"]
    at = len(before.replace("\r\n", "\n"))
    expected = shown[:at] + new.replace("\r\n", "\n") + shown[at + len(shown_old) :]
    assert shown_new == expected
    assert result["content_hash"] == sha256(written).hexdigest()[:16]


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=12), st.data())
def test_new_lines_end_as_those_around_them(
    scratch: Folder, names: list[str], data: st.DataObject
) -> None:
    for end in ("\n", "\r\n"):
        raw = "".join(f"{name}{n}{end}" for n, name in enumerate(names)) + "x"
        (scratch.path / "f.txt").write_bytes(raw.encode())
        new = data.draw(st.sampled_from(["1\n2\n3", "\n", "y\n"]))
        scratch.edit("x", new)
        assert (scratch.path / "f.txt").read_bytes() == raw[:-1].encode() + new.replace(
            "\n", end if names else "\n"
        ).encode()


@given(RAW, RAW)
def test_writing_keeps_the_line_ends_of_lines_that_stay(old: str, new: str) -> None:
    shown = new.replace("\r\n", "\n")
    raw = texts.with_line_ends(old, shown, "\n")
    assume("\r\n" not in shown and "\r\r\n" not in raw)
    assert raw.replace("\r\n", "\n") == shown
    assert texts.with_line_ends(old, old.replace("\r\n", "\n"), "\n") == old


@given(RAW, st.data())
def test_a_place_in_the_shown_text_is_one_in_the_raw_text(raw: str, data: st.DataObject) -> None:
    text = Text(raw, UTF_8)
    at = data.draw(st.integers(0, len(text.shown)))
    found = texts.raw_offset(text, text.shown, at)
    assert raw[:found].replace("\r\n", "\n") == text.shown[:at]
    assert raw[found:].replace("\r\n", "\n") == text.shown[at:]


@given(LINES, LINES)
def test_a_diff_applies(old: str, new: str) -> None:
    diff = diffs.unified(old, new, "f", "f")
    assert applied(old, diff.text) == new
    assert (diff.text == "") is (old == new)
    kept = len(diffs.lines(old)) - diff.removed
    assert kept + diff.added == len(diffs.lines(new))


def applied(old: str, diff: str) -> str:
    """Apply a diff by its own rules, strictly."""
    have, result, at = diffs.lines(old), [], 0
    rows = diffs.lines(diff)[2:]
    while rows:
        row = rows.pop(0)
        end = "" if rows and rows[0].startswith("\\") else "\n"
        rows = rows if end else rows[1:]
        if row.startswith("@@"):
            start, _, count = row.split()[1][1:].partition(",")
            first = int(start) - (count != "0")
            result += have[at:first]
            at = first
            continue
        line = row[1:-1] + end
        if row[0] in " -":
            assert have[at] == line
            at += 1
        if row[0] in " +":
            result.append(line)
    return "".join([*result, *have[at:]])


def test_git_applies_the_diffs_too(folder: Folder) -> None:
    old = "".join(f"line {n}\n" for n in range(40)) + "no end"
    new = old.replace("line 3\n", "").replace("line 20\n", "twenty\nmore\n") + "!\n"
    other = folder.path.parent / "other"
    other.mkdir()
    (other / "a b.txt").write_text(old)
    (folder.path / "a b.txt").write_text(old)
    patches = [
        folder.do("write_file", path="a b.txt", text=new)["diff"],
        folder.do("write_file", path="new/x.txt", text="1\n2")["diff"],
        folder.do("edit_file", path="new/x.txt", old_text="2", new_text="two\n")["diff"],
        folder.do("delete_file", path="new/x.txt")["diff"],
    ]
    for patch in patches:
        subprocess.run(["git", "apply", "-"], cwd=other, input=patch.encode(), check=True)
    assert (other / "a b.txt").read_text() == new
    assert not (other / "new" / "x.txt").exists()


@pytest.mark.parametrize("many", [5, 5000])
def test_a_diff_of_everything_is_bounded(many: int) -> None:
    """The second is past the budget: what lies between the common ends counts as replaced."""
    old = "same\n" + "".join(f"{n % 7} {n}\n" for n in range(many)) + "end\n"
    new = "same\n" + "".join(f"{n % 7} x{n}\n0\n" for n in range(many)) + "end\n"
    diff = diffs.unified(old, new, "f", "f")
    assert (diff.added, diff.removed) == (2 * many, many)
    assert len(diff.text.encode()) < diffs.MAX_DIFF + 100
    assert ("cut, the whole diff has" in diff.text) is (many == 5000)


def test_one_very_long_line_is_cut_in_the_diff() -> None:
    diff = diffs.unified("x" * 200_000, "☃" * 100_000, "f", "f")
    assert len(diff.text.encode()) < diffs.MAX_DIFF + 100
    assert diff.text.startswith("--- a/f\n+++ b/f\n@@ -1 +1 @@\n-xxx")


# encodings


@pytest.mark.parametrize(
    ("name", "data", "text", "encoding"),
    [
        ("f.txt", "é\n".encode(), "é\n", "utf-8"),
        ("f.txt", b"", "", "utf-8"),
        ("f.txt", "é\n".encode("utf-8-sig"), "é\n", "utf-8-sig"),
        ("f.txt", "é☃\r\n".encode("utf-16"), "é☃\n", "utf-16"),
        ("f.txt", b"\xfe\xff" + "é\n".encode("utf-16-be"), "é\n", "utf-16"),
        ("f.py", b"# coding: latin-1\n\xe9\n", "# coding: latin-1\né\n", "iso8859-1"),
        ("f.py", b"#!x\n# -*- coding: cp1252 -*-\n\x80\n", None, "cp1252"),
        ("f.pyi", b"\n#vim: set fileencoding=koi8-r :\n\xc1", None, "koi8-r"),
        ("f.py", b"# coding: utf-8\n\xc3\xa9\n", "# coding: utf-8\né\n", "utf-8"),
        ("f.py", b"# coding: ascii\n\xc3\xa9\n", "# coding: ascii\né\n", "utf-8"),
        ("f.py", b"# coding: nonsense\n", "# coding: nonsense\n", "utf-8"),
        ("f.py", b"# coding: rot13\nuryyb\n", "# coding: rot13\nuryyb\n", "utf-8"),
        ("f.py", b"# coding: cp037\nx\n", "# coding: cp037\nx\n", "utf-8"),
        ("f.py", b"x\ny\n# coding: latin-1\n", "x\ny\n# coding: latin-1\n", "utf-8"),
    ],
)
def test_encodings(folder: Folder, name: str, data: bytes, text: str | None, encoding: str) -> None:
    (folder.path / name).write_bytes(data)
    found = folder.read(name)
    assert found["encoding"] == encoding
    assert text is None or found["text"] == text
    assert found["content_hash"] == sha256(data).hexdigest()[:16]
    folder.do("write_file", path=name, text=found["text"])
    assert (folder.path / name).read_bytes() == data


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("f.txt", b"caf\xe9"),
        ("f.txt", b"# coding: latin-1\n\xe9\n"),
        ("f.txt", b"a\0b"),
        ("f.txt", b"\xff\xfea"),
        ("f.txt", "a".encode("utf-32")),
        ("f.py", b"x = 1\n\xe9\n"),
        ("f.py", b"x = 1\n# coding: latin-1\n\xe9\n"),
    ],
)
def test_no_text(folder: Folder, name: str, data: bytes) -> None:
    (folder.path / name).write_bytes(data)
    with pytest.raises(Failure) as failed:
        folder.read(name)
    assert failed.value.kind is Kind.NOT_TEXT
    for tool, rest in (
        ("edit_file", {"old_text": "x", "new_text": "y"}),
        ("write_file", {"text": "x"}),
    ):
        assert folder.refused(tool, path=name, **rest) == (
            Kind.NOT_TEXT,
            f"'{name}' is not a text file",
        )


def test_what_an_encoding_cannot_hold_is_refused(folder: Folder) -> None:
    (folder.path / "f.py").write_bytes(b"# coding: latin-1\nx = '\xe9'\n")
    said = folder.refused("edit_file", path="f.py", old_text="é", new_text="☃")
    assert said == (
        Kind.ENCODING,
        "'f.py' is iso8859-1, which cannot hold '\\u2603' (U+2603)",
    )
    assert folder.refused("write_file", path="n", text="a\0b")[0] is Kind.ENCODING
    assert folder.refused("write_file", path="n", text="\ud800")[0] is Kind.ENCODING
    folder.do("edit_file", path="f.py", old_text="# coding: latin-1\n", new_text="")
    assert (folder.path / "f.py").read_bytes() == "x = 'é'\n".encode()
    cyrillic = {"path": "f.py", "old_text": "x", "new_text": "# coding: koi8-r\nЙ"}
    said = folder.refused("edit_file", **cyrillic)
    assert said == (Kind.ENCODING, "'f.py' is koi8-r, which cannot hold '\\xe9' (U+00E9)")
    folder.do("edit_file", path="f.py", old_text="é", new_text="")
    folder.do("edit_file", **cyrillic)
    assert (folder.path / "f.py").read_bytes() == b"# coding: koi8-r\n\xea = ''\n"


# what is said


TEXT = "import os\n\ndef area(radius):\n    return 3.14 * radius\n\nx = area(2)\ny = area(2)\n"


@pytest.mark.parametrize(
    ("old", "kind", "said"),
    [
        (
            "area(2)",
            Kind.NOT_UNIQUE,
            (
                "old_text stands 2 times in 'f.txt', at lines 6, 7: "
                "add lines around it until it stands once"
            ),
        ),
        (
            "def area(radius):\n  return 3.14 * radius\n",
            Kind.NO_MATCH,
            (
                "old_text does not stand in 'f.txt': lines 3-4 are the same but for whitespace "
                "(line 4 begins with 4 spaces, yours with 2 spaces); "
                "read it again: read_file('f.txt', 3, 2)"
            ),
        ),
        (
            "\treturn 3.14 * radius",
            Kind.NO_MATCH,
            (
                "old_text does not stand in 'f.txt': line 4 is the same but for whitespace "
                "(line 4 begins with 4 spaces, yours with 1 tab); "
                "read it again: read_file('f.txt', 4, 1)"
            ),
        ),
        (
            "def area(radius: float) -> float:\n    return 3.14 * radius",
            Kind.NO_MATCH,
            (
                "old_text does not stand in 'f.txt': the nearest is line 3, 'def area(radius):'; "
                "read it again: read_file('f.txt', 3, 2)"
            ),
        ),
        (
            "def area(diameter):",
            Kind.NO_MATCH,
            (
                "old_text does not stand in 'f.txt': the nearest is line 3, 'def area(radius):'; "
                "read it again: read_file('f.txt', 3, 1)"
            ),
        ),
        (
            "SELECT 1",
            Kind.NO_MATCH,
            "old_text does not stand in 'f.txt': nothing there is like it, read the file again",
        ),
    ],
)
def test_text_that_does_not_stand_once(folder: Folder, old: str, kind: Kind, said: str) -> None:
    (folder.path / "f.txt").write_text(TEXT)
    assert folder.refused("edit_file", path="f.txt", old_text=old, new_text="x") == (kind, said)


@given(RAW, RAW)
def test_no_text_breaks_what_is_said(scratch: Folder, text: str, old: str) -> None:
    assume(old)
    (scratch.path / "f.txt").write_bytes(text.encode())
    result = scratch.tried(old, "new text")
    if isinstance(result, Kind):
        assert result in (Kind.NO_MATCH, Kind.NOT_UNIQUE)


def test_much_text_that_does_not_stand_is_answered_within_bounds(folder: Folder) -> None:
    """Compared line by line with every place, this takes longer than a test may."""
    (folder.path / "f.txt").write_text("  x\n" * 400_000)
    old = " x\n" * 400_000 + "y"
    kind, said = folder.refused("edit_file", path="f.txt", old_text=old, new_text="")
    assert (kind, "the same but for whitespace" in said) == (Kind.NO_MATCH, True)
    old = "".join(f"w{n} x y z\n" for n in range(100_000))
    assert folder.refused("edit_file", path="f.txt", old_text=old, new_text="")[0] is Kind.NO_MATCH


def test_text_that_stands_very_often_is_counted_to_a_bound(folder: Folder) -> None:
    (folder.path / "f.txt").write_text("x" * 1_000_000)
    kind, said = folder.refused("edit_file", path="f.txt", old_text="xx", new_text="y")
    assert kind is Kind.NOT_UNIQUE
    assert "stands 100 times or more in 'f.txt', at lines 1, 1" in said


def test_what_is_refused(folder: Folder) -> None:
    (folder.path / "f.txt").write_text("one\n")
    (folder.path / "empty").touch()
    (folder.path / "locked").write_text("one\n")
    (folder.path / "locked").chmod(0o444)
    (folder.path / "big").write_bytes(b"x" * (texts.MAX_SIZE + 1))
    os.mkfifo(folder.path / "pipe")
    (folder.path / "d").mkdir()
    edit = {"old_text": "one", "new_text": "two"}
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("edit_file", {"path": "f.txt", "old_text": "one", "new_text": "one"}, "no_change"),
        ("edit_file", {"path": "f.txt", "old_text": "one\n", "new_text": "one\r\n"}, "no_change"),
        ("edit_file", {"path": "empty", **edit}, "no_match"),
        ("edit_file", {"path": "none", **edit}, "not_found"),
        ("edit_file", {"path": "d", **edit}, "not_a_file"),
        ("edit_file", {"path": ".", **edit}, "not_a_file"),
        ("edit_file", {"path": "pipe", **edit}, "not_a_file"),
        ("edit_file", {"path": "locked", **edit}, "permission"),
        ("edit_file", {"path": "big", **edit}, "too_large"),
        ("edit_file", {"path": "f.txt/x", **edit}, "not_a_directory"),
        ("edit_file", {"path": "../f.txt", **edit}, "outside_root"),
        ("edit_file", {"path": "f.txt", **edit, "content_hash": "0" * 16}, "changed"),
        ("edit_file", {"path": "f.txt", **edit, "content_hash": "2"}, "changed"),
        ("write_file", {"path": "new/", "text": ""}, "not_a_file"),
        ("write_file", {"path": "d", "text": ""}, "not_a_file"),
        ("write_file", {"path": "pipe", "text": ""}, "not_a_file"),
        ("write_file", {"path": "none/../x", "text": ""}, "not_found"),
        ("write_file", {"path": "f.txt/x", "text": ""}, "not_a_directory"),
        ("write_file", {"path": "/etc/x", "text": ""}, "outside_root"),
        ("write_file", {"path": "a\0b", "text": ""}, "not_found"),
        ("write_file", {"path": "none", "text": "", "content_hash": "0" * 16}, "changed"),
        ("write_file", {"path": "f.txt", "text": "x" * (texts.MAX_SIZE + 1)}, "too_large"),
        ("delete_file", {"path": "d"}, "not_a_file"),
        ("delete_file", {"path": "pipe"}, "not_a_file"),
        ("delete_file", {"path": "none"}, "not_found"),
        ("delete_file", {"path": "f.txt", "content_hash": "0" * 16}, "changed"),
        ("move_file", {"path": "f.txt", "destination": "empty"}, "exists"),
        ("move_file", {"path": "f.txt", "destination": "f.txt"}, "exists"),
        ("move_file", {"path": "f.txt", "destination": "d"}, "exists"),
        ("move_file", {"path": "f.txt", "destination": "../x"}, "outside_root"),
        ("move_file", {"path": "d", "destination": "e"}, "not_a_file"),
    ]
    before = sorted(folder.path.iterdir())
    for tool, arguments, kind in cases:
        with pytest.raises(Failure) as failed:
            folder.plan(tool, **arguments)
        assert failed.value.kind == kind, (arguments, failed.value.message)
        assert str(folder.path) not in failed.value.message
        assert sorted(folder.path.iterdir()) == before


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".git",
        ".GIT/hooks/pre-commit",
        ".g\u200cit/config",
        "sub/.git/config",
        "sub/.git",
        "gitdir/config",
        "alias",
        "dotgit/.git/config",
        ".punie/config.toml",
        ".Punie/x",
        "sub/../.git/config",
    ],
)
def test_what_is_protected(folder: Folder, path: str) -> None:
    for name in (".git", "sub/.git", ".punie", "plain"):
        (folder.path / name).mkdir(parents=True)
        (folder.path / name / "config").write_text("x")
    (folder.path / "gitdir").symlink_to(".git")
    (folder.path / "alias").symlink_to("sub/.git/config")
    (folder.path / "dotgit").mkdir()
    (folder.path / "dotgit" / ".git").symlink_to("../plain")
    (folder.path / "f.txt").write_text("x")
    expected = (
        Kind.PROTECTED,
        f"'{path}' is protected: Punie changes nothing in .git, nor in .punie",
    )
    assert folder.refused("write_file", path=path, text="y") == expected
    assert folder.refused("move_file", path="f.txt", destination=path) == expected
    if (folder.path / path).exists():
        assert folder.refused("delete_file", path=path) == expected
        assert folder.refused("edit_file", path=path, old_text="x", new_text="y") == expected
        assert folder.refused("move_file", path=path, destination="z") == expected
    with pytest.raises(Failure):
        edits.apply(folder.root, "create", ".git/hooks/pre-commit", data=b"")


def test_names_that_only_look_protected_are_not(folder: Folder) -> None:
    for path in (".github/x.yml", ".gitignore", "sub/.punie/x", "git/x", ".punieignore"):
        folder.do("write_file", path=path, text="x\n")
        assert (folder.path / path).read_text() == "x\n"


# what is done


def test_files_are_made_moved_and_deleted(folder: Folder) -> None:
    made = folder.do("write_file", path="a/b/c.py", text="x = 1\r\n")
    assert (folder.path / "a/b/c.py").read_bytes() == b"x = 1\n"
    assert made == {
        "path": "a/b/c.py",
        "diff": "--- /dev/null\n+++ b/a/b/c.py\n@@ -0,0 +1 @@\n+x = 1\n",
        "added": 1,
        "removed": 0,
        "content_hash": sha256(b"x = 1\n").hexdigest()[:16],
    }
    inode = (folder.path / "a/b/c.py").stat().st_ino
    moved = folder.do("move_file", path="a/b/c.py", destination="n/m/d.py")
    assert (folder.path / "n/m/d.py").stat().st_ino == inode
    assert not (folder.path / "a/b/c.py").exists()
    assert moved["path"] == "n/m/d.py"
    assert "rename from a/b/c.py\nrename to n/m/d.py\n" in moved["diff"]
    digest = folder.read("n/m/d.py")["content_hash"]
    assert moved["content_hash"] == digest
    gone = folder.do("delete_file", path="n/m/d.py", content_hash=digest)
    assert (gone["removed"], gone["content_hash"]) == (1, "")
    assert sorted(folder.snapshot()) == ["a", "a/b", "n", "n/m"]


def test_files_that_are_not_text_can_be_moved_and_deleted(folder: Folder) -> None:
    (folder.path / "x.bin").write_bytes(b"\0\xff")
    plan = folder.plan("move_file", path="x.bin", destination="y.bin")
    assert (plan["paths"], plan["files"]) == (["x.bin", "y.bin"], [])
    folder.apply(plan)
    assert folder.do("delete_file", path="y.bin")["diff"] == (
        "Binary files a/y.bin and /dev/null differ\n"
    )
    assert folder.snapshot() == {}


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755, 0o775])
def test_the_mode_is_kept(folder: Folder, mode: int) -> None:
    path = folder.path / "f.txt"
    path.write_text("one\n")
    path.chmod(mode)
    folder.edit("one", "two")
    assert path.stat().st_mode & 0o7777 == mode
    folder.do("write_file", path="f.txt", text="three")
    assert path.stat().st_mode & 0o7777 == mode
    folder.do("move_file", path="f.txt", destination="g.txt")
    assert (folder.path / "g.txt").stat().st_mode & 0o7777 == mode


def test_links_inside_are_followed_and_stay(folder: Folder) -> None:
    (folder.path / "real").mkdir()
    (folder.path / "real" / "f.txt").write_text("one\n")
    (folder.path / "link").symlink_to("real")
    (folder.path / "file").symlink_to(folder.path / "link" / "f.txt")
    (folder.path / "dangling").symlink_to("real/new.txt")
    for path in ("link/f.txt", "file", "real/../file"):
        plan = folder.plan("edit_file", path=path, old_text="one", new_text="two")
        assert plan["paths"] == ["real/f.txt"]
    folder.edit("one", "two", "file")
    assert (folder.path / "real" / "f.txt").read_text() == "two\n"
    assert (folder.path / "file").is_symlink()
    folder.do("write_file", path="dangling", text="new")
    assert (folder.path / "real" / "new.txt").read_text() == "new"


def test_links_that_lead_out_are_not_followed(folder: Folder) -> None:
    outside = folder.path.parent
    (outside / "secret.txt").write_text("one\n")
    (folder.path / "f.txt").write_text("one\n")
    (folder.path / "file").symlink_to("../secret.txt")
    (folder.path / "up").symlink_to(outside)
    (folder.path / "new").symlink_to(outside / "new.txt")
    for path in ("file", "up/secret.txt", "up/x", "new", "up/none/x"):
        assert folder.refused("write_file", path=path, text="x")[0] is Kind.OUTSIDE_ROOT
        assert folder.refused("move_file", path="f.txt", destination=path)[0] is Kind.OUTSIDE_ROOT
    assert (outside / "secret.txt").read_text() == "one\n"
    assert not (outside / "new.txt").exists()


# races


def swap_link(path: Path, target: Path) -> None:
    """Put a symbolic link where a file or folder was."""
    path.rename(path.with_name("kept"))
    path.symlink_to(target)


RACES: dict[str, Callable[[Path, Path], object]] = {
    "changed": lambda root, out: (root / "d" / "f.txt").write_text("other\n"),
    "deleted": lambda root, out: (root / "d" / "f.txt").unlink(),
    "link to a file outside": lambda root, out: swap_link(root / "d" / "f.txt", out / "f.txt"),
    "link to a folder outside": lambda root, out: swap_link(root / "d", out),
    "link to a folder inside": lambda root, out: swap_link(root / "d", root / "e"),
    "file for folder": lambda root, out: ((root / "d").rename(root / "k"), (root / "d").touch()),
}


@pytest.mark.parametrize("race", RACES)
def test_what_changes_between_the_steps_is_met_as_an_error(folder: Folder, race: str) -> None:
    outside = folder.path.parent / "outside"
    for where in (outside, folder.path / "d", folder.path / "e"):
        where.mkdir()
        (where / "f.txt").write_text("other\n")
    (folder.path / "d" / "f.txt").write_text("one\n")
    plans = [
        folder.plan("edit_file", path="d/f.txt", old_text="one", new_text="two"),
        folder.plan("write_file", path="d/f.txt", text="two"),
        folder.plan("delete_file", path="d/f.txt"),
        folder.plan("move_file", path="d/f.txt", destination="g.txt"),
        folder.plan("move_file", path="d/f.txt", destination="new/g.txt"),
    ]
    RACES[race](folder.path, outside)
    for plan in plans:
        kind, said = folder.late(plan)
        assert kind is Kind.CHANGED
        assert "changed meanwhile: read it again" in said
    assert (outside / "f.txt").read_text() == "other\n"


def test_a_folder_that_is_swapped_all_the_time_never_leads_out(folder: Folder) -> None:
    """Half of the edits race with the swap; none of them may touch the other folder."""
    outside = folder.path.parent / "outside"
    real, link = folder.path / "real", folder.path / "link"
    for where in (outside, real):
        where.mkdir()
        (where / "f.txt").write_text("start\n")
    link.symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        """Exchange what ``d`` is: the folder inside, or the link to the one outside."""
        while not stop.is_set():
            real.rename(folder.path / "d")
            (folder.path / "d").rename(real)
            link.rename(folder.path / "d")
            (folder.path / "d").rename(link)

    swapper = threading.Thread(target=swap)
    swapper.start()
    ends: set[Kind | None] = set()
    try:
        for _ in range(400):
            result = folder.tried("start", "start.", "d/f.txt")
            ends.add(result if isinstance(result, Kind) else None)
    finally:
        stop.set()
        swapper.join()
    assert (outside / "f.txt").read_text() == "start\n"
    assert [path.name for path in outside.iterdir()] == ["f.txt"]
    assert ends <= {None, Kind.CHANGED, Kind.OUTSIDE_ROOT, Kind.NOT_FOUND}
    assert not [path for path in folder.path.rglob("*") if path.name.startswith(".punie-")]


def test_what_appears_between_the_steps_is_not_overwritten(folder: Folder) -> None:
    (folder.path / "f.txt").write_text("one\n")
    plans = [
        folder.plan("write_file", path="new.txt", text="mine"),
        folder.plan("move_file", path="f.txt", destination="new.txt"),
    ]
    deep = folder.plan("write_file", path="d/new.txt", text="mine")
    outside = folder.path.parent / "outside"
    outside.mkdir()
    (folder.path / "new.txt").symlink_to(outside / "x")
    assert [folder.late(plan)[0] for plan in plans] == [Kind.EXISTS] * 2
    (folder.path / "new.txt").unlink()
    (folder.path / "new.txt").write_text("theirs")
    assert [folder.late(plan)[0] for plan in plans] == [Kind.EXISTS] * 2
    (folder.path / "d").symlink_to(outside)
    assert folder.late(deep)[0] is Kind.CHANGED
    assert list(outside.iterdir()) == []


def test_without_hard_links_nothing_is_overwritten_either(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file system at hand is without them, so `os.link` says so."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    folder.do("write_file", path="d/f.txt", text="one\n")
    plan = folder.plan("move_file", path="d/f.txt", destination="e/g.txt")
    folder.apply(plan)
    assert (folder.path / "e" / "g.txt").read_text() == "one\n"
    plan = folder.plan("move_file", path="e/g.txt", destination="h.txt")
    (folder.path / "h.txt").write_text("theirs")
    assert folder.late(plan)[0] is Kind.EXISTS


def test_a_write_that_fails_leaves_nothing_behind(folder: Folder) -> None:
    """The system really refuses: files may not grow past a limit."""
    (folder.path / "f.txt").write_text("one\n")
    large = "x" * 100_000
    plans = [
        folder.plan("write_file", path="f.txt", text=large),
        folder.plan("write_file", path="new/deep/f.txt", text=large),
    ]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        said = [folder.late(plan) for plan in plans]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert said == [(Kind.IO, f"'{path}': File too large") for path in ("f.txt", "new/deep/f.txt")]


def test_a_reader_sees_old_or_new_and_never_a_mix(folder: Folder) -> None:
    path = folder.path / "f.txt"
    versions = [("v" * 4000 + f"{n}\n") * 20 for n in range(30)]
    path.write_text(versions[0])
    seen: set[str] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.add(path.read_text())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for version in versions[1:]:
            folder.do("write_file", path="f.txt", text=version)
    finally:
        stop.set()
        watcher.join()
    assert seen
    assert seen <= set(versions)
    assert os.listdir(folder.path) == ["f.txt"]  # noqa: PTH208 (hidden files too)


def test_folders_that_others_use_stay_when_a_write_fails(folder: Folder) -> None:
    def fail() -> None:
        with places.opened(folder.root, "a/b/c.txt", make=True):
            (folder.path / "a" / "theirs").touch()
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(Failure, match="No space"):
        fail()
    assert sorted(folder.snapshot()) == ["a", "a/theirs"]


# through a project half


class Changed:
    """Takes the paths that the tools say have changed."""

    def __init__(self) -> None:
        self.paths: list[list[str]] = []

    def __call__(self, paths: Any) -> None:
        self.paths.append(list(paths))


async def open_halves(root: Path) -> Halves:
    halves = Halves(str(root), Abandoned(lambda: None))
    await halves.start()
    return halves


async def close_halves(halves: Halves) -> None:
    halves.stop()
    await asyncio.to_thread(halves._half.join, 5.0)


def test_actions_say_what_they_will_do_and_do_it(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f.txt").write_bytes(b"one\r\ntwo\r\n")
    (tmp_path / "link").symlink_to("d")

    async def main() -> None:
        halves = await open_halves(tmp_path)
        changed = Changed()
        tools = EditTools(halves, changed)
        action = await tools.prepare(EditFile("link/f.txt", "two", "2\n3"))
        assert action.subject.paths == ("d/f.txt",)
        assert action.diffs == (FileDiff("d/f.txt", "one\ntwo\n", "one\n2\n3\n"),)
        assert (action.happened(), changed.paths) == (False, [])
        result = await action.run()
        assert isinstance(result, EditResult)
        assert (result.path, result.added, result.removed) == ("d/f.txt", 2, 1)
        assert (tmp_path / "d" / "f.txt").read_bytes() == b"one\r\n2\r\n3\r\n"
        assert (action.happened(), changed.paths) == (True, [["d/f.txt"]])
        again = await tools.prepare(WriteFile("d/f.txt", "x", result.content_hash))
        (tmp_path / "d" / "f.txt").write_text("other")
        with pytest.raises(PunieError) as failed:
            await again.run()
        assert isinstance(failed.value.error, ToolFailed)
        assert failed.value.error.kind == "changed"
        assert (again.happened(), len(changed.paths)) == (False, 1)
        move = await tools.prepare(MoveFile("d/f.txt", "n/g.txt"))
        assert move.subject.paths == ("d/f.txt", "n/g.txt")
        assert move.diffs == (
            FileDiff("d/f.txt", "other", None),
            FileDiff("n/g.txt", None, "other"),
        )
        await move.run()
        delete = await tools.prepare(DeleteFile("n/g.txt"))
        assert delete.diffs == (FileDiff("n/g.txt", "other", None),)
        await delete.run()
        assert changed.paths[1:] == [["d/f.txt", "n/g.txt"], ["n/g.txt"]]
        with pytest.raises(PunieError, match=r"is protected"):
            await tools.prepare(WriteFile(".git/config", ""))
        await close_halves(halves)

    asyncio.run(main())


class Gate:
    """Makes the interpreter wait inside each operation but a plan whose request has ``hold on``
    in it."""

    def __init__(self, folder: Path) -> None:
        self._entered, self._release = folder / "entered", folder / "release"
        self.code = (
            "import os\n"
            "entry = punie_workers.interp.entry\n"
            "entry.really = entry.handle\n"
            "def handle(request):\n"
            "    if b'hold on' in request and b'edits_plan' not in request:\n"
            f"        os.close(os.open({str(self._entered)!r}, os.O_CREAT))\n"
            f"        while not os.path.exists({str(self._release)!r}): pass\n"
            "    return entry.really(request)\n"
            "entry.handle = handle\n"
        )

    async def until_entered(self) -> None:
        async with asyncio.timeout(10):
            while not self._entered.exists():  # noqa: ASYNC110 (another interpreter makes it)
                await asyncio.sleep(0.002)

    def release(self) -> None:
        self._release.touch()


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    bootstrap = project_half._bootstrap() + gate.code
    monkeypatch.setattr(project_half, "_bootstrap", lambda: bootstrap)
    yield gate
    gate.release()


class Held:
    """A project with a file ``hold on``, an edit of it and the request that does it."""

    def __init__(self, project: Path, gate: Gate, halves: Halves) -> None:
        self.file = project / "hold on"
        self.gate = gate
        self.halves = halves
        self.changed = Changed()
        self.tools = EditTools(halves, self.changed)

    async def edit(self) -> Action:
        return await self.tools.prepare(EditFile("hold on", "one", "two"))

    async def request(self) -> bytes:
        """Return what an action sends to be done."""
        arguments = {"path": "hold on", "old_text": "one", "new_text": "two", "content_hash": ""}
        plan = {"tool": "edit_file", "arguments": arguments}
        found = await self.halves.call(encode_request("edits_plan", plan), dict[str, Any])
        return found["apply"]

    async def busy(self) -> asyncio.Task[object]:
        """Return a read that has begun and waits for the gate."""
        busy = asyncio.create_task(read(self.halves, "hold on"))
        await self.gate.until_entered()
        return busy


async def read(halves: Halves, path: str) -> object:
    return await FileTools(halves).run(ReadFile(path))


async def run(action: Action) -> object:
    return await action.run()


@asynccontextmanager
async def holding(folder: Path, gate: Gate) -> AsyncGenerator[Held]:
    project = folder / "project"
    project.mkdir()
    (project / "hold on").write_text("one\n")
    halves = await open_halves(project)
    held = Held(project, gate, halves)
    try:
        yield held
    finally:
        gate.release()
        await close_halves(halves)


def test_a_cancelled_edit_that_has_not_begun_never_happens(tmp_path: Path, gate: Gate) -> None:
    async def main() -> None:
        async with holding(tmp_path, gate) as held:
            action = await held.edit()
            busy = await held.busy()
            running = asyncio.create_task(run(action))
            await asyncio.sleep(0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert not action.happened()
            gate.release()
            await busy
            await held.tools.prepare(DeleteFile("hold on"))  # after it in the queue
            assert held.file.read_text() == "one\n"
            assert held.changed.paths == []

    asyncio.run(main())


def test_a_cancelled_edit_that_has_begun_ends_first(tmp_path: Path, gate: Gate) -> None:
    async def main() -> None:
        async with holding(tmp_path, gate) as held:
            action = await held.edit()
            running = asyncio.create_task(run(action))
            await gate.until_entered()
            for _ in range(3):
                running.cancel()
                await asyncio.sleep(0)
            assert (running.done(), held.file.read_text()) == (False, "one\n")
            gate.release()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert action.happened()
            assert held.changed.paths == [["hold on"]]
            assert held.file.read_text() == "two\n"

    asyncio.run(main())


def test_a_cancelled_edit_that_fails_has_not_happened(tmp_path: Path, gate: Gate) -> None:
    async def main() -> None:
        async with holding(tmp_path, gate) as held:
            action = await held.edit()
            running = asyncio.create_task(run(action))
            await gate.until_entered()
            running.cancel()
            held.file.write_text("other\n")
            gate.release()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert not action.happened()
            assert held.changed.paths == []
            assert held.file.read_text() == "other\n"

    asyncio.run(main())


def test_past_its_deadline_an_edit_that_has_begun_is_of_unknown_outcome(
    tmp_path: Path, gate: Gate
) -> None:
    async def main() -> None:
        async with holding(tmp_path, gate) as held:
            request, deed = await held.request(), Deed()
            call = held.halves.call(request, dict, deadline=0.05, deed=deed)
            with pytest.raises(PunieError, match="whether it was done is unknown") as failed:
                await call
            assert isinstance(failed.value.error, ToolFailed)
            assert failed.value.error.kind == "outcome_unknown"
            assert deed.happened

    asyncio.run(main())


def test_cancelled_it_is_waited_for_until_its_deadline(tmp_path: Path, gate: Gate) -> None:
    async def main() -> None:
        async with holding(tmp_path, gate) as held:
            request, deed = await held.request(), Deed()
            call = asyncio.create_task(held.halves.call(request, dict, deadline=0.3, deed=deed))
            await gate.until_entered()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert deed.state is DeedState.UNKNOWN
            assert held.halves._half.state is HalfState.QUARANTINED

    asyncio.run(main())


def test_past_its_deadline_an_edit_that_has_not_begun_never_happens(
    tmp_path: Path, gate: Gate
) -> None:
    async def main() -> None:
        async with holding(tmp_path, gate) as held:
            request, deed = await held.request(), Deed()
            half = held.halves._half
            busy = await held.busy()
            with pytest.raises(PunieError) as failed:
                await held.halves.call(request, dict, deadline=0.05, deed=deed)
            assert isinstance(failed.value.error, TimedOut)
            assert not deed.happened
            gate.release()
            await busy
            half.stop()
            await asyncio.to_thread(half.join, 5.0)
            assert held.file.read_text() == "one\n"

    asyncio.run(main())


def test_an_interpreter_that_fails_leaves_the_outcome_unknown(tmp_path: Path) -> None:
    async def main() -> None:
        halves = await open_halves(tmp_path)
        deed = Deed()
        with pytest.raises(PunieError, match="whether it was done is unknown"):
            await halves.call(b"torn", dict, deed=deed)
        assert deed.state is DeedState.UNKNOWN
        await close_halves(halves)

    asyncio.run(main())
