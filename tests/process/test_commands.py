"""Commands and tests of a project, run for real: in the sandbox, and without one."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from punie_protocol.errors import InvalidRequest, NotFound, Overloaded, PunieError, ToolFailed
from punie_protocol.isolation import SandboxSettings, WorkerLimits
from punie_protocol.testing.waiting import until as soon
from punie_protocol.tools_commands import PytestRun, PytestRunResult, RunCommand, RunCommandResult
from punie_workers import jobs, launching
from punie_workers.command_tools import CommandTools
from punie_workers.launching import Launcher, Premises
from punie_workers.pytest_tools import PytestTools
from punie_workers.sandbox import available
from punie_workers.sandbox.available import Missing
from punie_workers.sandbox.confinement import ProgramLimits, Sandbox
from tests.support.checking import opened, until, write
from tests.support.pytest_project import project
from tests.support.repositories import Repository

type Find = Callable[[], Sandbox | Missing]

NO_SANDBOX = Missing("it is not installed", "install it")


def nothing() -> Missing:
    """A machine without a sandbox."""
    return NO_SANDBOX


FINDS = {"sandbox": available.find, "unconfined": nothing}


class Commands:
    """The commands of one project, and how many run in the background."""

    def __init__(self, tools: CommandTools, counts: list[int]) -> None:
        self.tools = tools
        self.counts = counts
        self.shown: list[str] = []

    async def run(self, command: list[str] | str = "", **more: object) -> RunCommandResult:
        """Run what the call of a model would."""
        wanted = RunCommand(command, **more)  # ty: ignore[invalid-argument-type]
        result = await (await self.tools.prepare(wanted, self.shown.append)).run()
        assert isinstance(result, RunCommandResult)
        return result

    async def fails(self, command: list[str] | str = "", **more: object) -> ToolFailed:
        """Return the failure of a call."""
        with pytest.raises(PunieError) as caught:
            await self.run(command, **more)
        assert isinstance(caught.value.error, ToolFailed), caught.value.error
        return caught.value.error


@asynccontextmanager
async def commands(
    root: Path, find: Find = available.find, premises: Premises | None = None
) -> AsyncGenerator[Commands]:
    """Yield the commands of a project in `root`, which may run without a sandbox."""
    await asyncio.to_thread(root.mkdir, exist_ok=True)
    async with opened(root) as halves:
        counts: list[int] = []
        launcher = Launcher(halves, premises or Premises(unconfined=lambda: True), find)
        tools = CommandTools(launcher, counts.append)
        try:
            yield Commands(tools, counts)
        finally:
            tools.close()


def running(mark: str) -> list[int]:
    """Return the processes whose words contain `mark`."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if any(mark in word for word in words) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def mark(tmp_path: Path) -> str:
    """Return an argument of ``sleep`` that no other test has."""
    return f"3{abs(hash(str(tmp_path))) % 10**9}"


@pytest.mark.parametrize("where", FINDS)
def test_how_commands_end(tmp_path: Path, where: str) -> None:
    async def main() -> None:
        async with commands(tmp_path / "project", FINDS[where]) as case:
            said = await case.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
            assert (said.ok, said.exit_code, said.output) == (False, 3, "out\nerr")
            assert not said.truncated
            assert not said.running
            text = await case.run("printf 'a\\033[31mb\\033[0m\\a' | cat; exit 0")
            assert (text.ok, text.exit_code, text.output) == (True, 0, "ab␇")
            missing = await case.fails(["no-such-program-here"])
            assert missing.kind == "command_missing"
            assert "no-such-program-here" in missing.message
            assert missing.hint
            write(tmp_path / "project", {"plain.txt": "no program\n"})
            assert (await case.fails(["./plain.txt"])).kind == "command_missing"
            in_text = await case.run("no-such-program-here")
            assert (in_text.ok, in_text.exit_code) == (False, 127)
            killed = await case.fails("echo before; kill -SEGV $$")
            assert (killed.kind, killed.output) == ("command_killed", "before")
            assert "SIGSEGV" in killed.message
            late = await case.fails("echo begun; sleep 1000", timeout=0.5)
            assert (late.kind, late.output) == ("command_timeout", "begun")
            assert "0.5 s" in late.message

    asyncio.run(main())


