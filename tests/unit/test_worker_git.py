"""Git: what the three tools tell of real repositories, and that a hostile one gets nothing run."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from punie_protocol.errors import ToolFailed
from punie_protocol.limits import MAX_TOOL_OUTPUT
from punie_protocol.tool_types import Arguments
from punie_protocol.tools_git import (
    GitDiff,
    GitDiffResult,
    GitLog,
    GitLogResult,
    GitStatus,
    GitStatusResult,
)
from punie_workers import git_guard, git_tools
from punie_workers.git_guard import GUARDS, Where
from punie_workers.git_tools import GitTools, endpoints
from tests.support.checking import ask, refusal, script, snapshot, write
from tests.support.hostile_repository import FILES, Hostile
from tests.support.repositories import Repository

EVERY_CALL: tuple[Arguments, ...] = (
    GitStatus(),
    GitDiff(),
    GitDiff(staged=True),
    GitDiff(revision="HEAD"),
    GitDiff(revision="HEAD~1..HEAD"),
    GitDiff("a.txt"),
    GitLog(),
    GitLog("a.txt"),
    GitLog(revision="HEAD"),
)


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repo")


def status(root: Path, path: str = ".", limit: int = 500) -> GitStatusResult:
    result = ask(root, lambda halves: GitTools(halves).run(GitStatus(path, limit)))
    assert isinstance(result, GitStatusResult)
    return result


def diff(root: Path, path: str = ".", *, staged: bool = False, revision: str = "") -> GitDiffResult:
    result = ask(root, lambda halves: GitTools(halves).run(GitDiff(path, staged, revision)))
    assert isinstance(result, GitDiffResult)
    return result


def log(root: Path, path: str = ".", limit: int = 20, revision: str = "") -> GitLogResult:
    result = ask(root, lambda halves: GitTools(halves).run(GitLog(path, limit, revision)))
    assert isinstance(result, GitLogResult)
    return result


def failure(root: Path, call: Arguments, program: str | None = None) -> ToolFailed:
    find: Callable[[str], str] = git_guard.find if program is None else lambda _: program
    error = refusal(root, lambda halves: GitTools(halves, find).run(call))
    assert isinstance(error, ToolFailed), error
    return error


def states(result: GitStatusResult) -> dict[str, tuple[str, str]]:
    return {entry.file: (entry.staged, entry.unstaged) for entry in result.files}


# what they tell


def test_a_repository_without_a_commit(repo: Repository) -> None:
    write(repo.root, {"a.txt": "a\n", "b.txt": "b\n"})
    repo.git("add", "a.txt")
    empty = status(repo.root)
    assert (empty.branch, empty.head, empty.clean) == ("main", "", False)
    assert states(empty) == {"a.txt": ("added", ""), "b.txt": ("", "untracked")}
    assert log(repo.root) == GitLogResult(truncated=False, commits=[])
    assert [file.file for file in diff(repo.root, staged=True).files] == ["a.txt"]
    assert diff(repo.root).files == []
    assert failure(repo.root, GitLog(revision="HEAD")).kind == "unknown_revision"


def test_a_clean_one_and_each_kind_of_change(repo: Repository) -> None:
    text = "".join(f"{number}\n" for number in range(50))
    files = {"kept": "1\n", "gone": "1\n", "old": text, "mode": "1\n", "type": "1\n", "both": "1\n"}
    head = repo.commit(files)
    assert status(repo.root) == GitStatusResult(
        branch="main", head=head, upstream="", ahead=0, behind=0,
        clean=True, change_count=0, truncated=False, files=[],
    )  # fmt: skip
    repo.git("mv", "old", "new name")
    repo.git("rm", "-q", "gone")
    write(repo.root, {"both": "2\n"})
    repo.git("add", "both")
    write(repo.root, {"both": "3\n", "kept": "2\n", "folder/fresh": "\n", "intent": "\n"})
    (repo.root / "mode").chmod(0o755)
    (repo.root / "type").unlink()
    (repo.root / "type").symlink_to("kept")
    repo.git("add", "--intent-to-add", "intent")
    now = status(repo.root)
    assert states(now) == {
        "both": ("modified", "modified"),
        "folder/fresh": ("", "untracked"),
        "gone": ("deleted", ""),
        "intent": ("", "added"),
        "kept": ("", "modified"),
        "mode": ("", "modified"),
        "new name": ("renamed", ""),
        "type": ("", "type_changed"),
    }
    assert {entry.file: entry.renamed_from for entry in now.files if entry.renamed_from} == {
        "new name": "old"
    }
    staged = diff(repo.root, staged=True)
    assert {file.file: (file.status, file.renamed_from) for file in staged.files} == {
        "both": ("modified", ""), "gone": ("deleted", ""), "new name": ("renamed", "old"),
    }  # fmt: skip
    cut = status(repo.root, limit=3)
    assert (len(cut.files), cut.change_count, cut.truncated) == (3, 8, True)


def test_upstream_ahead_and_behind(repo: Repository) -> None:
    first = repo.commit({"a": "1\n"})
    repo.git("branch", "trunk")
    repo.git("branch", "--set-upstream-to=trunk")
    repo.commit({"a": "2\n"})
    repo.commit({"a": "3\n"})
    repo.git("update-ref", "refs/heads/trunk", repo.git("commit-tree", "-mx", "-p", first,
             f"{first}^{{tree}}").strip())  # fmt: skip
    found = status(repo.root)
    assert (found.upstream, found.ahead, found.behind) == ("trunk", 2, 1)
    repo.git("update-ref", "-d", "refs/heads/trunk")
    found = status(repo.root)
    assert (found.upstream, found.ahead, found.behind) == ("trunk", 0, 0)


def test_a_detached_head(repo: Repository) -> None:
    first = repo.commit({"a": "1\n"})
    repo.commit({"a": "2\n"})
    repo.git("checkout", "--quiet", "--detach", first)
    found = status(repo.root)
    assert (found.branch, found.head, found.upstream) == ("", first, "")


def test_a_conflict_and_a_binary_file(repo: Repository) -> None:
    base = repo.commit({"a": "1\n", "keep": "1\n"})
    repo.commit({"a": "2\n"})
    repo.git("checkout", "--quiet", "-b", "other", base)
    repo.commit({"a": "3\n"})
    repo.git("merge", "main", check=False)
    (repo.root / "keep").write_bytes(b"\0\1")
    assert states(status(repo.root)) == {
        "a": ("conflicted", "conflicted"), "keep": ("", "modified"),
    }  # fmt: skip
    found = diff(repo.root)
    assert [(file.file, file.status, file.binary) for file in found.files] == [
        ("a", "conflicted", False), ("keep", "modified", True),
    ]  # fmt: skip
    assert "+<<<<<<< HEAD" in found.diff
    assert "Binary files" in found.diff
    assert found.added == found.files[0].added == 4


def test_names_that_are_no_text(repo: Repository) -> None:
    raw = os.fsencode(repo.root)
    for name in (b"\xff.txt", b"\xfe.txt", "é ü.txt".encode(), b"tab\tline\n.txt", b'"quoted".txt'):
        Path(os.fsdecode(raw + b"/" + name)).write_text("1\n")
    repo.commit({})
    for path in repo.root.iterdir():
        if path.is_file():
            path.write_text("2\n3\n")
    names = {"\ufffd.txt", "é ü.txt", "tab\tline\n.txt", '"quoted".txt'}
    found = status(repo.root)
    assert (found.change_count, {entry.file for entry in found.files}) == (5, names)
    changed = diff(repo.root)
    assert (changed.file_count, {file.file for file in changed.files}) == (5, names)
    assert (changed.added, changed.removed) == (10, 5)
    assert diff(repo.root, "\udcff.txt").file_count == 1


def test_a_diff_against_a_revision_and_of_a_path(repo: Repository) -> None:
    first = repo.commit({"a": "1\n", "sub/b": "1\n"})
    repo.git("tag", "v1")
    second = repo.commit({"a": "2\n", "sub/b": "2\n"})
    write(repo.root, {"a": "3\n"})
    assert [file.file for file in diff(repo.root).files] == ["a"]
    assert diff(repo.root, staged=True).files == []
    assert [file.file for file in diff(repo.root, revision="v1").files] == ["a", "sub/b"]
    assert [file.file for file in diff(repo.root, revision="v1", staged=True).files] == [
        "a", "sub/b",
    ]  # fmt: skip
    assert [file.file for file in diff(repo.root, "sub", revision=first[:9]).files] == ["sub/b"]
    assert "+2\n" in diff(repo.root, "a", revision="v1..main").diff
    assert diff(repo.root, revision="v1...") == diff(repo.root, revision=f"v1..{second}")
    assert diff(repo.root, revision="HEAD..v1", path="a").diff.endswith("-2\n+1\n")
    (repo.root / "a").unlink()
    shutil.rmtree(repo.root / "sub")
    gone = diff(repo.root, "sub/b")
    assert [(file.file, file.status) for file in gone.files] == [("sub/b", "deleted")]


def test_a_name_with_a_mistake_in_it_is_not_clean(repo: Repository) -> None:
    repo.commit({"src/a.py": "1\n", "old.py": "1\n"})
    for call in (GitStatus("scr"), GitDiff("scr"), GitLog("scr"), GitStatus("src/a.py/x")):
        assert failure(repo.root, call).kind == "not_found", call
    (repo.root / "old.py").unlink()
    assert states(status(repo.root, "old.py")) == {"old.py": ("", "deleted")}
    assert len(log(repo.root, "old.py").commits) == 1


def test_a_file_that_was_only_touched_is_no_difference(repo: Repository) -> None:
    repo.root.joinpath("image").write_bytes(b"\0\1")
    repo.commit({"a": "1\n", "b": "1\n"})
    for name in ("a", "image"):
        os.utime(repo.root / name, (1, 1))
    before = snapshot(repo.root / ".git")
    assert diff(repo.root).files == []
    assert status(repo.root).clean
    assert diff(repo.root, revision="HEAD").files == []
    assert snapshot(repo.root / ".git") == before
    repo.git("diff")
    assert snapshot(repo.root / ".git") != before, "a plain diff would have written the index"


def test_a_file_without_a_count_that_did_change_is_one(repo: Repository) -> None:
    """Beside files that were only touched."""
    repo.root.joinpath("image").write_bytes(b"\0\1")
    repo.root.joinpath("odd\nname").write_bytes(b"\0\1")
    repo.commit({"run": "1\n", "old": "9\n", "touched": "1\n"})
    (repo.root / "image").write_bytes(b"\0\2")
    (repo.root / "run").chmod(0o755)
    write(repo.root, {"new": ""})
    repo.git("add", "--intent-to-add", "new")
    (repo.root / "old").unlink()
    for name in ("touched", "odd\nname"):
        os.utime(repo.root / name, (1, 1))
    for revision in ("", "HEAD"):
        found = {file.file: file.status for file in diff(repo.root, revision=revision).files}
        assert found.pop("odd\nname") == "modified", "git quotes its name: nobody looks closer"
        assert found == {
            "image": "modified", "run": "modified", "new": "added", "old": "deleted",
        }  # fmt: skip


def test_a_long_diff_is_cut_between_lines(repo: Repository) -> None:
    repo.commit({"a": "1\n"})
    write(repo.root, {"a": "é" * 60 + "\n" + ("é" * 100 + "\n") * 2000})
    found = diff(repo.root)
    assert found.truncated
    assert found.diff.endswith("é\n")
    assert MAX_TOOL_OUTPUT - 300 < len(found.diff.encode()) <= MAX_TOOL_OUTPUT
    assert (found.file_count, found.added) == (1, 2001)


def test_a_diff_beyond_what_is_read_still_lists_its_files(repo: Repository) -> None:
    repo.commit({"a": "1\n", "b": "1\n"})
    write(repo.root, {"a": ("x" * 99 + "\n") * 200_000, "b": "2\n"})
    assert (repo.root / "a").stat().st_size > git_tools.MAX_OUTPUT
    found = diff(repo.root)
    assert found.truncated
    assert [file.file for file in found.files] == ["a", "b"]


def test_the_log_and_its_fields(repo: Repository) -> None:
    first = repo.commit({"a": "1\n"}, "First")
    second = repo.commit({"b": "1\n"}, "Secönd line\n\nA body\x1f with\n\n  several lines.\n\n")
    found = log(repo.root)
    assert [commit.hash for commit in found.commits] == [second, first]
    newest = found.commits[0]
    assert (newest.author, newest.date) == ("Ada", "2026-01-02T03:04:05+01:00")
    assert newest.subject == "Secönd line"
    assert newest.body == "A body\x1f with\n\n  several lines."
    assert not found.truncated
    cut = log(repo.root, limit=1)
    assert ([commit.hash for commit in cut.commits], cut.truncated) == ([second], True)
    assert [commit.hash for commit in log(repo.root, "a").commits] == [first]
    assert [commit.hash for commit in log(repo.root, revision="HEAD~1").commits] == [first]
    assert [commit.hash for commit in log(repo.root, revision="HEAD~1..").commits] == [second]


def test_a_project_that_is_a_folder_of_a_repository_sees_itself(repo: Repository) -> None:
    text = "".join(f"{number}\n" for number in range(50))
    repo.commit({"sub/in/a": "1\n", "other/secret": "1\n", "sub2/x": "1\n", "moved": text}, "First")
    repo.commit({"other/secret": "2\n"}, "Elsewhere")
    second = repo.commit({"sub/in/a": "2\n"}, "Here")
    write(repo.root, {"sub/in/a": "3\n", "other/secret": "3\n", "sub/new": "\n", "top": "\n"})
    repo.git("mv", "moved", "sub/moved")
    project = repo.root / "sub"
    assert states(status(project)) == {
        "in/a": ("", "modified"), "moved": ("added", ""), "new": ("", "untracked"),
    }  # fmt: skip
    assert [file.file for file in diff(project).files] == ["in/a"]
    assert "--- a/in/a\n" in diff(project).diff
    assert "secret" not in diff(project, revision="HEAD~2").diff
    assert [commit.subject for commit in log(project).commits] == ["Here", "First"]
    assert [commit.hash for commit in log(project, "in", limit=1).commits] == [second]
    assert states(status(project, "in")) == {"in/a": ("", "modified")}
    for call in (GitDiff("../other"), GitStatus(str(repo.root)), GitLog("x/../../other")):
        assert failure(project, call).kind == "outside_root"
    assert failure(project, GitDiff(revision="HEAD:../other/secret")).kind == "invalid_revision"


def test_a_linked_work_tree(repo: Repository, tmp_path: Path) -> None:
    repo.commit({"a": "1\n"})
    linked = tmp_path / "linked"
    repo.git("worktree", "add", "--quiet", "-b", "side", str(linked))
    write(linked, {"a": "2\n"})
    assert (status(linked).branch, states(status(linked))) == ("side", {"a": ("", "modified")})
    assert [file.file for file in diff(linked).files] == ["a"]
    assert status(repo.root).clean


def test_the_users_own_ignore_file_counts(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.commit({"a": "1\n"})
    write(repo.root, {"x.swp": "", "y.txt": ""})
    home = write(tmp_path / "home", {"ignored": "*.swp\n"})
    write(home, {".gitconfig": f"[core]\nexcludesFile = {home}/ignored\n[status]\nshort = true\n"})
    monkeypatch.setenv("HOME", str(home))
    assert states(status(repo.root)) == {"y.txt": ("", "untracked")}


# what cannot be told


def test_no_repository(tmp_path: Path) -> None:
    root = write(tmp_path / "root", {"a.txt": "a\n"})
    for call in EVERY_CALL:
        assert failure(root, call).kind == "not_a_repository", call
    (root / ".git").mkdir()
    for call in EVERY_CALL:
        assert failure(root, call).kind == "not_a_repository", call
    (root / ".git").rmdir()
    (root / ".git").write_text("gitdir: /nowhere\n")
    for call in EVERY_CALL:
        assert failure(root, call).kind == "not_a_repository", call


def test_a_broken_repository_above_is_not_passed_over(repo: Repository) -> None:
    """Git would look further up, and find a repository that is not this project's."""
    repo.commit({"inner/a.txt": "1\n"})
    (repo.root / "inner" / ".git").mkdir()
    assert failure(repo.root / "inner", GitStatus()).kind == "not_a_repository"


