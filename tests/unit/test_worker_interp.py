"""The project half: its rules, and that it is the standard library alone."""

import asyncio
import marshal
import os
import string
from collections.abc import Callable, Iterator
from concurrent import interpreters
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from punie_protocol import interp_codec
from punie_protocol.errors import Internal, Overloaded, PunieError, TimedOut, ToolFailed
from punie_protocol.limits import MAX_READ_FILE
from punie_protocol.tools_files import ListFiles
from punie_workers import project_half
from punie_workers.file_tools import FileTools
from punie_workers.half import MAX_WAITING, HalfState, Hung
from punie_workers.halves import MAX_ABANDONED, Abandoned, Halves
from punie_workers.interp import files, ripgrep, wire
from punie_workers.interp.failures import Failure, Kind
from punie_workers.interp.globs import Globs, expand_braces
from punie_workers.interp.ignore import Ignore
from punie_workers.interp.paths import Root
from punie_workers.project_half import ProjectHalf

NOTHING = interp_codec.encode_request(
    "list_files", {"output": b"", "prefix": "", "pattern": "*", "limit": 1, "complete": True}
)
"""A request that is answered at once."""

NAMES = st.sampled_from(["a", "b", "c", ".", "..", "link", "out", "", "é", "x" * 300])
PATHS = st.lists(NAMES, min_size=1, max_size=8).map("/".join) | st.text(max_size=30)


def test_it_runs_in_an_own_gil_interpreter_with_the_standard_library_alone(tmp_path: Path) -> None:
    here = Path(files.__file__).parents[2]
    (tmp_path / "x.txt").write_text("hello\n")
    interpreter = interpreters.create()
    try:
        interpreter.exec(f"import sys; sys.path.insert(0, {str(here)!r})")
        interpreter.exec(
            "before = set(sys.modules)\n"
            "from punie_workers.interp import entry\n"
            "import marshal\n"
            f"entry.handle(marshal.dumps(['open', {{'root': {str(tmp_path)!r}}}]))\n"
            "request = ['read_file', {'path': 'x.txt', 'start_line': 1, 'max_lines': 9}]\n"
            "status, value, end = marshal.loads(entry.handle(marshal.dumps(request)))\n"
            "assert (status, value['text'], end) == ('ok', 'hello\\n', 'end'), value\n"
            "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
            "strange = new - sys.stdlib_module_names - {'punie_workers'}\n"
            "assert not strange, strange\n"
            "ours = {n for n in sys.modules if n.startswith('punie_workers.')}\n"
            "assert all(n.startswith('punie_workers.interp') for n in ours), ours\n"
            "entry.close()\n"
        )
    finally:
        interpreter.close()


def test_the_wire_is_the_mirror_of_the_hosts_codec() -> None:
    assert (wire.END, wire.OK, wire.ERROR) == (
        interp_codec.END,
        interp_codec.OK,
        interp_codec.ERROR,
    )
    assert files.MAX_SIZE == MAX_READ_FILE
    request = interp_codec.encode_request("read_file", {"path": "é"})
    assert wire.decode_request(request) == ("read_file", {"path": "é"})
    assert interp_codec.decode_reply(wire.encode_ok({"a": 1}), dict) == {"a": 1}
    with pytest.raises(PunieError) as failed:
        interp_codec.decode_reply(wire.encode_error(Kind.NOT_TEXT, "no"), dict)
    assert failed.value.error == ToolFailed(kind="not_text", message="no")
    with pytest.raises(PunieError) as torn:
        interp_codec.decode_reply(marshal.dumps(["ok", None, None]), dict)
    assert isinstance(torn.value.error, Internal)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    root = folder / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "c").write_text("inside")
    (folder / "c").write_text("outside")
    (folder / "a").write_text("outside")
    (root / "link").symlink_to("a/b")
    (root / "out").symlink_to("..")
    (root / "a" / "out").symlink_to(folder)
    (root / "a" / "link").symlink_to(root / "a")
    return root


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(path=PATHS)
def test_no_path_leads_out(tree: Path, path: str) -> None:
    """Whatever is opened is inside, and is what the system itself finds there."""
    root = Root(str(tree))
    match found := opened(root, path):
        case Failure():
            assert found.kind in set(Kind) - {Kind.NOT_TEXT}
            assert str(tree) not in found.message
        case _:
            assert found == "inside"
            assert Path(tree, path).resolve().is_relative_to(tree.resolve())
    spare = os.dup(root.fd)
    assert spare == root.fd + 1, "a descriptor was left open"
    os.close(spare)
    root.close()


