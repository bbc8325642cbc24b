"""Code Mode through the real sandbox process: what works, what is told, limits, cancel."""

import asyncio
import os
import time
import tomllib
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from punie_protocol.errors import Denied, PunieError, ToolFailed
from punie_protocol.tool_types import Arguments, Result, Tool
from punie_protocol.tools_files import ListFilesResult
from punie_workers.code_errors import error_text
from punie_workers.code_limits import Limits
from punie_workers.code_mode import CodeMode
from tests.support.code_project import CodeProject, Waiting

DATA = Path(__file__).parent.parent / "data" / "code_mode.toml"
PATIENCE = 10.0
ASKING = """\
import os
while True:
    try:
        os.listdir(".")
    except NotImplementedError:
        pass
"""


@pytest.fixture(scope="module", autouse=True)
def _client_threads() -> None:
    """The sandbox's client keeps its event loop for the life of the process: start it before the
    first look for leaks."""

    async def main() -> None:
        async with code_mode() as code:
            await code.run("pass", nothing)

    asyncio.run(main())


class Case(msgspec.Struct):
    """One program of the data file. Either `prints` or `told` says what comes of it."""

    code: str
    name: str = ""
    construct: str = ""
    prints: str | None = None
    told: str | None = None

    @property
    def title(self) -> str:
        """What it shows."""
        return self.name or self.construct


class Cases(msgspec.Struct, forbid_unknown_fields=True):
    """The data file."""

    program: list[Case]
    rejected: list[Case]
    construct: list[Case]


CASES = msgspec.convert(tomllib.loads(DATA.read_text()), Cases)


@asynccontextmanager
async def code_mode(limits: Limits | None = None) -> AsyncGenerator[CodeMode]:
    """Code Mode whose processes end with the context."""
    code = CodeMode(limits or Limits())
    try:
        yield code
    finally:
        await code.close()


async def told(code: CodeMode, program: str, call: Any) -> str:
    """Return what the model reads."""
    try:
        return (await code.run(program, call)).output
    except PunieError as error:
        return f"error: {error_text(error.error)}"


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.005)


async def nothing(tool: Tool, _arguments: Arguments) -> Result:
    """A tool that is there and does nothing."""
    assert tool.name == "list_files"
    return ListFilesResult(count=0, truncated=False, files=[])


def sandboxes() -> set[int]:
    """The sandbox processes that run."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            if child.name() == "monty" and child.status() != psutil.STATUS_ZOMBIE:
                found.add(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def seconds(pid: int) -> float:
    """How long a process has computed."""
    try:
        return psutil.Process(pid).cpu_times().user
    except psutil.NoSuchProcess:
        return 0.0


def test_what_a_model_writes(tmp_path: Path) -> None:
    assert len(CASES.program) >= 60
    assert _wrong(tmp_path, CASES.program) == []


def test_the_language(tmp_path: Path) -> None:
    assert _wrong(tmp_path, CASES.construct) == []


def test_a_wrong_program_is_rejected_before_any_effect(tmp_path: Path) -> None:
    async def main() -> None:
        async with CodeProject.at(tmp_path) as project, code_mode() as code:
            for case in CASES.rejected:
                output = await told(code, case.code, project.call)
                assert output.startswith("error: "), case.title
                assert (case.told or "") in output, f"{case.title}: {output}"
                assert project.calls == [], case.title
                assert project.unchanged(), case.title

    asyncio.run(main())


def _wrong(root: Path, cases: list[Case]) -> list[str]:
    async def main() -> list[str]:
        wrong = []
        async with CodeProject.at(root) as project, code_mode() as code:
            for case in cases:
                project.restore()
                output = await told(code, case.code, project.call)
                if not _fits(case, output):
                    wrong.append(f"{case.title}: {output}")
        return wrong

    return asyncio.run(main())


def _fits(case: Case, output: str) -> bool:
    if case.told is not None:
        return output.startswith("error: ") and case.told.strip() in output
    return output == (case.prints or "").strip("\n")


def test_what_is_unsure_runs_and_the_tools_check_their_arguments(tmp_path: Path) -> None:
    """The checker cannot know the types of a dict of mixed values; a tool does."""
    program = """\
edit = {"path": "README.md", "line": 3}
for key in ("path", "line"):
    try:
        print(read_file(edit[key]).total_lines)
    except RuntimeError as error:
        print(error)
"""

    async def main() -> None:
        async with CodeProject.at(tmp_path) as project, code_mode() as code:
            output = await told(code, program, project.call)
            assert output.startswith("5\ninvalid_request: read_file: Expected `str`, got `int`")
            assert project.calls == ["read_file"]

    asyncio.run(main())


def test_a_result_cannot_be_changed_at_run_time_either(tmp_path: Path) -> None:
    program = """\
