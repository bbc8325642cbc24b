"""The symbol index: right for every source, up to date, bounded, and out of the others' way."""

import ast
import asyncio
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from punie_protocol.errors import PunieError, TimedOut, ToolFailed
from punie_protocol.tools_code import Symbols, SymbolsResult
from punie_protocol.tools_files import ReadFile
from punie_workers import symbol_tools
from punie_workers.file_tools import FileTools
from punie_workers.half import HalfState
from punie_workers.halves import Abandoned, Halves
from punie_workers.index_budget import IndexBudget
from punie_workers.interp import symbol_index, symbols, watched
from punie_workers.interp.paths import Root
from punie_workers.interp.symbol_index import Index
from punie_workers.symbol_tools import SymbolTools
from punie_workers.watching import Notifier, Watch, WatchState, notify
from tests.support.trees import asyncio_tree, json_tree

PATIENCE = 10.0

SOURCE = '''\
"""Docstring with Base and run."""
import os.path as p
from .tools import helper as aid
LIMIT: int = 3
a, (b, *c) = LIMIT, (1, 2)  # Base
type Alias = Base

@aid
class Base(dict, metaclass=type):
    kind = "run"

    async def run(self, *, limit: int = LIMIT) -> None:
        def inner(): return self.run(limit=limit)
        local = inner
        self.kind = f"{local} {Base}"

if True:
    class Late[T]: ...
else:
    def late(
        one,  # a comment
        two="Base",
    ): ...
try:
    x = y = 1
except Exception:
    x += 2

def use():
    global x
    del x
    return Base.run, p.join
'''


def test_what_a_file_defines() -> None:
    module = symbols.parse(SOURCE.encode())
    assert module
    assert [tuple(one) for one in module.definitions] == [
        ("LIMIT", "variable", 4, 4, "LIMIT: int = 3"),
        ("a", "variable", 5, 5, "a, (b, *c) = LIMIT, (1, 2)"),
        ("b", "variable", 5, 5, "a, (b, *c) = LIMIT, (1, 2)"),
        ("c", "variable", 5, 5, "a, (b, *c) = LIMIT, (1, 2)"),
        ("Alias", "variable", 6, 6, "type Alias = Base"),
        ("Base", "class", 9, 15, "class Base(dict, metaclass=type)"),
        ("Base.kind", "variable", 10, 10, 'kind = "run"'),
        ("Base.run", "method", 12, 15, "async def run(self, *, limit: int = LIMIT) -> None"),
        ("Base.run.inner", "function", 13, 13, "def inner()"),
        ("Late", "class", 18, 18, "class Late[T]"),
        ("late", "function", 20, 23, "def late(one, two='Base')"),
        ("x", "variable", 25, 25, "x = y = 1"),
        ("y", "variable", 25, 25, "x = y = 1"),
        ("use", "function", 29, 32, "def use()"),
    ]


@pytest.mark.parametrize(
    ("name", "uses"),
    [
        ("Base", [(6, ""), (15, "Base.run"), (32, "use")]),
        ("run", [(13, "Base.run.inner"), (32, "use")]),
        ("Base.run", [(13, "Base.run.inner"), (32, "use")]),
        ("limit", [(13, "Base.run.inner")]),
        ("LIMIT", [(5, ""), (12, "Base.run")]),
        ("kind", [(15, "Base.run")]),
        ("path", [(2, "")]),
        ("helper", [(3, "")]),
        ("tools", [(3, "")]),
        ("aid", [(8, "Base")]),
        ("metaclass", [(9, "Base")]),
        ("x", [(27, ""), (30, "use"), (31, "use")]),
        ("two", []),
        ("Docstring", []),
    ],
)
def test_what_counts_as_a_use(name: str, uses: list[tuple[int, str]]) -> None:
    module = symbols.parse(SOURCE.encode())
    assert module
    assert list(module.refers(name)) == uses


def test_names_are_found_whole_or_by_their_last_parts() -> None:
    module = symbols.parse(SOURCE.encode())
    assert module
    for name in ("Base.run.inner", "run.inner", "inner"):
        assert [one.name for one in module.defines(name)] == ["Base.run.inner"]
    for name in ("nner", "Bas", "base.run", "", ".inner", "Base."):
        assert not list(module.defines(name)), name


