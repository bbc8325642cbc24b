"""Who may do what: every mode × tool × route × answer, verified on the disk.

What must happen is written down here a second time, in words of its own (`happens`), and compared
with what a real worker does with real files.
"""

import asyncio
import hashlib
import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from punie_protocol.messages.common import Outcome
from punie_protocol.permissions import Mode, PermissionSettings, PromptPermissions, Rule
from punie_protocol.testing.fake_client import FakeClient
from punie_protocol.testing.questions import Question, always, nobody
from punie_protocol.testing.script import Call, Say, reply, told
from punie_protocol.testing.scripted_host import ScriptedHost
from punie_protocol.testing.turns import Turn
from punie_protocol.tool_types import Permission

ARGUMENTS = {
    "edit_file": {"path": "a.py", "old_text": "one", "new_text": "uno"},
    "write_file": {"path": "new/b.py", "text": "fresh\n"},
    "delete_file": {"path": "a.py"},
    "move_file": {"path": "a.py", "destination": "moved/c.py"},
}
ROUTES = ("direct", "program", "helper")
ANSWERS = ("allow-once", "allow-for-session", "reject-once", "reject-always", None)
"""``None`` is a dialog that is closed without an answer."""


@asynccontextmanager
async def agent(
    folder: Path, settings: PermissionSettings | None = None
) -> AsyncGenerator[tuple[ScriptedHost, FakeClient, Path]]:
    """A worker with an open project; sessions are each test's own."""
    root = folder / "project"
    root.mkdir()
    socket = folder / "host.sock"
    async with (
        ScriptedHost(socket, []) as host,
        FakeClient(socket, permissions=settings) as client,
    ):
        await client.open_project(root)
        yield host, client, root


def fresh(root: Path) -> None:
    """Put the project back to one file."""
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (root / "a.py").write_text("one\ntwo\n")


def tree(root: Path) -> dict[str, str]:
    """Return every file and folder, with the hash of its content and its mode."""
    return {
        str(path.relative_to(root)): ""
        if path.is_dir()
        else f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mode:o}"
        for path in sorted(root.rglob("*"))
    }


def call_of(tool: str, route: str) -> Call:
    """Return the model's call of a tool, on one of the routes into it."""
    arguments = ARGUMENTS[tool]
    if route == "direct":
        return Call(tool, {**arguments})
    inner = f"{tool}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
    program = f"print({inner}.path)"
    if route == "helper":
        program = f"def act():\n    return [{inner} for _ in range(1)]\nprint(act()[0].path)"
    return Call("execute_code", {"code": program})


async def run(
    host: ScriptedHost,
    client: FakeClient,
    call: Call,
    session: str,
    *,
    prompt: str = "q",
    permissions: PromptPermissions | None = None,
) -> tuple[Turn, str]:
    """Have the model make one call; return the turn and what the model was told of it."""
    host.script = [reply(call), reply(Say("done"))]
    turn = await client.prompt("go", session, f"{session}-{prompt}", permissions=permissions)
    return turn, told(host.requests[-1])


def happens(mode: Mode, answer: str | None) -> tuple[bool, bool]:
    """Return whether somebody is asked, and whether it is done."""
    if mode is Mode.READ_ONLY:
        return False, False
    if mode in (Mode.TRUSTED, Mode.ACCEPT_EDITS):
        return False, True
    return True, answer in ("allow-once", "allow-for-session")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("route", ROUTES)
