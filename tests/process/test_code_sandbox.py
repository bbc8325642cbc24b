"""What a process of Code Mode sees of the machine, and that none is left behind."""

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from punie_protocol.errors import PunieError, ToolFailed
from punie_protocol.tool_types import Arguments, Result, Tool
from punie_workers import code_sandbox
from punie_workers.code_errors import error_text
from punie_workers.code_limits import Limits
from punie_workers.code_mode import CodeMode
from punie_workers.code_sandbox import alone
from punie_workers.sandbox import available
from punie_workers.sandbox.available import Missing
from punie_workers.sandbox.bubblewrap import Bubblewrap
from punie_workers.sandbox.confinement import ProgramLimits
from tests.support.checking import script
from tests.support.confined import the_sandbox

PATIENCE = 10.0
LIMITS = ProgramLimits(memory=2**30, cpu_s=33, processes=44, files=55, file_size=0)
LOOK = """\
echo "root:" /* /.[!.]*
echo "dev:" /dev/*
echo "environment:"; env
echo "numbers: $$ $(ulimit -d) $(ulimit -t) $(ulimit -n) $(ulimit -f) $(ulimit -c)"
for place in / /tmp /dev /dev/shm /usr /root /home /var /run; do
    (: >"$place/mark") 2>/dev/null && echo "wrote $place"
done
kill -0 @PID@ 2>/dev/null && echo "saw the parent"
cat "$0" >/dev/null && echo end
"""
BUSY = """\
import asyncio, sys
from punie_workers.code_limits import Limits
from punie_workers.code_mode import CodeMode

async def call(tool, arguments):
    from punie_protocol.tools_files import ListFilesResult
    print("running", flush=True)
    return ListFilesResult(count=0, truncated=False, files=[])

asyncio.run(CodeMode(Limits(time_s=300)).run("list_files()\\nwhile True:\\n    pass", call))
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is of Linux")


@pytest.fixture(scope="module", autouse=True)
def _client_threads() -> None:
    """The sandbox's client keeps its event loop for the life of the process: start it before the
    first look for leaks."""

    async def main() -> None:
        async with code_mode() as code:
            await code.run("pass", nothing)

    asyncio.run(main())


@asynccontextmanager
async def code_mode() -> AsyncGenerator[CodeMode]:
    """Code Mode whose processes end with the context."""
    code = CodeMode(Limits())
    try:
        yield code
    finally:
        await code.close()


async def nothing(tool: Tool, _arguments: Arguments) -> Result:
    """No tool is called."""
    raise AssertionError(tool.name)


def until(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def processes(parent: int) -> list[psutil.Process]:
    """Every process that descends from `parent`."""
    return psutil.Process(parent).children(recursive=True)


def orphans() -> list[int]:
    """Processes of our group that nobody waits for any more."""
    found = []
    for process in psutil.process_iter(["ppid", "status"]):
        with suppress(psutil.Error, ProcessLookupError):
            lost = process.ppid() == 1 and process.status() != psutil.STATUS_ZOMBIE
            if lost and os.getpgid(process.pid) == os.getpgrp():
                found.append(process.pid)
    return found


def test_it_sees_the_systems_libraries_and_nothing_else(tmp_path: Path) -> None:
    sandbox = the_sandbox()
    assert isinstance(sandbox, Bubblewrap)
    program = script(tmp_path / "look", LOOK.replace("@PID@", str(os.getpid())))
    words = alone(sandbox, str(program), LIMITS)
    done = subprocess.run(
        words, env={"PATH": "/bin"}, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "end", (done.stdout, done.stderr)
    seen = set(lines[0].removeprefix("root: ").split())
    system = {f"/{path.name}" for path in Path("/").iterdir()} & {"/usr", "/bin", "/sbin", "/opt"}
    others = {path for path in seen - system if not path.startswith(("/lib", "/nix", "/gnu"))}
    assert others == {"/dev", "/monty", "/.[!.]*"}
    assert "/dev/sda" not in lines[1]
    assert [line for line in lines if line.startswith(("wrote", "saw", "HOME", "LD_"))] == []
    assert f"{2**20} 33 55 0 0" in next(line for line in lines if line.startswith("numbers:"))
    assert str(tmp_path) not in done.stdout


def test_the_process_itself_is_in_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUNIE_TEST_SECRET", "CANARY")

    async def main() -> None:
        async with code_mode() as code:
            code.prepare()
            assert code._spare is not None
            await asyncio.wait([code._spare])
            (inside,) = [one for one in processes(os.getpid()) if one.name() == "monty"]
            _check_confined(inside.pid)

    asyncio.run(main())


def _check_confined(pid: int) -> None:
    own, its = Path("/proc/self"), Path(f"/proc/{pid}")
    for kind in ("net", "pid", "mnt", "user", "ipc", "uts"):
        assert (own / "ns" / kind).readlink() != (its / "ns" / kind).readlink(), kind
    variables = (its / "environ").read_text().split("\0")
    assert {line.partition("=")[0] for line in variables if line} <= {"PWD", "OLDPWD", "SHLVL", "_"}
    status = (its / "status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status
    sizes = [line for line in (its / "limits").read_text().splitlines() if "file size" in line]
    assert sizes[0].split()[3:5] == ["0", "0"]


def test_without_a_sandbox_monty_is_alone_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(available, "find", lambda: Missing("none is here", "get one"))
    code_sandbox._warn.cache_clear()

    async def main() -> None:
        for _ in range(2):
            async with code_mode() as code:
                assert (await code.run("print(1)", nothing)).output == "1"

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    code_sandbox._warn.cache_clear()
    (said,) = [one.getMessage() for one in caplog.records if one.name == code_sandbox.__name__]
    assert "none is here" in said


def test_a_sandbox_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "find", lambda: Bubblewrap("/bin/false", "", ""))

    async def main() -> PunieError:
        async with code_mode() as code:
            with pytest.raises(PunieError) as raised:
                await code.run("print(1)", nothing)
            return raised.value

    failure = asyncio.run(main()).error
    assert isinstance(failure, ToolFailed)
    assert failure.kind == "sandbox"
    assert error_text(failure).startswith("sandbox: the sandbox did not start")
    assert "punie doctor" in failure.hint


def test_cancelled_at_any_moment_it_leaves_no_process() -> None:
    """Killed in its first moments, ``bwrap`` leaves a process that waits for ever."""
    before = orphans()

    async def main() -> None:
        for moment in range(30):
            async with code_mode() as code:
                run = asyncio.create_task(code.run("print(1)", nothing))
                for _ in range(moment):
                    await asyncio.sleep(0.001)
                run.cancel()
                with suppress(asyncio.CancelledError):
                    await run

    asyncio.run(main())
    until(lambda: set(orphans()) <= set(before))


def test_killed_in_the_middle_of_a_program_the_worker_takes_the_sandbox_along() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"running\n"
        started = processes(worker.pid)
        assert "monty" in {one.name() for one in started}
        worker.kill()
        until(lambda: not any(_lives(one) for one in started))


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