def opened(root: Root, path: str) -> str | Failure:
    try:
        with os.fdopen(root.open_file(path)) as file:
            return file.read()
    except Failure as failure:
        return failure


@pytest.mark.parametrize(
    ("path", "resolved"), [(".", ""), ("a/b", "a/b"), ("link", "a/b"), ("a/link/b/..", "a")]
)
def test_folders_are_resolved(tree: Path, path: str, resolved: str) -> None:
    root = Root(str(tree))
    fd, found = root.open_directory(path)
    assert found == resolved
    assert os.fstat(fd).st_ino == Path(tree, resolved).stat().st_ino
    os.close(fd)
    root.close()


def test_a_root_of_everything_holds_absolute_paths(tmp_path: Path) -> None:
    root = Root("/")
    page = tmp_path / "x"
    page.write_text("here")
    with os.fdopen(root.open_file(str(page))) as file:
        assert file.read() == "here"
    root.close()


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.py", "a/b.py", True),
        ("*.py", "a/b.pyc", False),
        ("b.py", "a/b.py", True),
        ("a/*.py", "a/b.py", True),
        ("a/*.py", "x/a/b.py", False),
        ("a/*.py", "a/c/b.py", False),
        ("./a.py", "a.py", True),
        ("/a", "x/a", False),
        ("a/", "x/a", True),
        ("**/x", "x", True),
        ("**/x", "a/b/x", True),
        ("a/**", "a/b/c", True),
        ("a/**", "a", False),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("a/**/b", "a/x/y/c", False),
        ("*.{py,md}", "x.md", True),
        ("*.{py,{a,b}}", "x.b", True),
        ("{src,lib}/*.c", "lib/x.c", True),
        ("{a", "x/{a", True),
        ("[ab].c", "x/b.c", True),
        ("[!ab].c", "b.c", False),
        ("?.c", "ab.c", False),
        (r"\*.c", "x.c", False),
        (r"\*.c", "*.c", True),
    ],
)
def test_globs(pattern: str, path: str, matches: bool) -> None:
    assert Globs([pattern]).matches(path) is matches


@given(st.text(string.ascii_letters + "*?[]{},/\\!-.", max_size=40), st.text(max_size=40))
def test_no_glob_breaks(pattern: str, path: str) -> None:
    assert Globs([pattern or "*"]).matches(path) in (True, False)


def test_globs_are_linear_and_bounded() -> None:
    assert not Globs(["*a" * 40 + "b"]).matches("a" * 250)
    assert not Globs(["**/a/" * 40 + "b"]).matches("a/" * 200 + "c")
    with pytest.raises(Failure) as failed:
        expand_braces("{a,b}" * 12)
    assert failed.value.kind is Kind.INVALID_PATTERN


def test_ignore_rules() -> None:
    rules = Ignore("# comment\n\nbuild/\n*.tmp\n!keep.tmp\n/top.txt\ndocs/*.md\n")
    hidden = ["build/x", "a/build/x/y", "x.tmp", "a/y.tmp", "top.txt", "docs/a.md"]
    shown = ["build", "keep.tmp", "a/keep.tmp", "a/top.txt", "docs/x/a.md", "x.py"]
    assert [path for path in hidden + shown if rules.hides(path)] == hidden