@pytest.mark.parametrize("where", FINDS)
def test_output_without_end(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "MAX_OUTPUT", 1024**2)

    async def main() -> None:
        async with commands(tmp_path / "project", FINDS[where]) as case:
            flood = await case.fails("yes")
            assert flood.kind == "command_output"
            assert len(flood.output) < 8192
            many = await case.run("seq 1 50000")
            assert many.truncated
            lines = many.output.splitlines()
            assert (lines[0], lines[-1]) == ("1", "50000")
            assert "left out" in many.output
            assert len(many.output) < 40_000

    asyncio.run(main())


@pytest.mark.parametrize("where", FINDS)
def test_what_a_command_leaves_behind_ends_with_it(tmp_path: Path, where: str) -> None:
    seconds = mark(tmp_path)

    async def main() -> None:
        async with commands(tmp_path / "project", FINDS[where]) as case:
            left = await case.run(f"sleep {seconds} & sleep {seconds} & echo left")
            assert left.output == "left"
            until(lambda: not running(seconds), 2)
            late = await case.fails(f"sleep {seconds} & sleep {seconds}", timeout=0.3)
            assert late.kind == "command_timeout"
            until(lambda: not running(seconds), 2)

    asyncio.run(main())


def test_a_process_with_a_session_of_its_own_ends_with_the_sandbox(tmp_path: Path) -> None:
    seconds = mark(tmp_path)

    async def main() -> None:
        async with commands(tmp_path / "project") as case:
            await case.run(f"setsid sh -c 'setsid sleep {seconds} &' & sleep 0.2; echo")
            assert not running(seconds)

    asyncio.run(main())


@pytest.mark.parametrize("where", FINDS)
def test_a_cancelled_command_leaves_nothing(tmp_path: Path, where: str) -> None:
    seconds = mark(tmp_path)

    async def main() -> None:
        async with commands(tmp_path / "project", FINDS[where]) as case:
            task = asyncio.create_task(case.run(f"sleep {seconds}; echo"))
            await soon(lambda: running(seconds), "the program runs")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not running(seconds)

    asyncio.run(main())


def test_a_command_sees_the_project_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret\n")
    root = write(tmp_path / "project", {"src/a.txt": "mine\n"})

    async def main() -> None:
        async with commands(root) as case:
            seen = await case.run(["cat", "a.txt", "../../secret"], cwd="src")
            assert seen.output.startswith("mine\n")
            assert "No such file" in seen.output
            outside = await case.fails(["ls"], cwd="..")
            assert outside.kind == "outside_root"
            missing = await case.fails(["ls"], cwd="nowhere")
            assert missing.kind == "not_found"

    asyncio.run(main())


def test_without_a_sandbox_nothing_runs_unless_the_user_said_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as halves:
            tools = CommandTools(Launcher(halves, Premises(), nothing), lambda _: None)
            with pytest.raises(PunieError) as caught:
                await tools.prepare(RunCommand(["touch", "made"]))
            assert caught.value.error == ToolFailed(
                kind="sandbox",
                message="no command is run: there is no sandbox on this machine: "
                "it is not installed",
                hint="install it",
            )
        assert not (tmp_path / "made").exists()

    asyncio.run(main())