def test_edits_by_mode_tool_and_answer(tmp_path: Path, mode: Mode, route: str) -> None:
    async def main() -> None:
        async with agent(tmp_path) as (host, client, root):
            for tool, answer in itertools.product(ARGUMENTS, ANSWERS):
                session = f"{tool}-{answer}"
                fresh(root)
                before, asked = tree(root), len(client.questions)
                await client.new_session(session, mode=mode)
                client.policy = closing(client) if answer is None else always(answer)
                turn, text = await run(host, client, call_of(tool, route), session)
                is_asked, is_done = happens(mode, answer)
                assert (len(client.questions) - asked) == is_asked, session
                assert (tree(root) != before) == is_done, session
                outcomes = {one.tool: one.outcome for one in turn.meta.tools}
                assert outcomes[tool] is (Outcome.OK if is_done else Outcome.DENIED), session
                assert turn.stop_reason == "end_turn"
                assert text.startswith("error: denied:") != is_done, text
                if not is_done:
                    assert "not done" in text
                    assert not client.journal.session(session).effects
                else:
                    (effect,) = client.journal.session(session).effects.values()
                    assert effect.effect.ok
                await client.close_session(session)

    asyncio.run(main())


def closing(client: FakeClient):
    """The policy of somebody who closes every dialog."""
    tasks: list[asyncio.Task[None]] = []

    def close(question: Question) -> None:
        tasks.append(asyncio.ensure_future(client.answer(question, None)))

    return close


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("mode", list(Mode))
def test_reading_never_asks(tmp_path: Path, mode: Mode, route: str) -> None:
    async def main() -> None:
        async with agent(tmp_path) as (host, client, root):
            fresh(root)
            await client.new_session(mode=mode)
            call = Call("read_file", {"path": "a.py"})
            if route != "direct":
                call = Call("execute_code", {"code": "print(read_file('a.py').text)"})
            _, text = await run(host, client, call, "s1")
            assert "one" in text
            assert not client.questions

    asyncio.run(main())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("answer", ["allow-for-session", "reject-always"])
def test_an_answer_for_the_session_is_not_asked_for_again(
    tmp_path: Path, route: str, answer: str
) -> None:
    """Also not by a worker that comes after a crash, but by another session."""

    async def main() -> None:
        async with agent(tmp_path) as (host, client, root):
            allowed = answer == "allow-for-session"
            client.policy = always(answer)
            await client.new_session("s1")
            for number, tool in enumerate(ARGUMENTS):
                fresh(root)
                before = tree(root)
                await run(host, client, call_of(tool, route), "s1", prompt=str(number))
                assert (tree(root) != before) == allowed
            assert len(client.questions) == 1
            await client.restart()
            fresh(root)
            before = tree(root)
            await run(host, client, call_of("edit_file", route), "s1", prompt="after")
            assert (tree(root) != before) == allowed
            assert len(client.questions) == 1
            await client.new_session("s2")
            await run(host, client, call_of("delete_file", route), "s2")
            assert len(client.questions) == 2

    asyncio.run(main())


@pytest.mark.parametrize("route", ROUTES)
def test_what_a_prompt_brings_holds_for_it_alone(tmp_path: Path, route: str) -> None:
    async def main() -> None:
        async with agent(tmp_path) as (host, client, root):
            fresh(root)
            await client.new_session(mode=Mode.READ_ONLY)
            edit = PromptPermissions(mode=Mode.ASK, allow=[Permission.EDIT])
            call = call_of("edit_file", route)
            _, text = await run(host, client, call, "s1", prompt="1", permissions=edit)
            assert not text.startswith("error")
            fresh(root)
            before = tree(root)
            _, text = await run(host, client, call, "s1", prompt="2")
            assert text.startswith("error: denied:")
            assert tree(root) == before
            assert not client.questions

    asyncio.run(main())


@pytest.mark.parametrize("route", ROUTES)
def test_a_rule_that_forbids_wins_over_everything(tmp_path: Path, route: str) -> None:
    async def main() -> None:
        settings = PermissionSettings(
            mode=Mode.TRUSTED, allow=[Rule(tool="edit")], deny=[Rule(path="secret/**")]
        )
        async with agent(tmp_path, settings) as (host, client, root):
            fresh(root)
            (root / "secret").mkdir()
            (root / "secret" / "a.py").write_text("one\n")
            (root / "way").symlink_to("secret")
            before = tree(root)
            await client.new_session()
            everything = PromptPermissions(mode=Mode.TRUSTED, allow=[Permission.EDIT])
            for number, path in enumerate(("secret/a.py", "way/a.py", "./x/../secret/a.py")):
                (root / "x").mkdir(exist_ok=True)
                before = tree(root)
                arguments = ARGUMENTS["edit_file"] | {"path": path}
                call = Call("edit_file", {**arguments})
                if route != "direct":
                    code = f"edit_file({path!r}, 'one', 'uno')"
                    call = Call("execute_code", {"code": code})
                prompt = str(number)
                _, text = await run(host, client, call, "s1", prompt=prompt, permissions=everything)
                assert text.startswith("error: denied:"), path
                assert "deny" in text
                assert tree(root) == before
            assert not client.questions

    asyncio.run(main())