@pytest.mark.parametrize(
    "source",
    [
        b"def f(:",
        b"x = 1\0",
        b"\xff\xfe",
        b"# coding: nowhere\nx = 1",
        b"-" * 500_000 + b"1",
        b"a" + b"+a" * 200_000,
        b"a" + b".a" * 200_000,
        b"(" * 5_000 + b")" * 5_000,
        b"lambda: " * 50_000 + b"1",
    ],
)
def test_what_does_not_parse_is_unreadable(source: bytes) -> None:
    assert symbols.parse(source) is None


def test_no_warning_of_a_source_is_shown() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert symbols.parse(b'x = "\\d"\nassert (1, 2)\ny is 1\n')
    assert not shown


def test_a_signature_is_one_short_line() -> None:
    wide = ", ".join(f"argument_{n}: dict[str, int] = {{}}" for n in range(50))
    module = symbols.parse(f"def f({wide}):\n    pass\nx = [\n  1,\n]\n".encode())
    assert module
    first, second = module.definitions
    assert len(first.signature) == symbols.MAX_SIGNATURE
    assert second.signature == "x = [ …"


class Naive(ast.NodeVisitor):
    """The same by the book: a recursive walk that keeps everything."""

    def __init__(self) -> None:
        self.around: list[tuple[str, bool]] = []
        self.definitions: list[tuple[str, str, int, int]] = []
        self.uses: set[tuple[str, int]] = set()

    def visit(self, node: ast.AST) -> None:  # noqa: C901 (one case a rule)
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                is_class = isinstance(node, ast.ClassDef)
                in_class = bool(self.around) and self.around[-1][1]
                kind = "class" if is_class else "method" if in_class else "function"
                self.define(node.name, kind, node)
                self.around.append((node.name, is_class))
                self.generic_visit(node)
                self.around.pop()
                return
            case ast.Assign(targets=targets):
                for target in targets:
                    self.bind(target, node)
            case ast.AnnAssign(target=target) | ast.TypeAlias(name=target):
                self.bind(target, node)
            case ast.AugAssign(target=ast.Name(id=name)):
                self.uses.add((name, node.target.lineno))
            case ast.Name(ctx=ast.Store()):
                pass
            case ast.Name(id=name):
                self.uses.add((name, node.lineno))
            case ast.Attribute(attr=name, end_lineno=int(line)):
                self.uses.add((name, line))
            case ast.alias(name=name) | ast.ImportFrom(module=str(name)):
                self.uses |= {(part, node.lineno) for part in name.split(".")}
            case ast.keyword(arg=str(name)):
                self.uses.add((name, node.lineno))
            case ast.Global(names=names) | ast.Nonlocal(names=names):
                self.uses |= {(name, node.lineno) for name in names}
            case _:
                pass
        self.generic_visit(node)

    def bind(self, target: ast.expr, node: ast.stmt) -> None:
        if self.around and not self.around[-1][1]:
            return
        for one in ast.walk(target):
            if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store):
                self.define(one.id, "variable", node)

    def define(self, name: str, kind: str, node: ast.stmt) -> None:
        qualified = ".".join([*(part for part, _ in self.around), name])
        self.definitions.append((qualified, kind, node.lineno, node.end_lineno or 0))


def assert_as_naive(data: bytes) -> None:
    module = symbols.parse(data)
    assert module
    naive = Naive()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        naive.visit(ast.parse(data))
    ours = [one[:4] for one in module.definitions]
    assert sorted(ours) == sorted(naive.definitions)
    assert [one[2] for one in ours] == sorted(one[2] for one in ours)
    assert {(n, line) for n in module.uses for line, _ in module.refers(n)} == naive.uses
    count = len(symbols.lines_of(data))
    assert all(line <= count for _, line in naive.uses)
    for name in module.uses:
        for line, inside in module.refers(name):
            homes = [one for one in ours if one[0] == inside]
            assert not inside or any(
                home[2] - 20 <= line <= home[3] for home in homes
            )  # decorators stand before


@pytest.mark.parametrize("package", ["json", "asyncio", "email", "xml", "encodings", "ctypes"])
def test_it_agrees_with_a_naive_walk_of_real_sources(package: str) -> None:
    for path in sorted(Path(os.__file__).parent.joinpath(package).rglob("*.py")):
        assert_as_naive(path.read_bytes())


