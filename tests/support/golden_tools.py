"""What the pinned checkers, and git, print for projects that are always the same.

``python -m tests.support.golden_tools`` writes it to ``tests/golden/tools``: to be done when a
version changes, and read before it is believed.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

import msgspec

from punie_protocol.tool_types import Result
from punie_protocol.tools_checks import RuffCheck, Typecheck
from punie_protocol.tools_git import GitDiff, GitLog, GitStatus
from punie_workers import git_guard, programs
from punie_workers.checkers import Checkers
from punie_workers.git_tools import GitTools
from tests.support.checking import PROJECT, opened, recorder, write
from tests.support.repositories import Repository

FILES = Path(__file__).parent.parent / "golden" / "tools"
ROOT = b"/project"
"""Stands in the files for the folder that was checked."""

CALLS = {
    "ty.json": Typecheck(),
    "ruff.json": RuffCheck(),
    "git_status.txt": GitStatus(),
    "git_diff.txt": GitDiff(),
    "git_log.txt": GitLog(),
}


async def run(name: str, folder: Path) -> tuple[bytes, Result]:
    """Return what the program printed for the call of that file, and the result made of it."""
    call = CALLS[name]
    git = name.startswith("git")
    program = git_guard.find("/nowhere") if git else programs.bundled(name.partition(".")[0])
    stand_in, kept = recorder(folder / "bin", program)
    root = repository(folder) if git else write(folder / "project", PROJECT)
    async with opened(root) as halves:
        tools = GitTools if git else Checkers
        result = await tools(halves, lambda _: stand_in).run(call)
    return kept.read_bytes().replace(str(root.resolve()).encode(), ROOT), result


def repository(folder: Path) -> Path:
    """A branch ahead of its upstream with a change of each kind."""
    repo = Repository(folder / "project")
    repo.commit({"kept.py": "a = 1\n", "old.py": "x = 1\n" * 9, "gone.py": "1\n", "é.txt": "é\n"})
    repo.git("branch", "trunk")
    repo.git("branch", "--set-upstream-to=trunk")
    repo.commit({"kept.py": "a = 2\nb = 2\n"}, "Change two\n\nBecause of\nmany reasons.")
    repo.git("mv", "old.py", "new.py")
    repo.git("rm", "-q", "gone.py")
    write(repo.root, {"kept.py": "a = 3\nb = 2\n", "é.txt": "e\n", "untracked file.txt": "\n"})
    (repo.root / "data.bin").write_bytes(bytes(range(256)))
    repo.git("add", "data.bin")
    (repo.root / "data.bin").write_bytes(bytes(range(255)))
    return repo.root


def main() -> int:
    """Write every file."""
    FILES.mkdir(exist_ok=True)
    for name in CALLS:
        with tempfile.TemporaryDirectory() as folder:
            output, result = asyncio.run(run(name, Path(folder)))
        (FILES / name).write_bytes(output)
        text = msgspec.json.format(msgspec.json.encode(result), indent=1)
        (FILES / name).with_suffix(".result.json").write_bytes(text + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