def test_rules_that_take_each_other_back_go_by_the_last() -> None:
    rules = Ignore("!a.x\n*.x\n!b*\n/top/*.x\n!top/k?\nbc.x/\n")
    hidden = ["a.x", "top/b.x", "top/c.x", "bc.x/y"]
    shown = ["b.x", "d/b.x", "top/kx", "bc.x"]
    assert [path for path in hidden + shown if rules.hides(path)] == hidden


@pytest.mark.parametrize("rule", ["x{}*y", "/a/b/*x{}.?", "**/b/x{}", "!x{}"])
def test_many_rules_on_many_files_are_one_match_a_path(rule: str) -> None:
    """Rule by rule, this takes longer than a test may."""
    rules = Ignore("\n".join(rule.replace("{}", str(n)) for n in range(4000)) + "\n*.hidden\n")
    paths = [f"a/b/c/d/e/f{n}.txt" for n in range(4000)]
    assert not any(map(rules.hides, paths))
    assert rules.hides("a/b/x.hidden")


def test_what_tools_put_beside_sources_is_not_listed(tmp_path: Path) -> None:
    names = ["a.py", "__pycache__/a.pyc", "d/__pycache__/b.pyc", "node_modules/x/y.js", "d/c.pyc"]
    output = b"".join(f"./{name}\0".encode() for name in names)
    root = Root(str(tmp_path))

    def listed(output: bytes, prefix: str = "") -> list[str]:
        return ripgrep.list_files(root, output, prefix, "*", 9, True)["files"]

    assert listed(output) == ["a.py", "d/c.pyc"]
    assert listed(b"./y.js\0", "node_modules/x") == ["node_modules/x/y.js"], "asked for by name"
    (tmp_path / ".punieignore").write_text("*.pyc\n!node_modules/\n")
    assert listed(output) == ["a.py", "node_modules/x/y.js"]
    root.close()