r = read_file("README.md")
try:
    setattr(r, "text", "forged")
except AttributeError:
    print("refused")
print(r.text.splitlines()[0])
"""

    async def main() -> None:
        async with CodeProject.at(tmp_path) as project, code_mode() as code:
            assert await told(code, program, project.call) == "refused\n# Sample"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("program", "limits", "expected"),
    [
        (
            "while True:\n    pass",
            Limits(time_s=0.3),
            "time_limit: stopped after 0.3 s of computing (do less in one program",
        ),
        (
            "\nlist_files()\nwhile True:\n    pass",
            Limits(time_s=0.3),
            "time_limit: stopped after 0.3 s of computing, after the call in line 2 (do less",
        ),
        (
            "x = []\nwhile True:\n    x.append('a' * 1000)",
            Limits(memory=16 * 1024 * 1024),
            "memory_limit: stopped: more than 16 MB of memory (keep less at once",
        ),
        (
            "import re\nre.compile('|'.join(['a'] * 10**6))",
            Limits(memory=32 * 1024 * 1024),
            "memory_limit: stopped: more than 32 MB of memory (keep less at once",
        ),
        (
            "for i in range(100):\n    list_files()",
            Limits(calls=10),
            "call_limit: stopped, after the call in line 2: more than 10 tool calls (let one",
        ),
        (
            ASKING,
            Limits(calls=10),
            "call_limit: stopped: more than 10 tool calls",
        ),
        (
            "while True:\n    print('a' * 100)",
            Limits(printed=100_000, output=10),
            "output_limit: stopped: more than 100000 characters printed (print counts",
        ),
    ],
    ids=[
        "time",
        "time after a call",
        "memory",
        "one huge allocation",
        "calls",
        "system calls",
        "printing",
    ],
)
def test_a_limit_is_told_in_words_to_act_on(program: str, limits: Limits, expected: str) -> None:
    async def main() -> None:
        async with code_mode(limits) as code:
            assert (await told(code, program, nothing)).startswith(f"error: {expected}")
            assert await told(code, "print('again')", nothing) == "again"

    asyncio.run(main())


def test_output_over_the_limit_is_cut_and_the_program_goes_on() -> None:
    async def main() -> None:
        async with code_mode(Limits(output=10)) as code:
            result = await code.run("print('a' * 30)\nlist_files()\nprint('end')", nothing)
            assert result.truncated
            assert result.output == "aaaaaaaaaa\n… cut: 25 more characters were printed; print less"

    asyncio.run(main())


def test_the_time_of_a_tool_call_does_not_count_as_computing() -> None:
    async def main() -> None:
        waiting = Waiting()
        async with code_mode(Limits(time_s=0.2)) as code:
            run = asyncio.create_task(told(code, "git_log()\nprint('end')", waiting.call))
            await asyncio.wait_for(waiting.begun.wait(), PATIENCE)
            begun = time.monotonic()
            await until(lambda: time.monotonic() > begun + 0.5)
            waiting.go_on.set()
            assert await run == "end"

    asyncio.run(main())


def test_everything_together_has_a_limit_too() -> None:
    async def main() -> None:
        waiting = Waiting()
        async with code_mode(Limits(total_s=0.3)) as code:
            output = await told(code, "print(1)\ngit_log()\nprint(2)", waiting.call)
            assert output == (
                "error: time_limit: stopped after 0.3 s, waiting included, in git_log (line 2): "
                "that call was cancelled (look what git_log has done before you call it again; "
                "split the work into several programs)\nprinted before:\n1"
            )
            assert waiting.outcome == "git_log cancelled"

    asyncio.run(main())


@pytest.mark.parametrize(
    "program",
    [
        "while True:\n    pass",
        "while True:\n    list_files()",
        "while True:\n    print('a' * 100)",
    ],
    ids=["computing", "calling", "printing"],
)
def test_cancel_ends_the_sandbox(program: str) -> None:
    async def main() -> None:
        async with code_mode(Limits(printed=10**12, calls=10**9)) as code:
            run = asyncio.create_task(code.run(program, nothing))
            await until(lambda: any(seconds(pid) > 0.1 for pid in sandboxes()))
            (running,) = sandboxes()
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            await until(lambda: running not in sandboxes())
            assert code._spare is None

    asyncio.run(main())


def test_cancel_ends_the_call_under_way_and_no_other_starts() -> None:
    program = """\
for i in range(5):
    try:
        git_log()
    except BaseException:
        pass