def test_nobody_there_is_a_rejection_that_says_so(tmp_path: Path) -> None:
    """The supervisor answers for those who are not there, with an error."""

    async def main() -> None:
        async with agent(tmp_path) as (host, client, root):
            fresh(root)
            before = tree(root)
            client.policy = nobody
            await client.new_session()
            host.script = [reply(call_of("edit_file", "direct")), reply(Say("done"))]
            answer = await client.start_prompt("go")
            question = await client.question()
            late = {"type": "timed_out", "message": "nobody answered in 600 s", "limit_s": 600.0}
            error = {"code": -32050, "message": "nobody answered in 600 s", "data": {"punie": late}}
            body = {"jsonrpc": "2.0", "id": question.id, "error": error}
            await client.send_raw("s1", msgspec.json.encode(body))
            turn = await client.turn(answer)
            assert turn.stop_reason == "end_turn"
            assert "nobody answered" in told(host.requests[-1])
            assert tree(root) == before

    asyncio.run(main())


def test_the_question_shows_what_will_happen(tmp_path: Path) -> None:
    async def main() -> None:
        async with agent(tmp_path) as (host, client, root):
            fresh(root)
            client.policy = always("reject-once")
            await client.new_session()
            await run(host, client, call_of("edit_file", "program"), "s1")
            (question,) = client.questions
            (diff,) = question.call["content"]
            assert diff["path"] == str(root / "a.py")
            assert (diff["oldText"], diff["newText"]) == ("one\ntwo\n", "uno\ntwo\n")
            assert question.options == [option for option in ANSWERS if option]
            (started,) = (
                one
                for one in client.updates["s1"]
                if one["sessionUpdate"] == "tool_call" and one["_meta"]["punie"].get("parent")
            )
            assert question.call["toolCallId"] == started["toolCallId"]

    asyncio.run(main())


def test_a_mode_set_while_somebody_is_asked_decides(tmp_path: Path) -> None:
    async def main() -> None:
        async with agent(tmp_path) as (host, client, root):
            fresh(root)
            await client.new_session()
            client.policy = nobody
            host.script = [reply(call_of("edit_file", "direct")), reply(Say("done"))]
            answer = await client.start_prompt("go")
            question = await client.question()
            await client.set_mode(Mode.ACCEPT_EDITS)
            turn = await client.turn(answer)
            assert turn.stop_reason == "end_turn"
            assert question.cancelled
            assert (root / "a.py").read_text() == "uno\ntwo\n"

    asyncio.run(main())


def test_the_wait_for_an_answer_is_no_time_of_the_tool(tmp_path: Path) -> None:
    async def main() -> None:
        async with agent(tmp_path) as (host, client, root):
            fresh(root)
            await client.new_session()
            client.policy = nobody
            host.script = [reply(call_of("edit_file", "program")), reply(Say("done"))]
            answer = await client.start_prompt("go")
            question = await client.question()
            for _ in range(20):
                await client.ping()
            loop = asyncio.get_running_loop()
            asked_for = loop.time()
            await client.until(lambda: loop.time() - asked_for > 0.2)
            await client.answer(question, "allow-once")
            timings = (await client.turn(answer)).meta
            assert timings.timings_ms.permission_wait >= 200
            for one in timings.tools:
                assert one.wait_ms >= 200
            assert timings.timings_ms.tools < timings.timings_ms.total - 200

    asyncio.run(main())
