"""The table of ``docs/reference/security.md``: classes of attempts to escape, and their cases."""

import re
import tomllib
from collections import defaultdict
from pathlib import Path

CORPUS = Path(__file__).parent.parent / "tests" / "data" / "escapes"
CLASSES = CORPUS / "classes.toml"
_PLACE = re.compile(r"(<!-- made by .*? -->\n).*?(<!-- end -->)", re.DOTALL)


def page(text: str) -> str:
    """Return the page with its table as the corpus says."""
    return _PLACE.sub(lambda found: f"{found[1]}\n{table()}\n{found[2]}", text)


def table() -> str:
    """Return the table: a row for each class, in order."""
    cases = cases_of_classes()
    lines = ["| class | cases | held by | not promised |", "| --- | --- | --- | --- |"]
    for one in tomllib.loads(CLASSES.read_text())["class"]:
        names = ", ".join(f"`{name}`" for name in cases[one["number"]])
        promised = one.get("not_promised", "–")
        name = f"{one['number']} {one['name']}"
        lines.append(f"| {name} | {names} | {one['layer']} | {promised} |")
    return "\n".join(lines) + "\n"


def cases_of_classes() -> dict[int, list[str]]:
    """Return the ids of the cases of each class, in order of the files."""
    found: defaultdict[int, list[str]] = defaultdict(list)
    for path in sorted(CORPUS.glob("*.toml")):
        for case in tomllib.loads(path.read_text()).get("case", []):
            found[case["class"]].append(case["id"])
    return found