NAMES = st.sampled_from(["a", "b", "Cc", "ﬁ", "é"])
EXPRESSIONS = st.recursive(
    NAMES | st.just("1") | st.just("'a b'"),
    lambda inner: st.one_of(
        st.builds("({}\n.{})".format, inner, NAMES),
        st.builds("f({}, {}={})".format, inner, NAMES, inner),
        st.builds("(lambda {}: {})".format, NAMES, inner),
        st.builds("[{1} for {0} in {1}]".format, NAMES, inner),
    ),
    max_leaves=4,
)


def _block(head: str, body: list[str]) -> str:
    lines = "\n".join(body).split("\n")
    return head + "\n" + "\n".join("    " + line for line in lines)


STATEMENTS = st.recursive(
    st.one_of(
        st.builds("{} = {}".format, NAMES, EXPRESSIONS),
        st.builds("{}, [{}, *_] = {}".format, NAMES, NAMES, EXPRESSIONS),
        st.builds("{}: {} = {}".format, NAMES, EXPRESSIONS, EXPRESSIONS),
        st.builds("{}.{} = {}".format, NAMES, NAMES, EXPRESSIONS),
        st.builds("{} += {}".format, NAMES, EXPRESSIONS),
        st.builds("import {}.{} as {}".format, NAMES, NAMES, NAMES),
        st.builds("from {} import {}".format, NAMES, NAMES),
        st.builds("del {}".format, NAMES),
        EXPRESSIONS,
    ),
    lambda inner: st.builds(
        _block,
        st.one_of(
            st.builds("class {}({}):".format, NAMES, EXPRESSIONS),
            st.builds("@{}\ndef {}(\n  {}={}\n):".format, NAMES, NAMES, NAMES, EXPRESSIONS),
            st.builds("async def {}():".format, NAMES),
            st.builds("if {}:".format, EXPRESSIONS),
            st.builds("for {} in {}:".format, NAMES, EXPRESSIONS),
            st.builds("with {} as {}:".format, EXPRESSIONS, NAMES),
        ),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STATEMENTS, max_size=5), st.sampled_from(["\n", "\r\n", "\r", "\n\x0c"]))
def test_it_agrees_with_a_naive_walk_of_any_source(statements: list[str], end: str) -> None:
    assert_as_naive("\n".join(statements).replace("\n", end).encode())


# the index


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    root = Root(str(tmp_path))
    yield root
    root.close()


def take(index: Index, root: Root, number: int = 1) -> None:
    paths = sorted(path.relative_to(root.path) for path in Path(root.path).rglob("*.py"))
    index.take("project", number, b"".join(bytes(path) + b"\0" for path in paths), "", True)


def slices(index: Index, name: str = "", start: int = 0) -> Iterator[dict]:
    while start >= 0:
        answer = index.query("project", 1, "", start, name, 1000, None)
        assert answer["known"]
        yield answer
        start = answer["next"]


def refresh(index: Index) -> int:
    """Check everything; return in how many slices."""
    start, count = 0, 0
    while start >= 0:
        start = index.refresh("project", 1, "", start)["next"]
        count += 1
    return count


