"""Tools and Code Mode on real files, through a real worker process."""

import asyncio
import os
import shutil
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from punie_protocol.messages.common import Isolation
from punie_protocol.messages.to_supervisor import ProjectFailed, ProjectReady
from tests.support.repositories import Repository
from tests.support.worker_case import running

MANY = 1200


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with most of what can be in one."""
    root = tmp_path / "project"
    (root / "src" / "deep").mkdir(parents=True)
    (root / "ignored").mkdir()
    (root / "own").mkdir()
    (root / ".hidden").mkdir()
    (root / "src" / "__pycache__").mkdir()
    (root / "src" / "__pycache__" / "a.cpython-314.pyc").write_bytes(b"needle")
    (root / ".gitignore").write_text("ignored/\n*.log\n")
    (root / ".punieignore").write_text("own/\n")
    (root / "src" / "a.py").write_text("class A(ValueError):\n    pass\n")
    (root / "src" / "deep" / "b.py").write_text("class B:\n    x = '--files'\n")
    (root / "src" / "win.txt").write_bytes(b"one\r\ntwo\r\n")
    (root / "src" / "long.txt").write_text("needle" + "x" * 100_000 + "\n")
    (root / "naïve ☃.md").write_text("# Snow\nneedle\n", encoding="utf-8")
    (root / "app.log").write_text("needle\n")
    for folder in ("ignored", "own", ".hidden"):
        (root / folder / "x.py").write_text("class X: needle\n")
    (root / "logo.png").write_bytes(b"\x89PNG\x00\x00needle")
    (root / "latin.txt").write_bytes(b"caf\xe9 needle\n")
    Path(os.fsdecode(os.fsencode(root) + b"/src/n\xff.py")).write_text("class N: pass\n")
    (root / "big.txt").write_bytes(b"x" * (2 * 1024 * 1024 + 1))
    os.mkfifo(root / "pipe")
    (tmp_path / "secret.txt").write_text("secret needle\n")
    (root / "file-out").symlink_to(tmp_path / "secret.txt")
    (root / "folder-out").symlink_to(tmp_path)
    (root / "up-out").symlink_to("../secret.txt")
    (root / "loop").symlink_to("loop")
    (root / "link-in").symlink_to("src/a.py")
    (root / "absolute-in").symlink_to(root / "src")
    return root


def test_paths_stay_inside_and_errors_have_their_words(tmp_path: Path, root: Path) -> None:
    cases = {
        "docs/x.md": "not_found: no file 'docs/x.md' in this project",
        "../secret.txt": "outside_root: '../secret.txt' is outside this project",
        "src/../../secret.txt": "outside_root: 'src/../../secret.txt' is outside this project",
        "/etc/passwd": "outside_root: '/etc/passwd' is outside this project",
        "file-out": "outside_root: 'file-out' is outside this project",
        "folder-out/secret.txt": "outside_root: 'folder-out/secret.txt' is outside this project",
        "up-out": "outside_root: 'up-out' is outside this project",
        "loop": "io: 'loop': too many symbolic links",
        "src": "not_a_file: 'src' is a folder, not a file",
        "pipe": "not_a_file: 'pipe' is a special file, not a file",
        "logo.png": "not_text: 'logo.png' is not a text file",
        "latin.txt": "not_text: 'latin.txt' is not a text file",
        "big.txt": "too_large: 'big.txt' is larger than 2 MB",
        "src/a.py/x": "not_a_directory: a part of 'src/a.py/x' is not a folder",
    }

    async def main() -> None:
        async with running(tmp_path, root) as case:
            for path, expected in cases.items():
                turn, told = await case.tool("read_file", {"path": path})
                assert told == f"error: {expected}", path
                assert turn.tools()[0][2]["status"] == "failed"
            for path in ("src/a.py", "link-in", "absolute-in/a.py", str(root / "src" / "a.py")):
                _, told = await case.tool("read_file", {"path": path})
                assert msgspec.json.decode(told)["text"].startswith("class A"), path
            _, told = await case.tool("list_files", {"path": "folder-out"})
            assert told == "error: outside_root: 'folder-out' is outside this project"
            _, told = await case.tool("search", {"pattern": "x", "path": "src/a.py"})
            assert told == "error: not_a_directory: 'src/a.py' is a file, not a folder"

    asyncio.run(main())


def test_line_windows(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        text = "\ufeff" + "".join(f"{n}\n" for n in range(1, 11)) + "end"
        (root / "lines.txt").write_text(text)
        digest = sha256(text.encode()).hexdigest()[:16]
        async with running(tmp_path, root) as case:
            windows = [
                ((1, 3), "1\n2\n3\n", 1, 3, True),
                ((10, 5), "10\nend", 10, 11, False),
                ((12, 5), "", 12, 11, False),
            ]
            for (start, most), window, first, last, truncated in windows:
                _, told = await case.tool(
                    "read_file", {"path": "lines.txt", "start_line": start, "max_lines": most}
                )
                assert msgspec.json.decode(told) == {
                    "text": window,
                    "start_line": first,
                    "end_line": last,
                    "total_lines": 11,
                    "truncated": truncated,
                    "encoding": "utf-8-sig",
                    "content_hash": digest,
                }
            _, told = await case.tool("read_file", {"path": "src/win.txt"})
            read = msgspec.json.decode(told)
            assert (read["text"], read["encoding"]) == ("one\ntwo\n", "utf-8")

    asyncio.run(main())


def test_listing_and_searching(tmp_path: Path, root: Path) -> None:
    files = [
        "big.txt",
        "latin.txt",
        "logo.png",
        "naïve ☃.md",
        "src/a.py",
        "src/deep/b.py",
        "src/long.txt",
        "src/win.txt",
    ]
    listings = [
        ({}, files),
        ({"pattern": "*.py"}, ["src/a.py", "src/deep/b.py"]),
        ({"pattern": "*.{md,png}"}, ["logo.png", "naïve ☃.md"]),
        ({"pattern": "src/*.py"}, ["src/a.py"]),
        ({"pattern": "*.py", "path": "src/deep"}, ["src/deep/b.py"]),
        ({"pattern": "a.py", "path": "absolute-in"}, ["src/a.py"]),
        ({"pattern": "*.rs"}, []),
    ]
    searches = [
        ({"pattern": r"class \w+\("}, [("src/a.py", 1)]),
        ({"pattern": "--files"}, [("src/deep/b.py", 2)]),
        ({"pattern": "-e"}, []),
        ({"pattern": "NEEDLE", "ignore_case": True, "glob": "*.md"}, [("naïve ☃.md", 2)]),
        ({"pattern": "needle", "glob": "src/*"}, [("src/long.txt", 1)]),
        ({"pattern": "class", "path": "src/deep"}, [("src/deep/b.py", 1)]),
        ({"pattern": "secret"}, []),
        ({"pattern": "needle", "glob": "*.py"}, []),
        ({"pattern": "class", "glob": "{lib/a,deep/x}.py"}, []),
        ({"pattern": "class", "glob": "{src/a,x}.{py,md}"}, [("src/a.py", 1)]),
        ({"pattern": "class", "glob": "{a"}, []),
        ({"pattern": "class", "glob": "src/**/b.py"}, [("src/deep/b.py", 1)]),
    ]

    async def main() -> None:
        async with running(tmp_path, root) as case:
            for arguments, expected in listings:
                _, told = await case.tool("list_files", arguments)
                assert msgspec.json.decode(told)["files"] == expected, arguments
            _, told = await case.tool("list_files", {"pattern": "n*.py"})
            nameless = {"count": 1, "truncated": True, "files": []}
            assert msgspec.json.decode(told) == nameless, "a name that read_file does not take"
            for arguments, hits in searches:
                _, told = await case.tool("search", arguments)
                result = msgspec.json.decode(told)
                assert [(m["file"], m["line"]) for m in result["matches"]] == hits, arguments
            _, told = await case.tool("search", {"pattern": "needle", "limit": 1})
            result = msgspec.json.decode(told)
            assert (result["match_count"], result["truncated"]) == (3, True)
            assert len(result["matches"]) == 1
            _, told = await case.tool("search", {"pattern": "needle", "glob": "long.txt"})
            assert len(msgspec.json.decode(told)["matches"][0]["text"]) == 500
            _, told = await case.tool("search", {"pattern": "("})
            assert told == "error: invalid_pattern: regex parse error: unclosed group"
            turn, told = await case.tool("search", {"pattern": "a\0b"})
            assert told.startswith("error: invalid_pattern: a NUL")
            assert turn.text() == "done", "the turn went on"
            _, told = await case.tool("list_files", {"path": "nowhere"})
            assert told == "error: not_found: no folder 'nowhere' in this project"

    asyncio.run(main())


def test_programs_get_typed_results_and_show_their_calls(tmp_path: Path, root: Path) -> None:
    code = (
        'r = list_files("*.py")\nprint(r.count, r.files[0])\n'
        's = search("class", "*.py", limit=1)\nprint(s.matches[0].text, s.truncated)\n'
        "print(read_file(r.files[0]).total_lines)"
    )

    async def main() -> None:
        async with running(tmp_path, root) as case:
            turn, told = await case.tool("execute_code", {"code": code})
            assert told == "3 src/a.py\nclass A(ValueError): True\n2"
            tools = turn.tools()
            parent = turn.of("tool_call")[0]["toolCallId"]
            assert [(name, above) for name, above, _ in tools] == [
                ("list_files", parent),
                ("search", parent),
                ("read_file", parent),
                ("execute_code", None),
            ]
            assert tools[0][2]["rawOutput"]["count"] == 3
            assert {update["status"] for _, _, update in tools} == {"completed"}

    asyncio.run(main())


def test_what_programs_are_told(tmp_path: Path, root: Path) -> None:
    cases = {
        'read_file("docs/x.md")': "error: not_found: no file 'docs/x.md' in this project",
        'try:\n    read_file("x")\nexcept RuntimeError as e:\n    print(e)': (
            "not_found: no file 'x' in this project"
        ),
        "x = 1\nprint(y)": "error: type_check: Name `y` used when not defined (line 2)",
        "def f(:": "error: type_check: Expected a parameter",
        "a = [1]\nprint(a[5])": "error: IndexError: list index out of range (line 2)",
        "pass": "(no output)",
        "print('one')\nprint()": "one\n",
        "search('(')": "error: invalid_pattern: regex parse error: unclosed group",
        "list_files(limit=0)": "error: invalid_request: list_files: Expected `int` >= 1",
        "x = [0] * 100_000_000\nprint(len(x))": (
            "error: memory_limit: stopped: more than 256 MB of memory (keep less at once"
        ),
        "for _ in range(1001):\n    read_file('src/a.py')": (
            "error: call_limit: stopped, after the call in line 2: more than 1000 tool calls"
        ),
        "import os\nprint(os.listdir('/'))": (
            'error: unsupported: Path.iterdir: not available in here: use list_files("*.py").files'
        ),
        "print(open('/etc/passwd'))": "error: type_check: Name `open` used when not defined",
    }

    async def main() -> None:
        async with running(tmp_path, root) as case:
            for code, expected in cases.items():
                told = await case.code(code)
                assert told.startswith(expected), code
                assert "\n" not in told or not told.startswith("error"), code
            told = await case.code("for i in range(30000):\n    print('12345678')")
            assert "cut" in told.rsplit("\n", 1)[-1]
            assert 60_000 < len(told) < 70_000
            marker = "kept = 1\nprint(kept)"
            assert await case.code(marker) == "1"
            assert "type_check" in await case.code("print(kept)"), "state leaked between programs"

    asyncio.run(main())


def test_large_results_are_shown_cut_and_told_whole(tmp_path: Path, root: Path) -> None:
    """The clients' link bears a program that reads much."""
    (root / "much.txt").write_text(("x" * 99 + "\n") * 19_000)
    code = (
        "n = 0\nfor i in range(60):\n    n += len(read_file('much.txt', 1, 100000).text)\nprint(n)"
    )

    async def main() -> None:
        async with running(tmp_path, root) as case:
            turn, told = await case.tool("execute_code", {"code": code + "\n" + "#" * 100_000})
            assert told == str(60 * 1_900_000)
            reads = [update for name, _, update in turn.tools() if name == "read_file"]
            assert len(reads) == 60
            assert {update["status"] for update in reads} == {"completed"}
            assert reads[0]["rawOutput"]["total_lines"] == 19_000
            assert reads[0]["rawOutput"]["_cut"] > 1_800_000
            assert max(len(msgspec.json.encode(update)) for update in turn.updates) < 20_000

    asyncio.run(main())