"""

    async def main() -> None:
        waiting = Waiting()
        async with code_mode() as code:
            run = asyncio.create_task(code.run(program, waiting.call))
            await asyncio.wait_for(waiting.begun.wait(), PATIENCE)
            before = sandboxes()
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            assert waiting.outcome == "git_log cancelled"
            waiting.go_on.set()
            await until(lambda: not (before & sandboxes()))
            assert waiting.calls == 1
            assert await told(code, "print('next')", nothing) == "next"

    asyncio.run(main())


def test_a_refused_call_raises_and_the_program_may_go_on() -> None:
    async def refuse(_tool: Tool, _arguments: Arguments) -> Result:
        raise PunieError(Denied(message="the user said no"))

    program = """\
try:
    delete_file("a")
except RuntimeError as error:
    print("told:", error)
delete_file("b")
"""

    async def main() -> None:
        async with code_mode() as code:
            assert await told(code, program, refuse) == (
                "error: denied: the user said no (line 5)\n"
                "printed before:\ntold: denied: the user said no"
            )

    asyncio.run(main())


def test_a_prepared_sandbox_is_used_once_and_given_back() -> None:
    async def main() -> None:
        async with code_mode() as code:
            code.prepare()
            await until(lambda: code._spare is not None and code._spare.done())
            first = sandboxes()
            assert len(first) == 1
            assert await told(code, "x = 1\nprint(x)", nothing) == "1"
            await until(lambda: code._spare is not None and code._spare.done())
            second = sandboxes()
            assert not first & second
            assert "Name `x` used when not defined" in await told(code, "print(x)", nothing)
            code._drop_spare()
            await until(lambda: not (second & sandboxes()))
        await until(lambda: sandboxes() == set())

    asyncio.run(main())


def test_closed_while_a_program_runs_it_starts_nothing_more() -> None:
    async def main() -> None:
        waiting = Waiting()
        async with code_mode() as code:
            run = asyncio.create_task(told(code, "git_log()\nprint(1)", waiting.call))
            await asyncio.wait_for(waiting.begun.wait(), PATIENCE)
        waiting.go_on.set()
        assert await run == "1"
        assert code._spare is None
        await until(lambda: sandboxes() == set())

    asyncio.run(main())


def test_programs_side_by_side() -> None:
    async def main() -> None:
        async with code_mode(Limits(processes=3)) as code:
            programs = [f"list_files()\nprint({n})" for n in range(8)]
            outputs = await asyncio.gather(*(told(code, one, nothing) for one in programs))
            assert outputs == [str(n) for n in range(8)]

    asyncio.run(main())


def test_too_many_programs_are_told_so() -> None:
    async def main() -> None:
        waiting = Waiting()
        async with code_mode(Limits(processes=1, checkout_s=0.2)) as code:
            run = asyncio.create_task(code.run("git_log()", waiting.call))
            await asyncio.wait_for(waiting.begun.wait(), PATIENCE)
            output = await told(code, "print(1)", nothing)
            assert output.startswith("error: busy: 1 programs are running; none ended in 0.2 s")
            waiting.go_on.set()
            await run

    asyncio.run(main())


def test_a_sandbox_that_is_killed_is_told_with_what_was_done(tmp_path: Path) -> None:
    async def kill(tool: Tool, arguments: Arguments) -> Result:
        if tool.name == "git_log":
            for pid in sandboxes():
                os.kill(pid, 9)
        return await project.call(tool, arguments)

    async def main() -> None:
        nonlocal project
        async with CodeProject.at(tmp_path) as project, code_mode() as code:
            output = await told(code, "delete_file('README.md')\ngit_log()\nprint(1)", kill)
            assert output.startswith("error: crashed: the sandbox ended unexpectedly")
            assert output.endswith("done before: delete_file README.md")
            assert await told(code, "print('next')", nothing) == "next"

    project: CodeProject
    asyncio.run(main())


def test_a_tool_failure_keeps_its_kind_and_hint() -> None:
    async def fail(_tool: Tool, _arguments: Arguments) -> Result:
        raise PunieError(ToolFailed(kind="odd", message="it is odd", hint="make it even"))

    async def main() -> None:
        async with code_mode() as code:
            expected = "error: odd: it is odd (line 1) (make it even)"
            assert await told(code, "list_files()", fail) == expected

    asyncio.run(main())


def test_a_refusal_reads_as_one_sentence() -> None:
    async def refuse(_tool: Tool, _arguments: Arguments) -> Result:
        text = "list_files was not done: no; do not try it again"
        raise PunieError(Denied(message=text, hint="go on without it"))

    async def main() -> None:
        async with code_mode() as code:
            expected = (
                "error: denied: line 1: list_files was not done: no; do not try it again "
                "(go on without it)"
            )
            assert await told(code, "list_files()", refuse) == expected

    asyncio.run(main())
