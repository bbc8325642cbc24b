"""``punie ask --edit`` mends what Punie's own pinned checkers find, and nothing else changes."""

import json
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.support import trees
from tests.support.cli import LEVEL, Punie
from tests.support.openai_server import Reply, say
from tests.support.repositories import Repository
from tests.support.scripted_user import Script, program, snapshot, use

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("edits")]

PRICES = (
    "import os\n"
    "\n"
    "\n"
    "def total(prices: list[int]) -> int:\n"
    '    """Add prices up."""\n'
    "    return str(sum(prices))\n"
)
MENDED = 'def total(prices: list[int]) -> int:\n    """Add prices up."""\n    return sum(prices)\n'
UNUSED = {"path": "prices.py", "old_text": "import os\n\n\n", "new_text": ""}
WRONG = {"path": "prices.py", "old_text": "str(sum(prices))", "new_text": "sum(prices)"}

DIRECTLY = (
    use("ruff_check"),
    use("typecheck"),
    use("read_file", path="prices.py"),
    use("edit_file", **UNUSED),
    use("edit_file", **WRONG),
    use("ruff_check", path="prices.py"),
    use("typecheck", path="prices.py"),
    say("Both are mended."),
)
IN_ONE_PROGRAM = (
    program(
        "found = ruff_check()\n"
        "wrong = typecheck()\n"
        "for v in found.violations:\n"
        "    print(v.file, v.line, v.code)\n"
        "for e in wrong.errors:\n"
        "    print(e.file, e.line, e.code)\n"
        "text = read_file('prices.py').text\n"
        "assert text.startswith('import os')\n"
        "edit_file('prices.py', 'import os\\n\\n\\n', '')\n"
        "edit_file('prices.py', 'str(sum(prices))', 'sum(prices)')\n"
        "print(ruff_check().ok, typecheck().ok)\n"
    ),
    say("Both are mended."),
)


