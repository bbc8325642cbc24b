"""Commands and tests through a real worker: asked for, run in the sandbox, shown, told."""

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import msgspec
import psutil
import pytest

from punie_protocol.errors import RemoteError
from punie_protocol.isolation import WorkerLimits
from punie_protocol.messages.common import Outcome
from punie_protocol.messages.to_supervisor import ProgramsRunning
from punie_protocol.permissions import Mode, PermissionSettings, PromptPermissions, Rule
from punie_protocol.testing.fake_client import FakeClient
from punie_protocol.testing.questions import Question, always
from punie_protocol.testing.script import Call, Say, reply, told
from punie_protocol.testing.scripted_host import ScriptedHost
from punie_protocol.testing.turns import Turn
from punie_protocol.testing.waiting import until
from punie_protocol.tool_types import Permission
from punie_protocol.verbatim import unfenced
from punie_workers.sandbox import placeholders
from punie_workers.sandbox.names import Absent
from tests.support.pytest_project import project

TRUSTED = PermissionSettings(mode=Mode.TRUSTED)
_prompts = itertools.count(1)
TESTS = {"test_a.py": "def test_one(): pass\ndef test_two(): assert 0, 'two is wrong'\n"}


@asynccontextmanager
async def agent(
    folder: Path, root: Path, settings: PermissionSettings = TRUSTED
) -> AsyncGenerator[tuple[ScriptedHost, FakeClient]]:
    """A worker with an open project."""
    socket = folder / "host.sock"
    async with ScriptedHost(socket, []) as host, FakeClient(socket, permissions=settings) as client:
        await client.open_project(root)
        yield host, client


async def call(
    host: ScriptedHost,
    client: FakeClient,
    name: str,
    arguments: dict[str, Any],
    session: str = "s1",
    permissions: PromptPermissions | None = None,
) -> tuple[Turn, str]:
    """Have the model make one call; return the turn and what the model was told of it."""
    host.script = [reply(Call(name, arguments)), reply(Say("done"))]
    turn = await client.prompt(
        "go", session, f"{session}-{next(_prompts)}", permissions=permissions
    )
    return turn, told(host.requests[-1])


def running(mark: str) -> bool:
    """Whether a process has `mark` among its words."""
    found = psutil.process_iter(["cmdline", "status"])
    return any(
        mark in (one.info["cmdline"] or []) and one.info["status"] != psutil.STATUS_ZOMBIE
        for one in found
    )


def seconds(tmp_path: Path) -> str:
    """Return an argument of ``sleep`` that no other test has."""
    return f"4{abs(hash(str(tmp_path))) % 10**9}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty project."""
    root = tmp_path / "project"
    root.mkdir()
    return root


def shown_texts(turn: Turn) -> list[str]:
    """Return the texts that the turn's tool calls showed, in order."""
    return [
        unfenced(content["content"]["text"])
        for update in turn.of("tool_call_update")
        for content in update.get("content") or []
        if content["type"] == "content"
    ]