def test_two_projects_in_one_worker_see_their_own_files(tmp_path: Path, root: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "only.py").write_text("class Other: pass\n")
    code = 'for f in list_files("*.py").files:\n    print(f)'

    async def main() -> None:
        async with running(tmp_path, root, isolation=Isolation.INTERPRETER) as case:
            worker = case.worker
            opened = await worker.open_project(other, "p2", Isolation.INTERPRETER)
            assert isinstance(opened, ProjectReady)
            assert opened.activate_ms > 0
            await worker.new_session("s2", "p2")
            assert await case.code(code, "s2") == "only.py"
            assert "only.py" not in await case.code(code)
            told = await case.code('read_file("../project/src/a.py")', "s2")
            outside = "error: outside_root: '../project/src/a.py' is outside this project"
            assert told == f"{outside} (line 1)"
            await worker.close_project("p2")
            turn = await worker.prompt("hello", "s2")
            assert turn.wire_error.message == "session 's2' is not open here"
            assert (await case.code("print(1)")) == "1"

    asyncio.run(main())


def test_a_root_that_is_not_there_fails_and_the_worker_lives(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, root) as case:
            failed = await case.worker.open_project(tmp_path / "nowhere", "p2")
            assert isinstance(failed, ProjectFailed)
            assert "does not exist" in failed.error.message
            assert (await case.code("print(1)")) == "1"

    asyncio.run(main())