def test_work_comes_in_slices(tmp_path: Path, root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(40):
        (tmp_path / f"m{n:02}.py").write_text(f"def f{n}(): pass\n" + "#" * 1000)
    monkeypatch.setattr(symbol_index, "SLICE", 10_000)
    index = Index(root)
    take(index, root)
    assert 4 <= refresh(index) <= 5
    found = [one["name"] for answer in slices(index) for one in answer["symbols"]]
    assert found == [f"f{n}" for n in range(40)]


def test_what_was_least_recently_used_goes_and_comes_back(tmp_path: Path, root: Root) -> None:
    for n in range(40):
        (tmp_path / f"m{n:02}.py").write_text(f"def f{n}(): pass\n")
    small = Index(root, memory=3_000)
    take(small, root)
    refresh(small)
    assert len(small._contents) < 10
    assert small._used <= 3_000
    for _ in range(2):
        found = [one["name"] for answer in slices(small) for one in answer["symbols"]]
        assert found == [f"f{n}" for n in range(40)]
    assert small._used == sum(module.size for module in small._contents.values() if module)


def test_a_file_that_changes_between_check_and_answer_is_read_as_it_is(
    tmp_path: Path, root: Root
) -> None:
    (tmp_path / "a.py").write_text("f()\n")
    index = Index(root)
    take(index, root)
    refresh(index)
    (tmp_path / "a.py").write_text("\n\nf(1)\n")
    answer = index.query("project", 1, "", 0, "f", 9, 9)
    assert [(one["line"], one["text"]) for one in answer["references"]] == [(3, "f(1)")]
    (tmp_path / "a.py").unlink()
    answer = index.query("project", 1, "", 0, "f", 9, 9)
    assert (answer["references"], answer["unreadable"]) == ([], [])


def test_an_old_listing_is_not_known(root: Root) -> None:
    index = Index(root)
    take(index, root, 7)
    assert index.refresh("project", 7, "", 0)["known"]
    assert not index.refresh("project", 6, "", 0)["known"]
    assert not index.query("asked", 7, "", 0, "", 1, 1)["known"]


def test_which_folders_are_watched(tmp_path: Path, root: Root) -> None:
    for folder in ("src/pkg", "empty/deep/er", ".git/x", "dist/a", "only/__pycache__", "only/sub"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("src/pkg/a.py", ".git/x/y", "dist/z.bin", "dist/a/b.py", "only/__pycache__/a.pyc"):
        (tmp_path / file).write_text("")
    (tmp_path / "link").symlink_to("/")
    expected = ["", "dist", "empty", "empty/deep", "empty/deep/er", "only", "only/sub", "src"]
    found = watched.folders(root, b"src/pkg/a.py\0")
    assert found == sorted(str(tmp_path / folder) for folder in [*expected, "src/pkg"])


def test_too_many_folders_are_not_watched(
    tmp_path: Path, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(watched, "MAX_FOLDERS", 2)
    assert watched.folders(root, b"") is None


# the tool


@asynccontextmanager
async def opened(
    root: Path, start: Callable[[list[str]], Notifier] = notify
) -> AsyncGenerator[SymbolTools]:
    halves = Halves(str(root), Abandoned(lambda: None))
    tools = SymbolTools(str(root), halves, start)
    await halves.start()
    try:
        yield tools
    finally:
        tools.close()
        half = halves._half
        halves.stop()
        await asyncio.to_thread(half.join, PATIENCE)


def no_watch(folders: list[str]) -> Notifier:
    raise OSError(28, "OS file watch limit reached")


def run_with(root: Path, test: Callable[[SymbolTools], Awaitable[None]], **options) -> None:
    async def main() -> None:
        async with opened(root, **options) as tools:
            await test(tools)

    asyncio.run(main())


def names(result: SymbolsResult) -> list[str]:
    return [f"{one.file}:{one.name}" for one in result.symbols]


def places(result: SymbolsResult) -> list[str]:
    return [f"{one.file}:{one.line} {one.text} [{one.inside}]" for one in result.references]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    tree = tmp_path / "project"
    (tree / "pkg").mkdir(parents=True)
    (tree / "pkg" / "a.py").write_text("class Engine:\n    def start(self): pass\n")
    (tree / "pkg0.py").write_text("from pkg.a import Engine\n\ndef go():\n    Engine().start()\n")
    (tree / "note.txt").write_text("class Engine: no\n")
    (tree / "broken.py").write_text("class Engine(:\n")
    (tree / "hidden").mkdir()
    (tree / "hidden" / "h.py").write_text("class Engine: pass\n")
    (tree / "ignored").mkdir()
    (tree / "ignored" / "i.py").write_text("class Engine: pass\n")
    (tree / ".gitignore").write_text("ignored/\n")
    (tree / ".punieignore").write_text("hidden/\n")
    return tree


def test_outlines_definitions_and_references(project: Path) -> None:
    async def test(tools: SymbolTools) -> None:
        everything = await tools.run(Symbols())
        assert names(everything) == ["pkg/a.py:Engine", "pkg/a.py:Engine.start", "pkg0.py:go"]
        assert (everything.symbol_count, everything.reference_count) == (3, 0)
        assert everything.unreadable == ["broken.py"]
        assert not everything.truncated
        assert names(await tools.run(Symbols(path="pkg"))) == names(everything)[:2]
        assert names(await tools.run(Symbols(path="pkg0.py"))) == ["pkg0.py:go"]
        assert names(await tools.run(Symbols(name="Engine.start"))) == ["pkg/a.py:Engine.start"]
        found = await tools.run(Symbols(name="Engine", references=True))
        assert names(found) == ["pkg/a.py:Engine"]
        assert places(found) == [
            "pkg0.py:1 from pkg.a import Engine []",
            "pkg0.py:4 Engine().start() [go]",
        ]
        assert found.reference_count == 2

    run_with(project, test)


def test_a_limit_cuts_and_says_so(project: Path) -> None:
    async def test(tools: SymbolTools) -> None:
        cut = await tools.run(Symbols(name="Engine", references=True, limit=1))
        assert (len(cut.symbols), len(cut.references)) == (1, 1)
        assert (cut.symbol_count, cut.reference_count, cut.truncated) == (1, 2, True)
        exact = await tools.run(Symbols(name="Engine", references=True, limit=2))
        assert (len(exact.references), exact.truncated) == (2, False)

    run_with(project, test)


def test_what_is_ignored_is_there_when_asked_for_by_its_path(project: Path) -> None:
    (project / ".private").mkdir()
    (project / ".private" / "p.py").write_text("SECRET = 1\n")

    async def test(tools: SymbolTools) -> None:
        assert names(await tools.run(Symbols(path="ignored/i.py"))) == ["ignored/i.py:Engine"]
        assert names(await tools.run(Symbols(path=".private"))) == [".private/p.py:SECRET"]
        assert names(await tools.run(Symbols(path="hidden"))) == []

    run_with(project, test)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (Symbols(path="nowhere"), "not_found"),
        (Symbols(path="../x"), "outside_root"),
        (Symbols(path="out"), "outside_root"),
        (Symbols(path="pipe"), "not_a_file"),
        (Symbols(references=True), "invalid_pattern"),
    ],
)
def test_what_cannot_be_asked(project: Path, arguments: Symbols, kind: str) -> None:
    (project / "out").symlink_to("..")
    os.mkfifo(project / "pipe")

    async def test(tools: SymbolTools) -> None:
        with pytest.raises(PunieError) as failed:
            await tools.run(arguments)
        assert isinstance(failed.value.error, ToolFailed)
        assert failed.value.error.kind == kind

    run_with(project, test)


def test_what_cannot_be_read_is_named(project: Path) -> None:
    (project / "big.py").write_bytes(b"#" * (symbol_index.MAX_SIZE + 1))
    (project / "nul.py").write_bytes(b"x = 1\0")
    (project / "deep.py").write_bytes(b"x = " + b"-" * 500_000 + b"1")
    (project / "edge.py").write_bytes(b"x = 1".ljust(symbol_index.MAX_SIZE))
    os.mkfifo(project / "fifo.py")
    (project / "link.py").symlink_to("/etc/passwd")

    async def test(tools: SymbolTools) -> None:
        for _ in range(2):
            found = await tools.run(Symbols(name="x"))
            assert found.unreadable == ["big.py", "broken.py", "deep.py", "nul.py"]
            assert names(found) == ["edge.py:x"]

    run_with(project, test)


def test_a_quiet_project_is_not_walked_again(project: Path) -> None:
    async def test(tools: SymbolTools) -> None:
        await tools.run(Symbols())
        walks, parsed = tools.listed, tools.parsed
        for arguments in (Symbols(), Symbols(path="pkg"), Symbols(name="go", references=True)):
            await tools.run(arguments)
        assert (tools.listed, tools.parsed) == (walks, parsed)
        assert tools.watching is WatchState.WATCHING

    run_with(project, test)


def test_after_a_while_silence_is_not_believed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(symbol_tools, "MAX_QUIET", 0.0)

    async def test(tools: SymbolTools) -> None:
        await tools.run(Symbols())
        walks = tools.listed
        await tools.run(Symbols())
        assert tools.listed > walks

    run_with(project, test)


def test_what_is_touched_or_renamed_is_not_parsed_again(project: Path) -> None:
    async def test(tools: SymbolTools) -> None:
        await tools.run(Symbols())
        parsed = tools.parsed
        os.utime(project / "pkg" / "a.py")
        (project / "pkg0.py").rename(project / "other.py")
        shutil.copy(project / "pkg" / "a.py", project / "pkg" / "b.py")
        tools.changed(["anything"])
        found = names(await tools.run(Symbols(name="go")))
        assert found == ["other.py:go"]
        assert tools.parsed == parsed

    run_with(project, test)


async def until(tools: SymbolTools, arguments: Symbols, expected: list[str]) -> None:
    """Ask until the answer is what is expected: others' changes take some milliseconds."""
    deadline = time.monotonic() + PATIENCE
    while (found := names(await tools.run(arguments))) != expected:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.002)


