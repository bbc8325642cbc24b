"""What pytest reports of projects that are always the same, and what is made of it.

``python -m tests.support.golden_pytest`` writes it to ``tests/golden/pytest_run``: to be done when
a version changes, and read before it is believed.
"""

import asyncio
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from punie_protocol.errors import PunieError, ToolFailed, WireError
from punie_protocol.tools_commands import PytestRun
from punie_workers import pytest_tools
from punie_workers.launching import Launcher, Premises
from tests.support.checking import opened
from tests.support.pytest_project import project

FILES = Path(__file__).parent.parent / "golden" / "pytest_run"

ODD = """
import pytest

@pytest.mark.parametrize("v", ["a/b::c", "é[", "x y", "\\n", "a.b", "<&>"])
def test_odd(v): assert v != "é["

class TestOuter:
    def test_method(self): pass
    class TestInner:
        def test_method(self): assert 0

def test_subtests(subtests):
    for i in range(3):
        with subtests.test(msg="part", i=i):
            assert i != 1
"""
ENDS = """
import pytest

@pytest.fixture
def broken(): raise ValueError("at setup")

@pytest.fixture
def breaks():
    yield
    raise ValueError("at teardown")

def test_passes(): print("said")
def test_fails(): assert [1, 2] == [1, 3], "nö <&> \\x1b[31mred\\x1b[0m \\u202e"
def test_setup(broken): pass
def test_teardown(breaks): pass
def test_both(breaks): assert 0
@pytest.mark.skip(reason="not now")
def test_skipped(): pass
@pytest.mark.xfail(reason="known")
def test_xfails(): assert 0
@pytest.mark.xfail
def test_xpasses(): pass
@pytest.mark.xfail(strict=True)
def test_xpasses_strictly(): pass
"""
PROJECTS: dict[str, dict[str, str]] = {
    "passing": {"test_a.py": "def test_one(): pass\ndef test_two(): pass\n"},
    "ends": {"tests/test_ends.py": ENDS},
    "odd": {"sub.d/deep/test_odd.py": ODD},
    "huge": {"test_huge.py": "def test_huge(): assert 'x' * 100_000 == 'y' * 100_000\n"},
    "collection": {
        "test_bad.py": "import nothing_of_that_name\n",
        "test_torn.py": "def test(:\n",
        "test_good.py": "def test(): pass\n",
    },
    "none": {"test_none.py": "x = 1\n"},
    "all_skipped": {"test_a.py": "import pytest\npytest.skip('x', allow_module_level=True)\n"},
    "fail_under": {
        "conftest.py": "def pytest_sessionfinish(session): session.exitstatus = 1\n",
        "test_a.py": "def test(): pass\n",
    },
    "usage": {"pytest.ini": "[pytest]\naddopts = --no-such-option\n", "test_a.py": ""},
    "internal": {
        "conftest.py": "def pytest_runtest_protocol(item): raise ValueError('in the plugin')\n",
        "test_a.py": "def test(): pass\n",
    },
    "interrupted": {"test_a.py": "def test(): raise KeyboardInterrupt\n"},
    "left": {"test_a.py": "import os\ndef test(): os._exit(0)\n"},
    "crashed": {"test_a.py": "import os\ndef test(): os.abort()\n"},
}
"""How runs end; those after ``none`` have no result but an error."""

_ROOT, _PYTHON = b"/project", b"/python"
_STEADY = (
    (rb'(time|duration)="[\d.]+"', rb'\1="0.0"'),
    (rb'(timestamp|hostname)="[^"]*"', rb'\1=""'),
    (rb'"duration":[\d.e-]+', rb'"duration":0.0'),
    (rb"0x[0-9a-f]{8,}", b"0x"),
    (rb"(/python/[^\s:]+):\d+", rb"\1:0"),
)
"""What differs from run to run, and from Python to Python."""


def steady(text: bytes, root: Path) -> bytes:
    """Return the text without what differs; the project is `root`."""
    text = text.replace(str(root).encode(), _ROOT).replace(sys.base_prefix.encode(), _PYTHON)
    for pattern, replacement in _STEADY:
        text = re.sub(pattern, replacement, text)
    return text


def projects(root: Path) -> Path:
    """Make all of them, folders of one project in `root`, which is returned."""
    files = PROJECTS.items()
    texts = {f"{name}/{path}": text for name, some in files for path, text in some.items()}
    return project(root, texts)


async def run(name: str, root: Path) -> tuple[bytes, bytes]:
    """Return what pytest reported of one of the `projects` (nothing when there was no report), and
    the result or error made of it as JSON."""
    kept: list[bytes] = []
    async with opened(root) as halves:
        tools = pytest_tools.PytestTools(halves, Launcher(halves, Premises()), _keeper(kept))
        action = await tools.prepare(PytestRun(name))
        try:
            result = msgspec.json.encode(await action.run())
        except PunieError as error:
            result = _told(error.error)
    return steady(b"".join(kept), root), steady(result, root)


def _told(error: WireError) -> bytes:
    assert isinstance(error, ToolFailed)
    return msgspec.json.encode({"kind": error.kind, "message": error.message})


def _keeper(kept: list[bytes]) -> Callable[[str], bytes | None]:
    def read(folder: str) -> bytes | None:
        if (report := pytest_tools.read_report(folder)) is not None:
            kept.append(report)
        return report

    return read


def main() -> int:
    """Write every file."""
    FILES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        root = projects(Path(folder).resolve() / "project")
        for name in PROJECTS:
            report, result = asyncio.run(run(name, root))
            if report:
                (FILES / f"{name}.xml").write_bytes(report)
            text = msgspec.json.format(result, indent=1)
            (FILES / f"{name}.result.json").write_bytes(text + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
