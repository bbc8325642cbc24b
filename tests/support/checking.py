"""A project with something to find in it, its tools, and programs that misbehave."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from punie_protocol.errors import PunieError, WireError
from punie_workers.halves import Abandoned, Halves

PROJECT: dict[str, str] = {
    "pyproject.toml": (
        '[project]\nname = "shop"\nversion = "1"\nrequires-python = ">=3.12"\n\n'
        "[tool.ruff]\nfix = true\noutput-format = 'concise'\nextend-exclude = ['made']\n\n"
        "[tool.ruff.lint]\nselect = ['E', 'F', 'I', 'UP']\n\n"
        "[tool.ty.rules]\ndivision-by-zero = 'warn'\n"
    ),
    "shop/__init__.py": "",
    "shop/prices.py": (
        "import sys\nfrom typing import List\n\n"
        "def total(prices: List[int]) -> str:\n    unused = 1\n    return sum(prices)\n\n\n"
        'total("café")\nhalf = 1 / 0\n'
    ),
    "shop/stock.py": "import warehouse\n\nstock: int = warehouse.count()\n",
    "shop/clean.py": "NAME = 'clean'\n",
    "shop/torn.py": "def torn(:\n",
    "made/code.py": "import os\n",
}
"""Rules of its own, an excluded folder, a syntax error, findings of each kind."""


def write(root: Path, files: Mapping[str, str]) -> Path:
    """Write `files` below `root`; return the root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def script(path: Path, lines: str) -> Path:
    """Make a program of a shell script. It finds no ``PATH``: name programs by their place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return path


def recorder(folder: Path, program: str) -> tuple[str, Path]:
    """Return a program that does what `program` does, and where its last output is kept."""
    kept = folder / "kept"
    lines = f'"{program}" "$@" >"{kept}"\ncode=$?\n/bin/cat "{kept}"\nexit $code'
    return str(script(folder / "recorder", lines)), kept


@asynccontextmanager
async def opened(root: Path) -> AsyncGenerator[Halves]:
    """Yield the project half of `root`; afterwards its interpreter has ended."""
    halves = Halves(str(root), Abandoned(lambda: None))
    await halves.start()
    try:
        yield halves
    finally:
        halves.stop()
        await asyncio.to_thread(halves._half.join, 5.0)


def ask[T](root: Path, work: Callable[[Halves], Awaitable[T]]) -> T:
    """Return what `work` does with the project half of `root`."""

    async def main() -> T:
        async with opened(root) as halves:
            return await work(halves)

    return asyncio.run(main())


def refusal(root: Path, work: Callable[[Halves], Awaitable[object]]) -> WireError:
    """Return the failure that `work` raises."""
    try:
        result = ask(root, work)
    except PunieError as error:
        return error.error
    raise AssertionError(f"no failure but {result}")


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return what is below `folder`: mode, time of the last change, content of each entry."""
    found: dict[str, tuple[int, int, bytes]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def alive(pid: int) -> bool:
    """Whether a process runs, zombies left out."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def until(condition: Callable[[], bool], within: float = 10.0) -> None:
    """Wait for what another process does; fail past `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within:g} s"
        time.sleep(0.01)