def test_changes_of_others_are_noticed(project: Path) -> None:
    async def test(tools: SymbolTools) -> None:
        await until(tools, Symbols(name="Engine"), ["pkg/a.py:Engine"])
        (project / "pkg" / "a.py").write_text("Engine = 1\n")
        await until(tools, Symbols(path="pkg"), ["pkg/a.py:Engine"])
        (project / "new" / "deep").mkdir(parents=True)
        await until(tools, Symbols(name="x"), [])
        (project / "new" / "deep" / "x.py").write_text("x = 1\n")
        await until(tools, Symbols(name="x"), ["new/deep/x.py:x"])
        (project / "new").rename(project / "old")
        await until(tools, Symbols(name="x"), ["old/deep/x.py:x"])
        (project / "old" / "deep" / "x.py").write_text("y = x = 1\n")
        await until(tools, Symbols(name="y"), ["old/deep/x.py:y"])
        (project / ".gitignore").write_text("")
        await until(tools, Symbols(name="Engine"), ["ignored/i.py:Engine", "pkg/a.py:Engine"])
        shutil.rmtree(project / "old")
        await until(tools, Symbols(name="x"), [])
        assert tools.watching is WatchState.WATCHING

    run_with(project, test)


def test_a_folder_that_is_made_again_is_watched_again(project: Path) -> None:
    async def test(tools: SymbolTools) -> None:
        await until(tools, Symbols(name="Engine"), ["pkg/a.py:Engine"])
        shutil.rmtree(project / "pkg")
        (project / "pkg").mkdir()
        (project / "pkg" / "a.py").write_text("first = 1\n")
        await until(tools, Symbols(path="pkg"), ["pkg/a.py:first"])
        (project / "pkg" / "a.py").write_text("second = 1\n")
        await until(tools, Symbols(path="pkg"), ["pkg/a.py:second"])

    run_with(project, test)


