"""The corpus of escape attempts is whole: classes, cases and the page about them agree."""

import re
import tomllib
from pathlib import Path

from tests.support.escapes import FOLDER

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "security.md"


def corpus() -> list[dict[str, object]]:
    files = [tomllib.loads(path.read_text()) for path in sorted(FOLDER.glob("*.toml"))]
    return [case for file in files for case in file.get("case", [])]


def test_every_class_has_a_case_and_every_case_a_class() -> None:
    classes = tomllib.loads((FOLDER / "classes.toml").read_text())["class"]
    numbers = [one["number"] for one in classes]
    assert numbers == list(range(1, 50))
    assert {case["class"] for case in corpus()} == set(numbers)


def test_every_case_has_a_name_of_its_own_that_tells_its_class() -> None:
    names = [str(case["id"]) for case in corpus()]
    assert len(names) == len(set(names))
    for case in corpus():
        found = re.match(r"[a-z]+-(\d+)-", str(case["id"]))
        assert found, case["id"]
        assert int(found[1]) == case["class"]


def test_the_page_names_every_case() -> None:
    page = PAGE.read_text()
    assert [case["id"] for case in corpus() if f"`{case['id']}`" not in page] == []