@pytest.mark.parametrize(
    "revision",
    ["-p", "--output=x", "--no-index", "HEAD..--output=x", "-1..HEAD", "HEAD:a.txt", "a b", "a\nb",
     "a\0b", "\ud800"],
)  # fmt: skip
def test_a_revision_that_is_an_option_or_a_file_is_refused(revision: str, repo: Repository) -> None:
    repo.commit({"a.txt": "1\n"})
    for call in (GitDiff(revision=revision), GitLog(revision=revision)):
        assert failure(repo.root, call).kind == "invalid_revision"
    assert sorted(path.name for path in repo.root.iterdir()) == [".git", "a.txt"]


@pytest.mark.parametrize(
    "revision", ["nope", "a.txt", "HEAD..nope", "/etc/passwd", "HEAD~99", "^HEAD"]
)
def test_a_revision_that_names_no_commit(revision: str, repo: Repository) -> None:
    repo.commit({"a.txt": "1\n"})
    write(repo.root, {"nope^{commit}": "\n"})
    for call in (GitDiff(revision=revision), GitLog(revision=revision)):
        error = failure(repo.root, call)
        assert error.kind == "unknown_revision"
        assert error.hint


def test_a_staged_diff_of_a_range_is_refused(repo: Repository) -> None:
    repo.commit({"a.txt": "1\n"})
    call = GitDiff(staged=True, revision="HEAD..HEAD")
    assert failure(repo.root, call).kind == "invalid_revision"


