"""What the model is told when a program of ours is missing, crashes or prints rubbish, through a
real worker in an environment of its own."""

import asyncio
import sys
from pathlib import Path

import pytest

from punie_protocol.messages.to_model_host import ToolMessage
from punie_protocol.testing.script import Call, Say, reply
from punie_protocol.testing.scripted_host import ScriptedHost
from tests.support.checking import script
from tests.support.repositories import Repository
from tests.support.worker_harness import WorkerHarness

SPOILT = {
    "missing": "",
    "crashed": "kill -SEGV $$",
    "failed": "echo broken >&2; exit 3",
    "rubbish": "echo rubbish",
}
TOLD: dict[tuple[str, str], list[str]] = {
    ("ruff", "ruff_check()"): ["checker_missing", *["checker_failed"] * 2, "checker_output"],
    ("ty", "typecheck()"): ["checker_missing", *["checker_failed"] * 2, "checker_output"],
    ("rg", "search('x')"): ["search_missing", *["search_failed"] * 2],
    ("rg", "symbols()"): ["search_missing", *["search_failed"] * 2],
    ("git", "git_status()"): ["git_missing", *["git_failed"] * 2],
}
"""By program and call: the kinds of the failures as `SPOILT` has them."""


@pytest.fixture
def bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an environment without programs, beside links to all else; ``PATH`` too."""
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    real = Path(sys.prefix)
    (environment / "bin" / "python").symlink_to(real / "bin" / "python")
    (environment / "lib").symlink_to(real / "lib")
    (environment / "pyvenv.cfg").write_bytes((real / "pyvenv.cfg").read_bytes())
    (environment / "bin" / "monty").hardlink_to(real / "bin" / "monty")
    monkeypatch.setenv("PATH", str(environment / "bin"))
    return environment / "bin"


def spoil(program: Path, lines: str) -> None:
    """Make a program of `lines`; without any it is none. (A git that is not on the ``PATH`` at all
    is looked for where it usually is.)"""
    script(program, lines)
    if not lines:
        program.write_text("#!/none\n")


@pytest.mark.parametrize(("program", "call"), list(TOLD))
def test_the_model_is_told_and_goes_on(tmp_path: Path, bin: Path, program: str, call: str) -> None:
    Repository(tmp_path / "project").commit({"a.py": "x = 1\n"})

    async def main() -> None:
        socket = tmp_path / "host.sock"
        command = [str(bin / "python"), "-m", "punie_workers.main", "--control-fd"]
        async with (
            ScriptedHost(socket, []) as host,
            WorkerHarness(socket, command=lambda fd: [*command, str(fd)]) as worker,
        ):
            await worker.open_project(tmp_path / "project")
            await worker.new_session()
            for state, kind in zip(SPOILT, TOLD[program, call], strict=False):
                spoil(bin / program, SPOILT[state])
                tool = call.partition("(")[0]
                direct = Call(tool, {"pattern": "x"} if tool == "search" else {})
                nested = Call("execute_code", {"code": call})
                host.script = [reply(direct), reply(nested), reply(Say("done"))]
                turn = await worker.prompt("go")
                assert turn.text() == "done"
                told = [m for m in host.requests[-1].messages if isinstance(m, ToolMessage)]
                for message in told[-2:]:
                    assert message.text.startswith(f"error: {kind}: "), (state, message.text)

    asyncio.run(main())
