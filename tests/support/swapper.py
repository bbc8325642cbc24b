"""A hostile program that swaps what stands in a project for links that lead out of it.

``python -m tests.support.swapper ROOT OUTSIDE`` swaps until it is told to stop: a line with the
number of swaps so far answers each line of its input, and the end of the input ends it. Every swap
is one system call that exchanges two names, so that nobody ever finds neither of them; where the
system has no such call it is two renames.
"""

import ctypes
import random
import select
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

SECRET: Final = "CANARY_5f2c"
"""Stands in every file outside, in their names, and nowhere in the project."""

KEPT: Final = "kept"
"""A word in every file of the project."""

_EXCHANGE = 2
_BATCH = 16

Swap = Callable[[], None]


def build(folder: Path) -> tuple[Path, Path]:
    """Make a project and, beside it, what nobody may see or change; return both."""
    root, outside = folder / "project", folder / "outside"
    for name, word in (("project", KEPT), ("outside", SECRET)):
        inner = folder / name / "pkg" / "deep"
        inner.mkdir(parents=True)
        for path in (folder / name / "data.py", inner.parent / "mod.py", inner / "leaf.py"):
            path.write_text(f"{word}_value = 1\n{word}_undefined_{path.stem}\n")
    for path in (outside / "pkg", outside / "pkg" / "deep"):
        (path / f"{SECRET}_name.py").write_text(f"def {SECRET}_function() -> int: ...\n")
    (root / "still.py").write_text(f"{KEPT} = 1\n")
    _plant(root, outside)
    return root, outside


def _plant(root: Path, outside: Path) -> None:
    """Put the links in hidden places, so that the project has them only while they are swapped."""
    (root / ".links").mkdir()
    (root / ".links" / "file").symlink_to(outside / "data.py")
    (root / ".links" / "folder").symlink_to(outside / "pkg")
    (root / ".links" / "deep").symlink_to("../../outside/pkg/deep")
    (root / ".links" / "leaf").symlink_to(outside / "pkg" / "deep" / "leaf.py")
    (root / ".links" / "new").symlink_to(outside / "made.py")


class Swapper:
    """The program as a child process: ``with Swapper(root, outside) as swapper``."""

    def __init__(self, root: Path, outside: Path) -> None:
        command = [sys.executable, "-m", "tests.support.swapper", str(root), str(outside)]
        self._process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def swaps(self) -> int:
        """Return how many swaps it has made so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        self.swaps()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=10)


def _exchange(one: str, other: str) -> None:
    """Exchange two names; what is missing meanwhile is not worth a word."""
    if _LIBC is not None:
        _LIBC.renameat2(-100, one.encode(), -100, other.encode(), _EXCHANGE)
        return
    with suppress(OSError):
        Path(one).rename(one + "~")
        Path(other).rename(one)
        Path(one + "~").rename(other)


_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


def _come_and_go(root: str) -> None:
    """A link that leads to a new file outside, where the project has no file."""
    new = Path(root, "new.py")
    with suppress(OSError):
        if new.is_symlink():
            new.unlink()
        else:
            new.symlink_to(Path(root, ".links", "new").readlink())


def _swaps(root: str) -> list[Swap]:
    def pair(name: str, link: str) -> Swap:
        return lambda: _exchange(f"{root}/{name}", f"{root}/.links/{link}")

    return [
        pair("data.py", "file"),
        pair("pkg", "folder"),
        pair("pkg/deep", "deep"),
        pair("pkg/deep/leaf.py", "leaf"),
        lambda: _come_and_go(root),
    ]


def main(root: str, outside: str) -> int:
    """Swap until the end of the input."""
    swaps, count = _swaps(root), 0
    while True:
        for _ in range(_BATCH):
            swap = random.choice(swaps)
            swap()
            swap()
            count += 2
        ready, _, _ = select.select([sys.stdin], [], [], random.random() / 1000)
        if ready:
            if not sys.stdin.readline():
                return 0
            print(count, flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