@pytest.mark.parametrize("moved", [False, True])
def test_another_folder_in_place_of_the_project_is_indexed_and_watched(
    project: Path, moved: bool
) -> None:
    async def test(tools: SymbolTools) -> None:
        await until(tools, Symbols(name="Engine"), ["pkg/a.py:Engine"])
        if moved:
            shutil.move(project, project.with_name("before"))
        else:
            shutil.rmtree(project)
        with pytest.raises(PunieError, match=f"folder {project} cannot be opened"):
            await tools.run(Symbols())
        (project / "pkg").mkdir(parents=True)
        (project / "pkg" / "a.py").write_text("first = 1\n")
        assert names(await tools.run(Symbols())) == ["pkg/a.py:first"]
        (project / "pkg" / "a.py").write_text("second = 1\n")
        await until(tools, Symbols(), ["pkg/a.py:second"])
        assert tools.watching is WatchState.WATCHING

    run_with(project, test)


def test_a_name_that_is_no_text_does_not_blind_the_watcher(project: Path) -> None:
    strange = project / os.fsdecode(b"\xff.py")

    async def test(tools: SymbolTools) -> None:
        await tools.run(Symbols())
        strange.write_text("x = 1\n")
        (project / "z.py").write_text("z = 1\n")
        await until(tools, Symbols(name="z"), ["z.py:z"])
        (project / "z.py").write_text("\nzz = 1\n")
        await until(tools, Symbols(name="zz"), ["z.py:zz"])

    run_with(project, test)


def test_without_a_watcher_every_call_looks(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(tools: SymbolTools) -> None:
        await tools.run(Symbols())
        assert tools.watching is WatchState.UNAVAILABLE
        (project / "z.py").write_text("z = 1\n")
        assert names(await tools.run(Symbols(name="z"))) == ["z.py:z"]
        (project / "z.py").write_text("a = 1\n")  # same size, same moment
        assert names(await tools.run(Symbols(name="z"))) == []
        assert tools.watching is WatchState.UNAVAILABLE

    run_with(project, test, start=no_watch)
    assert len([one for one in caplog.records if "max_user_watches" in one.message]) == 1


def test_closing_ends_the_watchers_thread(project: Path) -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir())) if sys.platform == "linux" else 0

    async def test(tools: SymbolTools) -> None:
        await tools.run(Symbols())
        watching = threads()
        tools.close()
        tools.close()
        deadline = time.monotonic() + PATIENCE
        while sys.platform == "linux" and threads() >= watching:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        assert tools.watching is WatchState.CLOSED
        (project / "z.py").write_text("z = 1\n")
        assert names(await tools.run(Symbols(name="z"))) == ["z.py:z"]
        assert tools.watching is WatchState.CLOSED

    run_with(project, test)