def test_ends_of_a_range() -> None:
    assert endpoints("") == ([], "")
    assert endpoints("main") == (["main"], "")
    assert endpoints("a..b") == (["a", "b"], "..")
    assert endpoints("a...b") == (["a", "b"], "...")
    assert endpoints("..b") == (["HEAD", "b"], "..")
    assert endpoints("HEAD@{1}~2") == (["HEAD@{1}~2"], "")


SPOILT = {
    "crash": ("kill -SEGV $$", "git_failed", "SIGSEGV"),
    "fatal": ("echo 'fatal: index file corrupt' >&2; exit 128", "git_failed", "index file corrupt"),
}


@pytest.mark.parametrize("spoilt", sorted(SPOILT))
def test_a_git_that_fails(spoilt: str, repo: Repository, tmp_path: Path) -> None:
    repo.commit({"a.txt": "1\n"})
    repo.commit({"a.txt": "2\n"})
    lines, kind, words = SPOILT[spoilt]
    program = script(tmp_path / "bin" / "git", lines)
    for call in EVERY_CALL:
        error = failure(repo.root, call, str(program))
        assert (error.kind, words in error.message) == (kind, True), error


def test_a_git_that_is_missing_or_prints_rubbish(repo: Repository, tmp_path: Path) -> None:
    repo.commit({"a.txt": "1\n"})
    repo.commit({"a.txt": "2\n"})
    real = git_guard.find(str(repo.root))
    for command, line in {"status": "hello", "diff": ":100 x", "log": "a\\0b\\0"}.items():
        lines = f'for word; do case $word in {command}) printf "{line}"; exit 0;; esac; done'
        program = script(tmp_path / "bin" / "git", f'{lines}\nexec "{real}" "$@"')
        call = {"status": GitStatus(), "diff": GitDiff(), "log": GitLog()}[command]
        assert failure(repo.root, call, str(program)).kind == "git_output", command
    for call in EVERY_CALL:
        assert failure(repo.root, call, str(tmp_path / "none")).kind == "git_missing"


