"""Programs that read a project: in the sandbox where there is one, and what they see there."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import pytest

from punie_protocol.errors import Denied, ToolFailed
from punie_protocol.isolation import SandboxSettings
from punie_protocol.tools_checks import RuffCheck, RuffCheckResult, Typecheck, TypecheckResult
from punie_protocol.tools_files import ListFiles, ListFilesResult, Search
from punie_protocol.tools_git import GitStatus, GitStatusResult
from punie_workers.checkers import Checkers
from punie_workers.file_tools import FileTools
from punie_workers.git_tools import GitTools
from punie_workers.halves import Halves
from punie_workers.programs import Kinds, Output, Program
from punie_workers.readers import Folder, Reader, nowhere
from tests.support.checking import ask, refusal, script, write
from tests.support.repositories import Repository

SHELL = Program(name="sh", kinds=Kinds("missing", "failed", "output"), timeout=10.0, limit=10_000)
SEEN = {"a.py": "import os\n", ".gitignore": "ignored.py\n", "ignored.py": "import os\n"}


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("homes") / "ada"  # what is beside it is nobody else's
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


def printed(
    root: Path,
    text: str,
    environment: Mapping[str, str] | None = None,
    settings: SandboxSettings | None = None,
    hidden: Sequence[str] = (),
) -> str:
    """Return what a shell text prints as a reader of `root`."""

    async def work(halves: Halves) -> Output:
        reader = Reader(halves, settings or SandboxSettings(), hidden)
        async with FileTools(halves).directory(".") as folder:
            command = ["/bin/sh", "-c", text]
            return await reader.run(SHELL, command, Folder(folder.fd, ""), environment)

    return ask(root, work).data.decode()


def test_nothing_but_the_project_is_seen(tmp_path: Path, home: Path) -> None:
    root = write(tmp_path / "project", {"a.txt": "inside\n"})
    write(tmp_path, {"outside.txt": "outside\n"})
    write(home, {".netrc": "outside\n"})
    places = f"a.txt ../outside.txt {tmp_path}/outside.txt {home}/.netrc /etc/passwd"
    assert printed(root, f"cat {places} 2>/dev/null") == "inside\n"
    assert printed(root, "echo x >b.txt; pwd") == f"{root}\n"
    assert not (root / "b.txt").exists(), "the project is read-only"


def test_what_settings_show_is_seen_and_what_is_hidden_is_not(tmp_path: Path) -> None:
    root = write(tmp_path / "project", {"state/token": "hidden\n"})
    write(tmp_path, {"more/a.txt": "shown\n", "more/state/b.txt": "hidden\n"})
    text = f"cat {tmp_path}/more/a.txt; cat state/token {tmp_path}/more/state/b.txt"
    settings = SandboxSettings(read=[str(tmp_path / "more")])
    hidden = [str(root / "state"), str(tmp_path / "more" / "state")]
    assert printed(root, f"({text}) 2>/dev/null", settings=settings, hidden=hidden) == "shown\n"


def test_the_environment_is_the_programs_and_the_home_the_sandboxs(
    tmp_path: Path, home: Path
) -> None:
    root = write(tmp_path / "project", {"a.txt": ""})
    given = {"LC_ALL": "C", "HOME": "/elsewhere", "GIT_DIR": "/x"}
    said = printed(root, "echo $LC_ALL $HOME $GIT_DIR $TMPDIR", given)
    assert said == f"C {home} /x /tmp\n"


def test_a_home_folder_as_a_project_is_read_without_a_sandbox(home: Path) -> None:
    write(home, SEEN)
    for root in (home, home.parent):
        assert "a.py" in printed(root, "find . -name a.py")


def test_a_project_in_what_is_hidden_is_not_read(tmp_path: Path) -> None:
    root = write(tmp_path / "project", SEEN)

    async def search(halves: Halves) -> object:
        return await FileTools(halves, Reader(halves, hidden=[str(tmp_path)])).run(Search("os"))

    assert isinstance(refusal(root, search), Denied)


@pytest.mark.parametrize("path", [".", "sub"])
def test_both_ways_list_the_same(tmp_path: Path, path: str) -> None:
    root = write(tmp_path / "project", SEEN | {f"sub/{name}": text for name, text in SEEN.items()})

    def listed(reader: Callable[[Halves], Reader]) -> ListFilesResult:
        async def work(halves: Halves) -> ListFilesResult:
            found = await FileTools(halves, reader(halves)).run(ListFiles(path=path))
            assert isinstance(found, ListFilesResult)
            return found

        return ask(root, work)

    assert listed(Reader) == listed(lambda halves: Reader(halves, find=nowhere))


def test_a_project_in_a_repository_obeys_what_stands_above(tmp_path: Path, home: Path) -> None:
    repository = Repository(tmp_path / "repo")
    above = {".gitignore": "*.log\n", "pyproject.toml": "[tool.ruff.lint]\nselect = ['F']\n"}
    repository.commit(above | {"other/b.py": "b\n", "own/a.py": "import os\nx = 1\n"})
    write(repository.root, {"own/new.log": "", "own/new.py": "l = 1\n", "other/b.py": "c\n"})
    write(home, {".config/git/ignore": "*.tmp\n", "own/x.tmp": ""})
    root = write(repository.root / "own", {"x.tmp": ""})

    async def work(halves: Halves) -> tuple[object, object]:
        reader = Reader(halves)
        git, checkers = GitTools(halves, reader=reader), Checkers(halves, reader=reader)
        return await git.run(GitStatus()), await checkers.run(RuffCheck())

    status, style = ask(root, work)
    assert isinstance(status, GitStatusResult)
    assert isinstance(style, RuffCheckResult)
    assert [change.file for change in status.files] == ["new.py"]
    assert {found.code for found in style.violations} == {"F401"}


def test_a_link_above_the_project_has_nothing_shown(tmp_path: Path) -> None:
    root = write(tmp_path / "around" / "project", {"a.py": "import os\n"})
    write(tmp_path, {"secret": "secret = unquoted\n"})
    (tmp_path / "around" / "ruff.toml").symlink_to(tmp_path / "secret")

    async def work(halves: Halves) -> object:
        return await Checkers(halves, reader=Reader(halves)).run(RuffCheck())

    found = ask(root, work)
    assert isinstance(found, RuffCheckResult)
    assert [one.code for one in found.violations] == ["F401"], "as if there were no such file"


def test_git_works_in_a_linked_work_tree(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repo")
    repository.commit({"a.txt": "a\n"})
    repository.git("worktree", "add", "--quiet", str(tmp_path / "tree"))
    write(tmp_path / "tree", {"a.txt": "b\n"})

    async def work(halves: Halves) -> object:
        return await GitTools(halves, reader=Reader(halves)).run(GitStatus())

    status = ask(tmp_path / "tree", work)
    assert isinstance(status, GitStatusResult)
    assert [change.file for change in status.files] == ["a.txt"]


def test_ty_finds_the_packages_of_the_projects_environment(tmp_path: Path) -> None:
    site = ".venv/lib/python3.14/site-packages"
    files = {f"{site}/thing/__init__.py": "def f() -> int: ...\n", f"{site}/thing/py.typed": ""}
    files |= {".venv/pyvenv.cfg": "home = /usr/bin\nversion = 3.14.0\n", "a.py": "import thing\n"}
    root = write(tmp_path / "project", files | {"pyproject.toml": "[project]\nname = 'x'\n"})

    async def work(halves: Halves) -> object:
        return await Checkers(halves, reader=Reader(halves)).run(Typecheck("a.py"))

    found = ask(root, work)
    assert isinstance(found, TypecheckResult)
    assert found.ok, found


def test_a_sandbox_that_fails_is_not_a_search_without_matches(tmp_path: Path) -> None:
    program = script(tmp_path / "bin" / "sh", "echo 'bwrap: No permissions' >&2; exit 1")

    async def work(halves: Halves) -> object:
        reader = Reader(halves)
        async with FileTools(halves).directory(".") as folder:
            return await reader.run(SHELL, [str(program)], Folder(folder.fd, ""))

    error = refusal(write(tmp_path / "project", SEEN), work)
    assert isinstance(error, ToolFailed)
    assert (error.kind, "No permissions" in error.message) == ("sandbox", True)


def test_cancelled_nothing_is_left(tmp_path: Path) -> None:
    """The leak check sees processes and descriptors."""
    root = write(tmp_path / "project", SEEN)

    async def work(halves: Halves) -> None:
        for delay in (0.0, 0.001, 0.01, 0.05):
            async with FileTools(halves).directory(".") as folder:
                wait = Reader(halves).run(SHELL, ["/bin/sleep", "60"], Folder(folder.fd, ""))
                await _cancelled(wait, delay)

    ask(root, work)


async def _cancelled(work: Awaitable[object], delay: float) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(delay):
            await work
