"""The work after which memory is measured: two packages indexed, 20 reads, 5 searches, 2 edits."""

import json
import os
import shutil
from pathlib import Path
from typing import Final

from benchmarks.daemon_client import Json, Steps

PACKAGES: Final = ("json", "asyncio")
_STDLIB: Final = Path(os.__file__).parent
_READS_A_STEP: Final = 5
_FIRST_LINE: Final = "first = 1\n"


def make_project(root: Path, *, small: bool = False) -> Path:
    """Make a project with both packages in it, or with a single file; return its folder."""
    root.mkdir(parents=True)
    (root / "own.py").write_text(_FIRST_LINE)
    if small:
        return root
    for package in PACKAGES:
        shutil.copytree(
            _STDLIB / package, root / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return root


def look() -> Steps:
    """Return the smallest turn with a tool in it."""
    return [[("read_file", {"path": "own.py"})]]


def work(root: Path) -> Steps:
    """Return the whole work for a project of `make_project`."""
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*.py"))
    reads: list[tuple[str, Json]] = [
        ("read_file", {"path": files[n % len(files)]}) for n in range(20)
    ]
    steps: Steps = [
        [("symbols", {"path": package, "name": "", "limit": 200}) for package in PACKAGES],
        [("symbols", {"name": "JSONDecoder", "references": True})],
    ]
    steps += [reads[at : at + _READS_A_STEP] for at in range(0, len(reads), _READS_A_STEP)]
    words = ("def ", "import json", "class .*Error", "await", "TODO")
    steps += [[("search", {"pattern": word, "glob": "*.py"})] for word in words]
    edit = {"path": "own.py", "old_text": _FIRST_LINE, "new_text": f"{_FIRST_LINE}second = 2\n"}
    write = {"path": "new.py", "text": json.dumps({"a": 1}) + "\n"}
    return [*steps, [("edit_file", edit)], [("write_file", write)]]