def test_a_git_too_old_for_the_guards_is_refused(repo: Repository, tmp_path: Path) -> None:
    repo.commit({"a.txt": "1\n"})
    real = git_guard.find(str(repo.root))
    program = script(tmp_path / "bin" / "git", f'unset GIT_CONFIG_COUNT\nexec "{real}" "$@"')
    assert "2.31" in failure(repo.root, GitStatus(), str(program)).message


def test_a_git_of_the_project_is_not_taken(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "ran"
    script(repo.root / "bin" / "git", f'echo ran >"{marker}"')
    (tmp_path / "link").symlink_to(repo.root / "bin")
    path = f"bin:.:{repo.root / 'bin'}:{tmp_path / 'link'}:{os.environ['PATH']}"
    monkeypatch.chdir(repo.root)
    monkeypatch.setenv("PATH", path)
    assert status(repo.root).branch == "main"
    assert not marker.exists()


# what they must not do


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    return Hostile(tmp_path_factory.mktemp("hostile"))


def test_a_hostile_repository_gets_nothing_run_and_nothing_written(
    hostile: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in hostile.environment.items():
        monkeypatch.setenv(name, value)
    hostile.arm()
    before = snapshot(hostile.root)
    for call in EVERY_CALL:
        if call == GitDiff(revision="HEAD~1..HEAD"):  # it needs the blob that is not there
            assert failure(hostile.root, call).kind == "git_failed"
        else:
            ask(hostile.root, lambda halves, call=call: GitTools(halves).run(call))
        assert hostile.marks() == [], call
    assert snapshot(hostile.root) == before
    assert states(status(hostile.root))["a.txt"][1] == "modified"


def test_the_hostile_repository_is_potent(hostile: Hostile) -> None:
    """A plain git runs what the repository names: what is said above is no empty word."""
    hostile.arm()
    hostile.plain("status", "--", "module")
    unwatched = ("-c", "core.fsmonitor=false")  # ours says that nothing changed
    for arguments in (
        *(("diff", "--", name) for name in FILES),
        ("diff", "--no-ext-diff", "a.txt"), ("log",), ("update-ref", "refs/heads/side", "HEAD"),
        ("-c", "protocol.file.allow=always", "cat-file", "-p", hostile.missing),
    ):  # fmt: skip
        hostile.plain(*unwatched, *arguments)
    assert set(hostile.marks()) >= hostile.expected, hostile.marks()


def test_a_work_tree_elsewhere_is_not_believed(repo: Repository, tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", {"a.txt": "secret\n", "private": ""})
    repo.commit({"a.txt": "1\n"})
    repo.git("config", "core.worktree", str(elsewhere))
    assert "secret" in repo.git("diff"), "the fixture is potent"
    assert diff(repo.root).files == []
    assert status(repo.root).clean


def test_a_tracked_folder_that_looks_like_a_repository_is_none(repo: Repository) -> None:
    repo.commit({"a.txt": "1\n", "bare/x": "1\n"})
    other = Repository(repo.root.parent / "other")
    other.commit({"b.txt": "1\n"}, "Not ours")
    shutil.copytree(other.root / ".git", repo.root / "bare", dirs_exist_ok=True)
    assert "Not ours" in repo.git("-C", "bare", "log"), "the fixture is potent"
    project = repo.root / "bare"
    error = failure(project, GitLog())
    assert "bare" in error.message


def test_every_guard_has_a_reason_and_stands_once() -> None:
    assert all(guard.why for guard in GUARDS)
    places = [(guard.where, guard.name) for guard in GUARDS]
    assert len(places) == len(set(places))
    assert {guard.where for guard in GUARDS} == set(Where)