def test_another_folder_in_place_of_the_project_is_the_project_from_then_on(
    tmp_path: Path, root: Path
) -> None:
    calls: list[tuple[str, dict[str, str]]] = [
        ("read_file", {"path": "new.py"}),
        ("list_files", {}),
        ("search", {"pattern": "fresh"}),
        ("symbols", {"name": "fresh"}),
        ("ruff_check", {}),
        ("typecheck", {}),
        ("git_status", {}),
        ("git_diff", {}),
        ("execute_code", {"code": "print(read_file('new.py').text)"}),
    ]

    async def main() -> None:
        async with running(tmp_path, root) as case:
            for name, arguments in calls:
                await case.tool(name, arguments)
            shutil.rmtree(root)
            turn = await case.worker.prompt("go")
            assert f"the project's folder {root} cannot be opened" in turn.wire_error.message
            Repository(root).commit({"a": "1\n"})
            (root / "new.py").write_text("def fresh() -> int:\n    return 1\n")
            for name, arguments in calls:
                _, told = await case.tool(name, arguments)
                assert not told.startswith("error"), (name, told)
                if name not in ("typecheck", "ruff_check", "git_diff"):
                    assert "fresh" in told or "new.py" in told, (name, told)

    asyncio.run(main())


def test_a_link_that_is_swapped_all_the_time_never_leads_out(tmp_path: Path, root: Path) -> None:
    """Half of the reads race with the swap; none of them may show the secret."""

    async def main() -> None:
        inside, link = root / "src" / "a.py", root / "swapped"
        link.symlink_to(inside)
        swapping = True

        def swap() -> None:
            targets = [tmp_path / "secret.txt", inside]
            n = 0
            while swapping:
                spare = root / "spare"
                spare.symlink_to(targets[n % 2])
                spare.rename(link)
                n += 1

        async with running(tmp_path, root) as case:
            swapper = asyncio.create_task(asyncio.to_thread(swap))
            try:
                code = (
                    "seen = {}\nfor _ in range(500):\n    try:\n"
                    "        text = read_file('swapped').text\n"
                    "    except RuntimeError as e:\n        text = str(e).split(':')[0]\n"
                    "    seen[text[:12]] = 1\nprint(sorted(seen))"
                )
                told = await case.code(code)
            finally:
                swapping = False
                await swapper
            assert "secret" not in told
            assert "class A" in told or "outside_root" in told

    asyncio.run(main())
