"""The corpus of escape attempts against Code Mode: each program in the real sandbox process, with
real file tools, as it is and past the type checker."""

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pydantic_monty as monty
import pytest

from punie_protocol.errors import Denied, PunieError
from punie_protocol.tool_types import Arguments, Result, Tool
from punie_protocol.tools_files import (
    DeleteFile,
    EditFile,
    ListFiles,
    MoveFile,
    ReadFile,
    Search,
    WriteFile,
)
from punie_workers.code_errors import error_text
from punie_workers.code_limits import Limits
from punie_workers.code_mode import CodeMode
from punie_workers.code_program import Program
from punie_workers.edit_tools import EditTools
from punie_workers.file_tools import FileTools
from tests.support.checking import opened, write
from tests.support.confined import PATIENCE_S, Confining
from tests.support.escape_ground import CANARY, Ground
from tests.support.escapes import ESCAPED, Attempt, attempts

ATTEMPTS = attempts("code_mode.toml")
CLASSES = range(1, 35)
LIMITS = Limits(
    time_s=0.5, total_s=PATIENCE_S, memory=32 * 1024 * 1024, calls=50, printed=1_000_000
)
VARIABLE = "PUNIE_TEST_SECRET"
MOST = LIMITS.output + 4000
"""Characters that the model may be told: what was printed, an error, what was done before."""
MODULES = ("json.py", "re.py", "sitecustomize.py", "usercustomize.py", "evil/__init__.py")
EVIL = f"open('@MARK@', 'w')\nprint('{ESCAPED}')\nraise SystemExit\n"

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module", autouse=True)
def _client_threads() -> None:
    """The sandbox's client keeps its event loop for the life of the process: start it before the
    first look for leaks."""

    async def main() -> None:
        async with code_mode() as code:
            await code.run("pass", _refuse)

    asyncio.run(main())


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    """A project that plants modules, in an environment that names them."""
    ground = Ground(tmp_path)
    ground.more = {"SECRET_VARIABLE": VARIABLE}
    write(ground.project, dict.fromkeys(MODULES, ground.fill(EVIL)))
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE"):
        monkeypatch.setenv(name, str(ground.project))
    monkeypatch.setenv("PYTHONSTARTUP", str(ground.project / "sitecustomize.py"))
    monkeypatch.setenv("MONTY_BIN", str(ground.marker))
    monkeypatch.setenv("HOME", str(ground.home))
    monkeypatch.setenv(VARIABLE, CANARY)
    with ground.listening():
        yield ground


@asynccontextmanager
async def code_mode() -> AsyncGenerator[CodeMode]:
    """Code Mode whose processes end with the context."""
    code = CodeMode(LIMITS)
    try:
        yield code
    finally:
        await code.close()


class Unchecked(Program):
    """A program that the type checker never saw: one that knows its ways can get past it."""

    async def _start(self, session: monty.AsyncMontySession) -> Any:
        return await session.feed_start(
            self._code, print_callback=self._output.add, skip_type_check=True
        )


class Worker:
    """What runs the programs of one class: Code Mode, and the tools that they may call."""

    def __init__(self, code: CodeMode, reading: FileTools, editing: EditTools) -> None:
        self._code = code
        self._reading = reading
        self._editing = editing

    async def call(self, tool: Tool, arguments: Arguments) -> Result:
        """Run a tool as in a project that allows every edit."""
        match arguments:
            case ReadFile() | ListFiles() | Search():
                return await self._reading.run(arguments)
            case EditFile() | WriteFile() | DeleteFile() | MoveFile():
                return await (await self._editing.prepare(arguments)).run()
            case _:
                return await _refuse(tool, arguments)

    async def told(self, program: str, *, checked: bool) -> tuple[bool, str]:
        """Return whether it ran to its end, and what the model reads."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return True, await self._run(program, checked=checked)
        except PunieError as error:
            return False, error_text(error.error)

    async def _run(self, program: str, *, checked: bool) -> str:
        if checked:
            return (await self._code.run(program, self.call)).output
        async with self._code._session() as session:
            return (await Unchecked(program, self.call, LIMITS).run(session)).output


async def _refuse(tool: Tool, _arguments: Arguments) -> Result:
    raise PunieError(Denied(message=f"{tool.name}: not in this test"))


def test_every_class_has_a_case() -> None:
    assert {one.number for one in ATTEMPTS} == {*CLASSES}
    assert {one.target for one in ATTEMPTS} == {"code_mode"}


@pytest.mark.parametrize("number", CLASSES)
def test_nothing_gets_out(number: int, ground: Ground) -> None:
    async def main() -> list[str]:
        async with opened(ground.project) as halves, code_mode() as code:
            worker = Worker(code, FileTools(halves), EditTools(halves, lambda _paths: None))
            return [
                f"{one.id}, {'checked' if checked else 'unchecked'}: {wrong}"
                for one in ATTEMPTS
                if one.number == number
                for checked in (True, False)
                async for wrong in _wrong(worker, one, ground, checked=checked)
            ]

    assert asyncio.run(main()) == []
    assert ground.damage() == []


async def _wrong(
    worker: Worker, one: Attempt, ground: Ground, *, checked: bool
) -> AsyncGenerator[str]:
    ended, text = await worker.told(one.filled(ground.places()), checked=checked)
    if ended and one.expect == "refused":
        yield f"it ran: {text[:200]}"
    for leak in (ESCAPED, CANARY, *one.leaks):
        if leak in text:
            yield f"it shows {leak!r}: {text[:500]}"
    if len(text) > MOST:
        yield f"the model is told {len(text)} characters"
    if checked and await worker.told("print([1])", checked=True) != (True, "[1]"):
        yield "the next program went wrong"


@pytest.mark.parametrize("one", attempts("code_mode_python.toml"), ids=lambda one: one.id)
def test_a_python_that_escapes_itself_stays_in_the_sandbox(one: Attempt, ground: Ground) -> None:
    """CPython holds none of this, and need not: what must hold is the sandbox round it."""
    before = set(_numbers())
    mark = f"outlive_{os.getpid()}_"  # another worker of this run may do the same just now
    done = Confining(ground.project).python(one.filled(ground.places()).replace("outlive", mark))
    assert done.stdout.endswith("DONE\n"), done.stderr
    for leak in (ESCAPED, CANARY, *one.leaks):
        assert leak not in done.stdout + done.stderr
    assert ground.damage() == []
    assert [pid for pid in set(_numbers()) - before if mark in _words(pid)] == []


def _numbers() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