def test_a_match_is_of_the_file_that_has_it(tmp_path: Path) -> None:
    """A newline in a name ends no record; a name that is not UTF-8 is counted and left out."""
    warning = (
        b"./bin: WARNING: stopped searching binary file after match "
        b'(found "\\0" byte around offset 7)\n'
    )
    output = (
        b"./a\nb.py\x001:needle\n./bin\x003:needle\n"
        + warning
        + b"./c.py\x0012:x: needle\r\n./n\xff.py\x001:needle\n./cut.py\x001:nee"
    )
    root = Root(str(tmp_path))
    found = ripgrep.search(root, output, "", "*", 9, True)
    assert [(one["file"], one["line"], one["text"]) for one in found["matches"]] == [
        ("a\nb.py", 1, "needle"),
        ("bin", 3, "needle"),
        ("c.py", 12, "x: needle"),
    ]
    assert (found["match_count"], found["truncated"]) == (4, True)
    root.close()


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Interpreters that burn time for the path ``burn time`` until the file that this is exists."""
    release = tmp_path / "release"
    bootstrap = project_half._bootstrap() + (
        "import os\n"
        "entry = punie_workers.interp.entry\n"
        "entry.really = entry.handle\n"
        "def handle(request):\n"
        f"    if b'burn time' in request: open({str(tmp_path / 'entered')!r}, 'w').close()\n"
        f"    while b'burn time' in request and not os.path.exists({str(release)!r}): pass\n"
        f"    if b'counted' in request: open({str(tmp_path / 'counter')!r}, 'a').write('x')\n"
        "    return entry.really(request)\n"
        "entry.handle = handle\n"
    )
    monkeypatch.setattr(project_half, "_bootstrap", lambda: bootstrap)
    yield release
    release.touch()


COUNTED = interp_codec.encode_request(
    "read_file", {"path": "counted", "start_line": 1, "max_lines": 1}
)
HANG = interp_codec.encode_request(
    "read_file", {"path": "burn time", "start_line": 1, "max_lines": 1}
)


def test_a_hanging_interpreter_is_replaced_until_it_is_too_often(
    tmp_path: Path, hanging: Path
) -> None:
    left: list[int] = []

    async def main() -> None:
        halves = Halves(str(tmp_path), Abandoned(lambda: left.append(1)))
        await halves.start()
        for _ in range(MAX_ABANDONED + 1):
            assert (await halves.call(NOTHING, dict))["count"] == 0
            with pytest.raises(PunieError) as late:
                await halves.call(HANG, dict, deadline=0.05)
            assert isinstance(late.value.error, TimedOut)
        assert left == []
        with pytest.raises(PunieError, match="it ends"):
            await halves.call(NOTHING, dict)
        assert left == [1]
        halves.stop()

    asyncio.run(main())


def descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_a_folder_opened_for_nobody_is_closed(tmp_path: Path, hanging: Path) -> None:
    """A listing cancelled while its folder is being opened leaves no descriptor behind."""
    (tmp_path / "burn time").mkdir()

    async def main() -> None:
        halves = Halves(str(tmp_path), Abandoned(lambda: None))
        await halves.start()
        tools = FileTools(halves)
        before = descriptors()
        opening = asyncio.create_task(tools.run(ListFiles(path="burn time")))
        await until((tmp_path / "entered").exists)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        os.close(os.open(hanging, os.O_CREAT))
        async with asyncio.timeout(5):
            await halves.call(NOTHING, dict)  # the folder was opened before it
        await until(lambda: descriptors() <= before)
        halves.stop()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0.002)


def test_a_cancelled_call_that_has_not_begun_never_runs(tmp_path: Path, hanging: Path) -> None:
    """The other interpreter counts what it runs."""

    async def main() -> None:
        half = ProjectHalf(str(tmp_path))
        await half.start()
        busy = asyncio.create_task(half.call(HANG, dict))
        await until((tmp_path / "entered").exists)
        calls = [asyncio.create_task(half.call(COUNTED, dict)) for _ in range(8)]
        await asyncio.sleep(0)
        for call in calls[1:]:
            call.cancel()
        await asyncio.gather(*calls[1:], return_exceptions=True)
        os.close(os.open(hanging, os.O_CREAT))
        with pytest.raises(PunieError, match="burn time"):
            await busy
        with pytest.raises(PunieError, match="counted"):
            await calls[0]
        await half.call(NOTHING, dict)
        assert (tmp_path / "counter").read_text() == "x"
        half.stop()
        await asyncio.to_thread(half.join, 5.0)

    asyncio.run(main())


def test_a_half_past_its_deadline_is_quarantined(tmp_path: Path, hanging: Path) -> None:
    async def main() -> None:
        half = ProjectHalf(str(tmp_path))
        told: list[Hung] = []
        half.on_hung = lambda half, hung: told.append(hung)
        await half.start()
        assert await half.call(NOTHING, dict) == {"count": 0, "truncated": False, "files": []}
        with pytest.raises(PunieError) as late:
            await half.call(HANG, dict, deadline=0.05)
        assert isinstance(late.value.error, TimedOut)
        with pytest.raises(PunieError, match="quarantined"):
            await half.call(NOTHING, dict)
        assert (half.state, half.hangs) == (HalfState.QUARANTINED, True)
        assert [one.operation for one in told] == ["read_file"]
        assert told[0].seconds >= 0.025
        half.stop()
        with pytest.raises(PunieError, match="stopped"):
            await half.call(NOTHING, dict)
        os.close(os.open(hanging, os.O_CREAT))
        await asyncio.to_thread(half.join, 5.0)

    asyncio.run(main())


def test_calls_that_wait_are_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        half = ProjectHalf(str(tmp_path))
        await half.start()
        calls = [half.call(NOTHING, dict) for _ in range(MAX_WAITING + 1)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [one for one in results if isinstance(one, PunieError)]
        assert [type(one.error) for one in refused] == [Overloaded]
        half.stop()
        await asyncio.to_thread(half.join, 5.0)

    asyncio.run(main())