def test_a_command_is_shown_and_told(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        async with agent(tmp_path, root) as (host, client):
            await client.new_session()
            arguments = {"command": ["sh", "-c", "echo hello; exit 2"]}
            turn, text = await call(host, client, "run_command", arguments)
            result = msgspec.json.decode(text)
            assert (result["ok"], result["exit_code"], result["output"]) == (False, 2, "hello")
            (start,) = turn.of("tool_call")
            assert start["title"] == "run_command: sh -c 'echo hello; exit 2'"
            assert start["kind"] == "execute"
            assert shown_texts(turn) == [
                "$ sh -c 'echo hello; exit 2'\nfor at most 120 s",
                "hello\n",
            ]
            (effect,) = client.journal.session("s1").effects.values()
            assert effect.effect.summary == "status 2"

    asyncio.run(main())


def test_programs_call_both(tmp_path: Path) -> None:
    root = project(tmp_path.resolve() / "project", TESTS)
    code = """
r = run_command("echo $((6 * 7))")
t = pytest_run(select="two")
print(r.ok, r.exit_code, r.output, t.ok, t.failed, t.tests[0].name)
try:
    run_command(["no-such-program"])
except RuntimeError as e:
    print("failed:", e)
run_command(["sh", "-c", "echo said; kill -SEGV $$"])
"""

    async def main() -> None:
        async with agent(tmp_path, root) as (host, client):
            await client.new_session()
            turn, text = await call(host, client, "execute_code", {"code": code})
            assert text.startswith("error: command_killed: 'sh' was ended by SIGSEGV")
            assert "True 0 42 False 1 test_a.py::test_two" in text
            assert "failed: command_missing: " in text
            assert text.endswith("output of what failed:\nsaid")
            outcomes = [(one.tool, one.outcome) for one in turn.meta.tools]
            assert outcomes == [
                ("execute_code", Outcome.FAILED),
                ("run_command", Outcome.OK),
                ("pytest_run", Outcome.OK),
                ("run_command", Outcome.FAILED),
                ("run_command", Outcome.FAILED),
            ]

    asyncio.run(main())


def test_a_cancelled_turn_leaves_nothing(tmp_path: Path, root: Path) -> None:
    mark = seconds(tmp_path)

    async def main() -> None:
        async with agent(tmp_path, root) as (host, client):
            await client.new_session()
            host.script = [reply(Call("run_command", {"command": f"touch begun; sleep {mark}; :"}))]
            answer = await client.start_prompt("go")
            await until((root / "begun").exists, "start of the command")
            await client.cancel()
            await answer
            assert not running(mark)
            (effect,) = client.journal.session("s1").effects.values()
            assert effect.effect.ok, "it was begun"

    asyncio.run(main())


def test_a_killed_worker_leaves_nothing_and_the_outcome_is_unknown(
    tmp_path: Path, root: Path
) -> None:
    mark = seconds(tmp_path)

    async def main() -> None:
        async with agent(tmp_path, root) as (host, client):
            await client.new_session()
            host.script = [reply(Call("run_command", {"command": f"touch begun; sleep {mark}; :"}))]
            await client.start_prompt("go")
            await until((root / "begun").exists, "start of the command")
            await client.kill()
            await until(lambda: not running(mark), "end of the command")
            await client.restart()
            host.script = [reply(Say("I look first"))]
            await client.resume()
            text = told(host.requests[-1])
            assert "outcome unknown" in text
            assert f"run_command touch begun; sleep {mark}; :" in text

    asyncio.run(main())


def test_background_commands_are_the_projects(tmp_path: Path, root: Path) -> None:
    mark = seconds(tmp_path)

    async def main() -> None:
        async with agent(tmp_path, root) as (host, client):
            await client.new_session()
            await client.new_session("s2")
            arguments = {"command": ["sleep", mark], "background": True}
            _, text = await call(host, client, "run_command", arguments)
            job = msgspec.json.decode(text)["job"]
            _, text = await call(host, client, "run_command", {"job": "*"}, "s2")
            assert job in text
            assert running(mark)
            turn, text = await call(host, client, "run_command", {"job": job, "stop": True}, "s2")
            assert not msgspec.json.decode(text)["running"]
            assert turn.of("tool_call")[0]["title"] == f"run_command: job {job}"
            assert await client.commands() == []
            await call(host, client, "run_command", arguments, "s2")
            [told] = await client.commands()
            assert told.command == f"sleep {mark}"
            assert await client.commands(stop=True) == [msgspec.structs.replace(told, seconds=ANY)]
            await until(lambda: not running(mark), "end of the command")
            with pytest.raises(RemoteError, match="is not open here"):
                await client.commands("p9")
            await call(host, client, "run_command", arguments, "s2")
            await client.close_project()
            await until(lambda: not running(mark), "end of the command")
            counts = [one.count for one in client.received if isinstance(one, ProgramsRunning)]
            assert counts[:5] == [1, 0, 1, 0, 1]

    asyncio.run(main())


@pytest.mark.parametrize("killed", [False, True])
def test_background_commands_end_with_their_worker(
    tmp_path: Path, root: Path, killed: bool
) -> None:
    mark = seconds(tmp_path)

    async def main() -> None:
        async with agent(tmp_path, root) as (host, client):
            await client.new_session()
            arguments = {"command": f"setsid sleep {mark} & sleep {mark}", "background": True}
            await call(host, client, "run_command", arguments)
            await until(lambda: running(mark), "start of the command")
            if killed:
                await client.kill()
        await until(lambda: not running(mark), "end of the command")

    asyncio.run(main())


ARGUMENTS: dict[str, dict[str, Any]] = {
    "run_command": {"command": "echo x > made"},
    "pytest_run": {"path": "test_made.py"},
}
MAKING = {"test_made.py": "def test(): open('made', 'w').write('x')\n"}
ANSWERS = ("allow-once", "allow-for-session", "reject-once", "reject-always", None)


def closing(client: FakeClient):
    """The policy of somebody who closes every dialog."""
    tasks: list[asyncio.Task[None]] = []

    def close(question: Question) -> None:
        tasks.append(asyncio.ensure_future(client.answer(question, None)))

    return close


def happens(tool: str, mode: Mode, answer: str | None) -> tuple[bool, bool, bool]:
    """Return whether somebody is asked, whether it is run, and whether it changes the project."""
    if mode is Mode.READ_ONLY:
        return False, tool == "pytest_run", False
    if mode is Mode.TRUSTED:
        return False, True, True
    allowed = answer in ("allow-once", "allow-for-session")
    return True, allowed, allowed


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", list(Mode))
def test_what_runs_by_mode_tool_and_answer(tmp_path: Path, mode: Mode) -> None:
    root = project(tmp_path.resolve() / "project", MAKING)
    made = root / "made"

    async def main() -> None:
        async with agent(tmp_path, root, PermissionSettings()) as (host, client):
            for tool, answer in itertools.product(ARGUMENTS, ANSWERS):
                session = f"{tool}-{answer}"
                made.unlink(missing_ok=True)
                asked = len(client.questions)
                await client.new_session(session, mode=mode)
                client.policy = closing(client) if answer is None else always(answer)
                turn, text = await call(host, client, tool, ARGUMENTS[tool], session)
                is_asked, is_run, is_changed = happens(tool, mode, answer)
                assert len(client.questions) - asked == is_asked, session
                assert made.exists() == is_changed, (session, text)
                (one,) = turn.meta.tools
                assert one.outcome is (Outcome.OK if is_run else Outcome.DENIED), (session, text)
                if tool == "pytest_run" and mode is Mode.READ_ONLY:
                    assert "Read-only file system" in text
                await client.close_session(session)

    asyncio.run(main())


def test_answers_for_the_session_and_the_network(tmp_path: Path, root: Path) -> None:
    """What is allowed for the session is asked once; with the network it is another question, which
    a permission to run commands does not answer."""
    command = {"command": ["sh", "-c", "cat /proc/net/dev"]}
    online = command | {"network": True}
    running_allowed = PromptPermissions(allow=[Permission.EXECUTE])

    async def main() -> None:
        async with agent(tmp_path, root, PermissionSettings()) as (host, client):
            client.policy = always("allow-for-session")
            await client.new_session()
            for arguments, questions in ((command, 1), (command, 1), (online, 2), (online, 2)):
                await call(host, client, "run_command", arguments)
                assert len(client.questions) == questions
            texts = [
                unfenced(one.call["content"][0]["content"]["text"]) for one in client.questions
            ]
            first = "$ sh -c 'cat /proc/net/dev'\nfor at most 120 s"
            assert texts == [first, f"{first}\nwith access to the network"]
            names = [option["name"] for option in client.questions[1].params["options"]]
            assert "Allow exactly this command, with the network, in this session" in names
            client.policy = always("reject-once")
            _, text = await call(host, client, "run_command", online | {"cwd": "."})
            assert not text.startswith("error"), "it was allowed for the session"
            await client.new_session("s2")
            _, text = await call(host, client, "run_command", command, "s2", running_allowed)
            assert not text.startswith("error")
            _, text = await call(host, client, "run_command", online, "s2", running_allowed)
            assert text.startswith("error: denied: ")

    asyncio.run(main())


@pytest.mark.parametrize("route", ["direct", "program"])
def test_a_rule_that_forbids_a_command(tmp_path: Path, root: Path, route: str) -> None:
    settings = PermissionSettings(mode=Mode.TRUSTED, deny=[Rule(command="git push")])
    commands = [
        (["git", "push"], False),
        ("cd . && git push", False),
        (["env", "A=1", "git", "-C", ".", "push"], False),
        ("echo pushed", True),
    ]

    async def main() -> None:
        async with agent(tmp_path, root, settings) as (host, client):
            await client.new_session()
            for command, is_run in commands:
                name, arguments = "run_command", {"command": command}
                if route == "program":
                    name = "execute_code"
                    arguments = {"code": f"print(run_command({command!r}).output)"}
                _, text = await call(host, client, name, arguments)
                assert ("rule deny command=git push" not in text) == is_run, (command, text)

    asyncio.run(main())


class Limited(FakeClient):
    """A supervisor that gives its worker limits."""

    def __init__(self, socket: Path, limits: WorkerLimits) -> None:
        super().__init__(socket, permissions=TRUSTED)
        self._welcome = msgspec.structs.replace(self._welcome, limits_of_process=limits)


def test_a_command_over_the_worker_s_limits_ends_alone_and_the_model_is_told(
    tmp_path: Path, root: Path
) -> None:
    socket = tmp_path / "host.sock"

    async def main() -> None:
        limits = WorkerLimits(memory_mb=256)
        async with ScriptedHost(socket, []) as host, Limited(socket, limits) as client:
            await client.open_project(root)
            await client.new_session()
            command = "head -c 220000000 /dev/zero > /tmp/x; sleep 100"
            _, text = await call(host, client, "run_command", {"command": command})
            assert "192 MB are allowed" in text
            _, text = await call(host, client, "run_command", {"command": ["echo", "more"]})
            assert msgspec.json.decode(text)["ok"]

    asyncio.run(main())


def test_what_a_killed_worker_left_in_a_project_goes_when_it_is_opened(
    tmp_path: Path, root: Path
) -> None:
    folder = os.open(root, os.O_RDONLY)
    placeholders.make(folder, ".vscode", Absent.FOLDER)
    os.close(folder)
    (root / ".zed").mkdir()

    async def main() -> None:
        async with agent(tmp_path, root):
            assert await asyncio.to_thread(os.listdir, root) == [".zed"]

    asyncio.run(main())