def check(program: str, *paths: Path) -> tuple[int, str]:
    """Run a checker of this environment on its own; return its exit code and output."""
    tool = Path(sysconfig.get_path("scripts")) / program
    done = subprocess.run(
        [str(tool), "check", *map(str, paths)],
        cwd=paths[0] if paths[0].is_dir() else paths[0].parent,
        env={"RUFF_NO_CACHE": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.fixture
def shop(tmp_path: Path) -> Repository:
    """A repository with an unused import and a wrong type, and work that is not committed."""
    repository = Repository(tmp_path / "shop")
    repository.commit({"prices.py": PRICES, "other.py": "import sys\n\nprint(sys.path)\n"})
    assert check("ruff", repository.root)[0] == 1
    assert check("ty", repository.root)[0] == 1
    return repository


@pytest.mark.parametrize("script", [DIRECTLY, IN_ONE_PROGRAM], ids=["directly", "in one program"])
def test_mends_a_violation_and_a_type_error(
    user: Punie, shop: Repository, script: tuple[Reply, ...], isolation: str
) -> None:
    options = ("--edit", "--isolation", isolation)
    with Script(*script) as model:
        done = model.ask(user, shop.root, *options, text="Mend what the checkers find")
        assert done.returncode == 0, done.stderr
        assert done.stdout == "Both are mended.\n"
        assert model.steps == len(script)
        assert "F401" in model.told[0]
    lines = [line for line in done.stderr.splitlines() if "daemon" not in line]
    assert lines == ["punie: edit_file prices.py +0 -3", "punie: edit_file prices.py +1 -1"]
    assert (shop.root / "prices.py").read_text() == MENDED
    assert check("ruff", shop.root)[0] == 0
    assert check("ty", shop.root)[0] == 0
    assert shop.git("status", "--porcelain") == " M prices.py\n"
    changed = [line for line in shop.git("diff", "-U0").splitlines() if line[:1] in "+-"]
    assert changed == [
        "--- a/prices.py",
        "+++ b/prices.py",
        "-import os",
        "-",
        "-",
        "-    return str(sum(prices))",
        "+    return sum(prices)",
    ]


def test_the_model_sees_that_its_edit_was_wrong_and_mends_it(user: Punie, shop: Repository) -> None:
    worse = {**WRONG, "new_text": "sum(price)"}
    right = {**WRONG, "old_text": "sum(price)"}
    script = (use("edit_file", **worse), use("typecheck"), use("edit_file", **right), say("Done."))
    with Script(*script) as model:
        done = model.ask(user, shop.root, "--edit")
        assert done.returncode == 0, done.stderr
        assert "unresolved-reference" in model.told[1]
    assert check("ty", shop.root)[0] == 0


def test_the_report_says_what_each_call_came_to(user: Punie, shop: Repository) -> None:
    missing = {**WRONG, "old_text": "no such text"}
    script = (use("edit_file", **missing), use("edit_file", **UNUSED), say("Done."))
    with Script(*script) as model:
        done = model.ask(user, shop.root, "--edit", "--format", "json")
    report = json.loads(done.stdout)
    failed, edited = report["tool_calls"]
    assert (failed["ok"], failed["outcome"]) == (False, "failed")
    assert (edited["ok"], edited["outcome"], edited["isolation"]) == (True, "ok", LEVEL)
    assert edited["duration_ms"] > 0
    assert edited["result"]["removed"] == 3
    assert report["stop_reason"] == "end_turn"
    assert report["stop_detail"] == ""


def test_a_turn_that_is_stopped_says_why(user: Punie, shop: Repository) -> None:
    with Script(*[use("read_file", path="prices.py")] * 30) as model:
        done = model.ask(user, shop.root, "--format", "json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["stop_reason"] == "max_turn_requests"
    assert report["stop_detail"]
    assert f"the turn ended early: {report['stop_detail']}" in done.stderr


@pytest.fixture(params=["json", "asyncio"])
def package(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an installed package with Windows line ends and odd modes."""
    copies = {"json": trees.json_tree, "asyncio": trees.asyncio_tree}
    folder = copies[request.param](tmp_path)
    for number, path in enumerate(sorted(folder.glob("*.py"))):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        path.chmod((0o644, 0o600, 0o755)[number % 3])
    return folder


IMPORT = "\n\nimport bisect\n"
FUNCTION = "\n\ndef grown(size: int) -> int:\n    return str(size)\n"


@pytest.mark.parametrize("directly", [True, False], ids=["directly", "in one program"])
def test_mends_a_file_of_an_installed_package(user: Punie, package: Path, directly: bool) -> None:
    name = {"json": "scanner.py", "asyncio": "queues.py"}[package.name]
    file = package / name
    Repository(package)
    checked = {tool: check(tool, file) for tool in ("ruff", "ty")}
    before = snapshot(package)
    with file.open("ab") as end:
        end.write((IMPORT + FUNCTION).replace("\n", "\r\n").encode())
    assert all(check(tool, file) != found for tool, found in checked.items())
    if directly:
        edits = [use("edit_file", path=name, old_text=t, new_text="") for t in (IMPORT, FUNCTION)]
    else:
        edits = [
            program(f"for text in {[IMPORT, FUNCTION]!r}:\n    edit_file({name!r}, text, '')\n")
        ]
    look = (use("ruff_check", path=name), use("typecheck", path=name))
    with Script(*look, *edits, say("Done.")) as model:
        done = model.ask(user, package, "--edit")
        assert done.returncode == 0, f"{done.stderr}{model.told}"
        assert "bisect" in model.told[0]
        assert "expected `int`" in model.told[1]
    assert snapshot(package) == before
    assert {tool: check(tool, file) for tool in ("ruff", "ty")} == checked


def test_the_embedded_model_says_that_it_cannot_edit(user: Punie, shop: Repository) -> None:
    before = snapshot(shop.root)
    for question in ("Fix the lint errors in prices.py", "Delete prices.py"):
        report = user.ask(shop.root, question, "--edit", "--model", "embedded")
        assert "cannot write or change code" in report["answer"]
        assert report["tool_calls"] == []
    assert snapshot(shop.root) == before


def test_the_embedded_model_answers_with_edit_too(user: Punie, shop: Repository) -> None:
    report = user.ask(
        shop.root, "How many Python files are there?", "--edit", "--model", "embedded"
    )
    assert "2" in report["answer"]
