"""The programs the embedded model was trained to write, run for real.

Each kind's program runs in Code Mode on a real tree; what it prints is what the training data
simulated: the same facts in the same form.
"""

import ast
import asyncio
import re
from pathlib import Path

import pytest

from punie_model_host.training import programs
from tests.support import trees
from tests.support.worker_case import running


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = trees.third_party_tree(tmp_path_factory.mktemp("trees"))
    (folder / "errors.py").write_text("class A(ValueError): pass\nclass B(x.ValueError, C): pass\n")
    return folder


def run(tmp_path: Path, tree: Path, code: str) -> list[str]:
    """Return the lines a program prints."""

    async def main() -> str:
        async with running(tmp_path, tree) as case:
            return await case.code(code)

    printed = asyncio.run(main())
    assert not printed.startswith("error:"), printed
    return printed.splitlines()


def test_find_prints_the_count_then_at_most_forty_paths(tmp_path: Path, tree: Path) -> None:
    expected = sorted(trees.files(tree, ".py"))
    assert len(expected) > 40
    first, *paths, more = run(tmp_path, tree, programs.find("*.py"))
    assert first == str(len(expected))
    assert paths == expected[:40]
    assert more == f"… and {len(expected) - 40} more"


def test_count_prints_a_number(tmp_path: Path, tree: Path) -> None:
    assert run(tmp_path, tree, programs.count("*.md")) == [str(len(trees.files(tree, ".md")))]
    inside = len(trees.files(tree / "models", ".py"))
    assert run(tmp_path, tree, programs.count("*.py", "models")) == [str(inside)]


def test_title_prints_the_first_heading(tmp_path: Path, tree: Path) -> None:
    title = trees.title(tree / "SERVER.md")
    assert run(tmp_path, tree, programs.title("SERVER.md")) == [title]


def test_lines_prints_how_many(tmp_path: Path, tree: Path) -> None:
    expected = str(len((tree / "utils.py").read_text().splitlines()))
    assert run(tmp_path, tree, programs.lines("utils.py")) == [expected]


def test_grep_prints_the_count_then_places(tmp_path: Path, tree: Path) -> None:
    first, *places = run(tmp_path, tree, programs.grep("rope"))
    assert int(first) == trees.lines_with(tree, "rope")
    assert all(re.fullmatch(r"\S+:\d+", place) for place in places[:20])
    file, line = places[0].rsplit(":", 1)
    assert "rope" in (tree / file).read_text().splitlines()[int(line) - 1]


def test_subclasses_prints_names_and_places(tmp_path: Path, tree: Path) -> None:
    first, *classes = run(tmp_path, tree, programs.subclasses("ValueError"))
    names = {entry.split(" (")[0] for entry in classes}
    assert {"A", "B"} <= names == trees.subclasses(tree, "ValueError")
    assert int(first) == len(classes)
    assert "A (errors.py:1)" in classes


def test_subclasses_of_a_widely_used_base(tmp_path: Path, tree: Path) -> None:
    first, *_ = run(tmp_path, tree, programs.subclasses("Module"))
    count = sum(
        isinstance(node, ast.ClassDef)
        and any(getattr(base, "attr", getattr(base, "id", "")) == "Module" for base in node.bases)
        for path in tree.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
    )
    assert int(first) == count