def test_closed_while_it_starts_the_watcher_ends(tmp_path: Path) -> None:
    async def main() -> None:
        watch = Watch(str(tmp_path))
        starting = asyncio.create_task(watch.watch([str(tmp_path)]))
        await asyncio.sleep(0)
        watch.close()
        assert not await starting
        assert watch.state is WatchState.CLOSED
        assert watch.take()

    asyncio.run(main())


def test_another_project_half_is_taught_anew(project: Path) -> None:
    async def test(tools: SymbolTools) -> None:
        expected = names(await tools.run(Symbols()))
        half = tools._halves._half
        half._move(HalfState.QUARANTINED)
        assert names(await tools.run(Symbols())) == expected
        assert tools._halves._half is not half
        await asyncio.to_thread(half.join, PATIENCE)

    run_with(project, test)


async def dropped(tools: SymbolTools) -> None:
    """Return once the index is gone."""
    deadline = time.monotonic() + PATIENCE
    while tools._dropping or tools._project is not None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


def test_an_index_nobody_asks_for_goes_and_comes_back(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(tools: SymbolTools) -> None:
        await tools.run(Symbols())
        (project / "broken.py").write_text("class Mended: pass\n")
        tools.changed(["broken.py"])
        monkeypatch.setattr(symbol_tools, "MAX_IDLE", 0.01)
        expected = names(await tools.run(Symbols()))
        assert tools.parsed == 4
        await dropped(tools)
        assert tools.watching is WatchState.IDLE
        monkeypatch.setattr(symbol_tools, "MAX_IDLE", 300.0)
        walks = tools.listed
        assert names(await tools.run(Symbols())) == expected
        assert tools.listed > walks
        assert tools.parsed == 3  # it began anew
        assert tools.watching is WatchState.WATCHING

    run_with(project, test)


def test_the_indexes_of_all_projects_share_a_budget(project: Path) -> None:
    async def main() -> None:
        budget = IndexBudget[object](total=1)
        async with opened(project) as first, opened(project) as second:
            first._budget = second._budget = budget
            expected = names(await first.run(Symbols()))
            assert first._memory > 0
            assert names(await second.run(Symbols())) == expected
            await dropped(first)
            assert second._project is not None
            assert names(await first.run(Symbols())) == expected
            await dropped(second)

    asyncio.run(main())


def test_an_index_is_not_dropped_in_the_middle_of_a_query(project: Path) -> None:
    async def test(tools: SymbolTools) -> None:
        expected = names(await tools.run(Symbols()))
        asking = [asyncio.create_task(tools.run(Symbols())) for _ in range(5)]
        for _ in range(20):
            tools.drop()
            await asyncio.sleep(0)
        assert [names(await one) for one in asking] == [expected] * 5
        await dropped(tools)
        tools.close()
        tools.drop()
        assert tools._dropping is None

    run_with(project, test)


def test_an_index_takes_what_it_says_and_no_more_than_it_may(tmp_path: Path, root: Root) -> None:
    for n in range(40):
        (tmp_path / f"m{n:02}.py").write_text(f"def f{n}(): pass\n")
    small = Index(root, memory=3_000)
    take(small, root)
    told = small.refresh("project", 1, "", 0)
    assert told["next"] == -1
    assert 40 * symbol_index._FILE_SIZE < told["memory"] <= 40 * symbol_index._FILE_SIZE + 3_000


def test_other_tools_get_their_turn_while_a_large_tree_is_indexed(tmp_path: Path) -> None:
    for n in range(6):
        asyncio_tree(tmp_path / f"copy{n}")
        for file in (tmp_path / f"copy{n}").rglob("*.py"):
            file.write_text(f"{file.read_text()}\n# {n}\n")
    count = len(list(tmp_path.rglob("*.py")))

    async def test(tools: SymbolTools) -> None:
        files = FileTools(tools._halves)
        indexing = asyncio.create_task(tools.run(Symbols(name="run", references=True)))
        while not tools.parsed:
            await files.run(ReadFile(path="copy0/asyncio/__init__.py"))
        assert not indexing.done()
        await files.run(ReadFile(path="copy0/asyncio/__init__.py"))
        assert not indexing.done()
        indexing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await indexing
        assert 0 < tools.parsed < count
        found = await tools.run(Symbols(name="run", references=True))
        assert (found.symbol_count, found.reference_count) == (6 * 3, 6 * 5)
        assert tools.parsed == count

    run_with(tmp_path, test)


def test_a_query_has_a_deadline(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbol_tools, "TIMEOUT", 0.0)

    async def test(tools: SymbolTools) -> None:
        with pytest.raises(PunieError) as failed:
            await tools.run(Symbols())
        assert isinstance(failed.value.error, TimedOut)
        assert "smaller folder" in failed.value.error.hint

    run_with(project, test)


def test_many_queries_at_once_agree(project: Path) -> None:
    async def test(tools: SymbolTools) -> None:
        paths = ["."] * 5 + ["pkg"] * 5
        found = await asyncio.gather(*(tools.run(Symbols(path=path)) for path in paths))
        assert found == [found[0]] * 5 + [found[5]] * 5

    run_with(project, test)


def test_references_in_a_real_package_are_those_of_a_naive_walk(tmp_path: Path) -> None:
    tree = json_tree(tmp_path)
    naive = {}
    for file in tree.rglob("*.py"):
        naive[file] = Naive()
        naive[file].visit(ast.parse(file.read_bytes()))

    async def test(tools: SymbolTools) -> None:
        for name in ("loads", "JSONDecoder", "c_scanner", "kw", json.__name__):
            found = await tools.run(Symbols(name=name, references=True))
            ours = {(one.file, one.line) for one in found.references}
            assert ours == {
                (file.relative_to(tmp_path).as_posix(), line)
                for file, walk in naive.items()
                for used, line in walk.uses
                if used == name
            }
            assert all(name in one.text for one in found.references)

    run_with(tmp_path, test)


FILES = ["a.py", "b.py", "d/a.py", "d/e/c.py", "n.txt"]
CONTENTS = ["x = 1\n", "x = 2\n", "def f(): x\n", "class C:\n  y = f\n", "broken(", ""]
EDITS = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(FILES), st.sampled_from(CONTENTS)),
    st.tuples(st.just("delete"), st.sampled_from(FILES), st.just("")),
    st.tuples(st.just("rename"), st.sampled_from(FILES), st.sampled_from(FILES)),
    st.tuples(st.just("touch"), st.sampled_from(FILES), st.just("")),
    st.tuples(st.just("ask"), st.sampled_from([".", "d"]), st.just("")),
)