def test_what_a_command_would_do_is_said_whole(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()

    async def main() -> None:
        async with commands(tmp_path) as case, commands(tmp_path, nothing) as bare:
            text = "echo a\nrm -rf x \x1b[8m\u202e"
            action = await case.tools.prepare(RunCommand(text, "sub", 5, network=True))
            assert action.description.splitlines() == [
                "$ echo a",
                "> rm -rf x ␛[8m\\u202e",
                "in the folder sub",
                "for at most 5 s",
                "with access to the network",
            ]
            assert (action.subject.network, action.subject.confined) == (True, True)
            words = await bare.tools.prepare(RunCommand(["rm", "a b"], background=True))
            assert words.description.splitlines() == [
                "$ rm 'a b'",
                "in the background, until it is stopped or the project is closed",
                "without a sandbox: it can read and change whatever you can",
            ]
            assert (words.subject.network, words.subject.confined) == (True, False)

    asyncio.run(main())


WRONG = [
    RunCommand(),
    RunCommand([""]),
    RunCommand(" \n"),
    RunCommand(["a\0b"]),
    RunCommand(["\ud800"]),
    RunCommand(["x" * 30_000, "y" * 30_000]),
    RunCommand("ls", job="job1"),
    RunCommand("ls", stop=True),
]


@pytest.mark.parametrize("wanted", WRONG, ids=range(len(WRONG)))
def test_arguments_that_make_no_sense(tmp_path: Path, wanted: RunCommand) -> None:
    async def main() -> None:
        async with commands(tmp_path) as case:
            with pytest.raises(PunieError) as caught:
                await case.tools.prepare(wanted)
            assert isinstance(caught.value.error, InvalidRequest)
            assert caught.value.error.message.startswith("run_command: ")

    asyncio.run(main())


def test_output_is_shown_while_it_comes(tmp_path: Path) -> None:
    async def main() -> None:
        async with commands(tmp_path) as case:
            task = asyncio.create_task(case.run("echo first; cat fifo; echo last"))
            os.mkfifo(tmp_path / "fifo")
            await soon(lambda: "first\n" in case.shown, "output is shown")
            await asyncio.to_thread((tmp_path / "fifo").write_text, "second\n")
            await task
            assert case.shown[-1] == "first\nsecond\nlast\n"

    (tmp_path / "fifo").unlink(missing_ok=True)
    asyncio.run(main())


def test_background_commands(tmp_path: Path) -> None:
    seconds = mark(tmp_path)

    async def main() -> None:
        async with commands(tmp_path / "project") as case:
            job = await case.run(f"echo up; sleep {seconds}", background=True)
            assert (job.ok, job.running, job.exit_code) == (True, True, None)
            output = job.output
            deadline = time.monotonic() + 5
            while "up" not in output and time.monotonic() < deadline:
                output += (await case.run(job=job.job)).output
            assert output == "up", "what was told once is not told again"
            listed = await case.run(job="*")
            assert listed.running
            assert listed.output.startswith(f"{job.job} running after ")
            assert f"sleep {seconds}" in listed.output
            stopped = await case.run(job=job.job, stop=True)
            assert (stopped.running, stopped.exit_code) == (False, None)
            assert not running(seconds)
            assert case.counts == [1, 0]
            short = await case.run("echo done; exit 4", background=True)
            assert (short.ok, short.running, short.exit_code) == (False, False, 4)
            assert short.output == "done"
            missing = await case.fails(["no-such-program-here"], background=True)
            assert missing.kind == "command_missing"
            assert "no-such" not in (await case.run(job="*")).output
            with pytest.raises(PunieError) as caught:
                await case.run(job="job99")
            assert isinstance(caught.value.error, NotFound)

    asyncio.run(main())


def test_a_command_ends_when_somebody_replaces_what_was_protected(tmp_path: Path) -> None:
    async def main() -> None:
        async with commands(tmp_path / "project") as case:
            task = asyncio.create_task(case.fails("echo up; sleep 1000; echo"))
            await soon(lambda: case.shown, "the program runs")
            await asyncio.to_thread((tmp_path / "project" / ".vscode").rmdir)
            ended = await asyncio.wait_for(task, 10)
            assert ended.kind == "command_unprotected"
            assert "'.vscode' was replaced from outside" in ended.message

    asyncio.run(main())


def test_background_commands_cannot_change_git_s_folder(tmp_path: Path) -> None:
    root = tmp_path / "project"
    Repository(root).commit({"a": "b"})

    async def main() -> None:
        async with commands(root) as case:
            said = await case.run("touch .git/x || echo closed", background=True)
            said = await case.run(job=said.job) if said.running else said
            assert "Read-only file system" in said.output
            assert (await case.run("touch .git/x")).ok

    asyncio.run(main())


def test_commands_over_the_worker_s_limits_end_before_it_would(tmp_path: Path) -> None:
    """Each is within them; the largest ends, the others go on, and the model is told."""
    premises = Premises(limits=WorkerLimits(memory_mb=256))

    async def main() -> None:
        async with commands(tmp_path / "project", premises=premises) as case:
            os.mkfifo(tmp_path / "project" / "fifo")
            left = [await case.run(filling(size), background=True) for size in (60, 70)]
            over = await case.fails(filling(80))
            assert over.kind == "command_limit"
            assert "192 MB are allowed" in over.message
            for job in left:
                assert (await case.run(job=job.job)).running

    asyncio.run(main())


def test_programs_have_less_than_their_worker() -> None:
    assert launching.limits_of(None) == ProgramLimits()
    found = launching.limits_of(WorkerLimits(memory_mb=400, cpu_s=1, processes=16, files=300))
    assert (found.memory, found.processes, found.files) == (300 * 1024**2, 12, 300)
    assert (found.cpu_s, found.together_s) == (1, 1)


def filling(megabytes: int) -> str:
    """A command that takes memory until a pipe is written to."""
    return f"head -c {megabytes}000000 /dev/zero > /tmp/x; cat fifo"


def test_background_commands_are_few_and_end_with_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MAX_RUNNING", 2)
    seconds = mark(tmp_path)

    async def main() -> None:
        async with commands(tmp_path / "project") as case:
            for _ in range(2):
                await case.run(["sleep", seconds], background=True)
            with pytest.raises(PunieError) as caught:
                await case.run(["sleep", seconds], background=True)
            assert isinstance(caught.value.error, Overloaded)
            assert running(seconds)
            case.tools.close()
            await soon(lambda: not running(seconds), "the program ends")
            with pytest.raises(PunieError):
                await case.run(["sleep", seconds], background=True)

    asyncio.run(main())


FORGED = """
import os, pathlib

def test_forged(request):
    report = pathlib.Path(request.config.option.xmlpath)
    match pathlib.Path("how").read_text():
        case "torn": report.write_text("<testsuites><testsuite")
        case "link": report.symlink_to("/etc/passwd")
        case "fifo": os.mkfifo(report)
        case "folder": report.mkdir()
        case "empty": report.write_text("<testsuites/>")
        case "bomb":
            entity = f'<!DOCTYPE x [<!ENTITY a "{"a" * 9999}">]>'
            report.write_text(entity + "<testsuites>&a;</testsuites>")
    os._exit(0)
"""
TESTS = {
    "test_a.py": "def test_one(): pass\ndef test_two(): assert 0\n",
    "test_slow.py": "import time\ndef test_slow():\n    print('begun'); time.sleep(1000)\n",
    "test_writes.py": "def test_writes():\n    open('written', 'w').write('x')\n",
    "test_forged.py": FORGED,
}


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with tests."""
    return project(tmp_path_factory.mktemp("tested").resolve() / "project", TESTS)


async def run_tests(
    root: Path, wanted: PytestRun, *, writable: bool = True, premises: Premises | None = None
) -> PytestRunResult:
    """Return the result of a run."""
    async with opened(root) as halves:
        tools = PytestTools(halves, Launcher(halves, premises or Premises()))
        result = await (await tools.prepare(wanted, writable=writable)).run()
        assert isinstance(result, PytestRunResult)
        return result


def failure(root: Path, wanted: PytestRun) -> ToolFailed:
    """Return the failure of a run."""
    with pytest.raises(PunieError) as caught:
        asyncio.run(run_tests(root, wanted))
    assert isinstance(caught.value.error, ToolFailed)
    return caught.value.error


def test_tests_and_some_of_them(tested: Path) -> None:
    both = asyncio.run(run_tests(tested, PytestRun("test_a.py")))
    assert (both.ok, both.passed, both.failed) == (False, 1, 1)
    assert [one.name for one in both.tests] == ["test_a.py::test_two", "test_a.py::test_one"]
    assert "assert 0" in both.tests[0].message
    one = asyncio.run(run_tests(tested, PytestRun("test_a.py", "one")))
    assert (one.ok, one.passed, one.failed) == (True, 1, 0)
    again = asyncio.run(run_tests(tested, PytestRun(both.tests[0].name, limit=1)))
    assert (again.failed, again.truncated) == (1, False)
    assert failure(tested, PytestRun("nowhere.py")).kind == "not_found"
    assert failure(tested, PytestRun("../x")).kind == "outside_root"
    assert failure(tested, PytestRun("test_a.py", "nothing_like_that")).kind == "no_tests"
    assert "Wrong expression" in failure(tested, PytestRun("test_a.py", "and and")).message


def test_tests_that_may_change_nothing(tested: Path) -> None:
    wanted = PytestRun("test_writes.py")
    before = sorted(path.name for path in tested.iterdir())
    refused = asyncio.run(run_tests(tested, wanted, writable=False))
    assert (refused.ok, refused.failed) == (False, 1)
    assert "Read-only file system" in refused.tests[0].message
    fine = asyncio.run(run_tests(tested, PytestRun("test_a.py", "one"), writable=False))
    assert fine.ok
    assert sorted(path.name for path in tested.iterdir()) == before
    assert asyncio.run(run_tests(tested, wanted)).ok
    assert (tested / "written").read_text() == "x"
    (tested / "written").unlink()


def test_what_the_settings_let_programs_write_is_read_only_then_too(
    tested: Path, tmp_path: Path
) -> None:
    settings = SandboxSettings(write=[str(tmp_path)])
    test = f"def test_cache(): open('{tmp_path}/cache', 'w').write(open('{tmp_path}/old').read())\n"
    write(tested, {"test_cache.py": test})
    write(tmp_path, {"old": "x"})
    wanted, premises = PytestRun("test_cache.py"), Premises(settings=settings)
    refused = asyncio.run(run_tests(tested, wanted, writable=False, premises=premises))
    assert "Read-only file system" in refused.tests[0].message
    assert not (tmp_path / "cache").exists()
    assert asyncio.run(run_tests(tested, wanted, premises=premises)).ok
    assert (tmp_path / "cache").read_text() == "x"


def test_tests_that_hang(tested: Path) -> None:
    late = failure(tested, PytestRun("test_slow.py", timeout=5))
    assert late.kind == "command_timeout"
    assert "test_slow.py::test_slow" in late.output, "it says where"


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("nothing", "pytest_failed"),
        ("torn", "pytest_output"),
        ("link", "pytest_output"),
        ("fifo", "pytest_output"),
        ("folder", "pytest_output"),
        ("bomb", "pytest_output"),
        ("empty", "pytest_failed"),
    ],
)
def test_a_report_that_is_none(tested: Path, how: str, kind: str) -> None:
    (tested / "how").write_text(how)
    found = failure(tested, PytestRun("test_forged.py"))
    assert found.kind == kind, found
    assert "root:" not in str(found)


def test_a_project_without_pytest(tmp_path: Path) -> None:
    root = project(tmp_path.resolve() / "bare", {"test_a.py": ""}, with_pytest=False)
    missing = failure(root, PytestRun())
    assert missing.kind == "pytest_missing"
    assert f"{root}/.venv/bin/python -m pip install pytest" in missing.hint