def apply(tree: Path, action: str, name: str, argument: str) -> None:
    file = tree / name
    match action:
        case "write":
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(argument)
        case "delete":
            file.unlink(missing_ok=True)
        case "rename" if file.exists():
            (tree / argument).parent.mkdir(parents=True, exist_ok=True)
            file.rename(tree / argument)
        case "touch" if file.exists():
            os.utime(file)
        case _:
            pass


@pytest.mark.timeout(120)
@pytest.mark.parametrize("start", [notify, no_watch])
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(edits=st.lists(EDITS, min_size=1, max_size=12))
def test_after_any_edits_the_index_is_that_of_a_fresh_one(
    tmp_path_factory: pytest.TempPathFactory,
    start: Callable[[list[str]], Notifier],
    edits: list[tuple[str, str, str]],
) -> None:
    tree = tmp_path_factory.mktemp("tree")
    (tree / "d").mkdir()
    wanted = Symbols(name="x", references=True)

    async def test(tools: SymbolTools) -> None:
        for action, name, argument in edits:
            apply(tree, action, name, argument)
            if action == "ask" and (tree / name).exists():
                await tools.run(Symbols(path=name))
        async with opened(tree, no_watch) as fresh:
            expected = [await fresh.run(Symbols()), await fresh.run(wanted)]
        deadline = time.monotonic() + PATIENCE
        while (found := [await tools.run(Symbols()), await tools.run(wanted)]) != expected:
            assert start is notify, found
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.002)

    run_with(tree, test, start=start)
