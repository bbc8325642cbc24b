"""A turn is cancelled, or its worker killed, at every event of it.

The turn reads, edits directly and from a program, and answers. After a cancel the session takes
the next prompt and nothing runs or is written any more; after a crash another worker goes on and
no edit is done twice.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from punie_protocol.errors import PunieError, WireError
from punie_protocol.messages.common import Outcome
from punie_protocol.messages.to_model_host import (
    AssistantMessage,
    Generate,
    ToolMessage,
    UserMessage,
)
from punie_protocol.messages.to_supervisor import EffectStarted
from punie_protocol.permissions import Mode
from punie_protocol.testing.fake_client import FakeClient
from punie_protocol.testing.questions import always
from punie_protocol.testing.script import Call, Reply, Say, Step, Think, reply, told
from punie_protocol.testing.scripted_host import ScriptedHost
from punie_protocol.testing.store import StoreMessage

STRIDE = 2 if "PUNIE_KILLS" in os.environ else 6
"""How far apart the events are at which a part kills: with ``make faults`` and ``make test-all``
every event is one of the two parts', else every third."""

PROGRAM = """\
for name in ("b.txt", "c.txt"):
    lines = read_file(name).text
    edit_file(name, "end", "program\\nend")
print("edited", list_files("*.txt").count)
"""
START = "start\nend\n"
FILES = ("a.txt", "b.txt", "c.txt")
AFTER = {
    "a.txt": "start\ndirect\nend\n",
    "b.txt": "start\nprogram\nend\n",
    "c.txt": "start\nprogram\nend\n",
}
"""Each edit leaves ``end`` in place: done twice, it would show."""


def step(request: Generate) -> Reply:
    """Play the turn from wherever the conversation stands; a step whose outcome the model is not
    told, it looks into and does only what is missing."""
    results = [one for one in request.messages if isinstance(one, ToolMessage)]
    last = results[-1].text if results else ""
    if "mended" in last:
        return reply(Say("done"))
    if "interrupted" in last:
        return reply(Call("execute_code", {"code": MEND}))
    match len([one for one in request.messages if isinstance(one, AssistantMessage)]):
        case 0:
            return reply(Think("hm"), Say("I look. "), Call("read_file", {"path": "a.txt"}))
        case 1:
            edit = {"path": "a.txt", "old_text": "end", "new_text": "direct\nend"}
            return reply(Call("edit_file", {**edit}))
        case 2:
            return reply(Call("execute_code", {"code": PROGRAM}))
        case _:
            return reply(Say("done"))


MEND = """\
for name, word in (("a.txt", "direct"), ("b.txt", "program"), ("c.txt", "program")):
    if word not in read_file(name).text:
        edit_file(name, "end", word + "\\nend")
print("mended")
"""


@asynccontextmanager
async def agent(
    folder: Path, script: Sequence[Step]
) -> AsyncGenerator[tuple[ScriptedHost, FakeClient, Path]]:
    root = folder / "project"
    root.mkdir()
    socket = folder / "host.sock"
    async with ScriptedHost(socket, script) as host, FakeClient(socket) as client:
        await client.open_project(root)
        yield host, client, root


def fresh(root: Path) -> None:
    for name in FILES:
        (root / name).write_text(START)


def content(root: Path) -> dict[str, str]:
    """Return every file, also what a write might have left behind."""
    return {str(one.relative_to(root)): one.read_text() for one in root.rglob("*")}


def well_formed(request: Generate) -> bool:
    """Whether every tool call of the conversation has its answer right behind it."""
    waiting: list[str] = []
    for message in request.messages:
        if isinstance(message, ToolMessage):
            if message.call_id not in waiting:
                return False
            waiting.remove(message.call_id)
        elif waiting:
            return False
        if isinstance(message, AssistantMessage):
            waiting = [call.call_id for call in message.tool_calls]
    return not waiting


async def count_events(folder: Path, mode: Mode) -> int:
    """Return how many messages the worker sends in an undisturbed turn."""
    await asyncio.to_thread(folder.mkdir)
    async with agent(folder, [step] * 9) as (_, client, root):
        fresh(root)
        client.policy = always("allow-once")
        await client.new_session(mode=mode)
        before = len(client.received)
        turn = await client.prompt("go")
        assert turn.text().endswith("done")
        assert content(root) == AFTER
        return len(client.received) - before


@pytest.mark.timeout(300)
def test_cancelled_at_every_event(tmp_path: Path) -> None:
    async def main() -> None:
        events = await count_events(tmp_path / "count", Mode.ASK)
        assert events > 30
        async with agent(tmp_path, []) as (host, client, root):
            for index in range(events - 1):
                fresh(root)
                session = f"s{index}"
                client.policy = always("allow-once")
                await client.new_session(session)
                host.script = [step] * 9
                target = len(client.received) + index
                answer = await client.start_prompt("go", session, f"{session}-q")
                await client.until(
                    lambda target=target, answer=answer: (
                        len(client.received) >= target or answer.done()
                    )
                )
                await client.cancel(session)
                turn = await client.turn(answer, session)
                assert turn.stop_reason in ("cancelled", "end_turn"), index
                at_the_end = content(root)
                check_effects(client, session, at_the_end)
                assert all(not one.is_open for one in client.questions), index
                host.script = [reply(Say("fine"))]
                after = await client.prompt("and now?", session, f"{session}-q2")
                assert after.text() == "fine", index
                assert well_formed(host.requests[-1]), index
                assert content(root) == at_the_end, f"{index}: written after the cancel"
                started = {one["toolCallId"] for one in turn.of("tool_call")}
                assert started == {one["toolCallId"] for _, _, one in turn.tools()}, index
                await client.close_session(session)
            await client.until(lambda: not busy(client.pid))

    asyncio.run(main())


def check_effects(client: FakeClient, session: str, files: dict[str, str]) -> None:
    """What the journal says was done was done, and nothing else."""
    effects = client.journal.session(session).effects.values()
    done = sum(one.effect.ok is True for one in effects)
    edited = [name for name in FILES if files[name] != START]
    assert {name: files[name] for name in edited} == {name: AFTER[name] for name in edited}
    assert done == len(edited)
    assert all(one.effect.ok is not None for one in effects)
    assert set(files) == set(FILES)


def busy(pid: int) -> list[str]:
    """Return the children of the worker that compute: none may."""
    children = psutil.Process(pid).children(recursive=True)
    return [child.name() for child in children if child.status() == psutil.STATUS_RUNNING]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(2))
def test_killed_at_every_event(tmp_path: Path, part: int) -> None:
    async def main() -> None:
        events = await count_events(tmp_path / "count", Mode.ACCEPT_EDITS)
        for index in range(1 + part * STRIDE // 2, events + 1, STRIDE):
            folder = tmp_path / str(index)
            folder.mkdir()
            await killed_at(folder, index)

    asyncio.run(main())


async def killed_at(folder: Path, index: int) -> None:
    async with agent(folder, [step] * 20) as (host, client, root):
        fresh(root)
        await client.new_session(mode=Mode.ACCEPT_EDITS)
        client.kill_at(index)
        answer = await client.start_prompt("go")
        await client.until(answer.done)  # also by the end of the worker
        if answer.exception() is None:
            assert content(root) == AFTER, f"{index}: the turn had ended"
            return
        await client.lost()
        cut = content(root)
        for name in FILES:
            assert cut[name] in (START, AFTER[name]), f"{index}: {name} is neither old nor new"
        begun = [one for one in client.received if isinstance(one, EffectStarted)]
        await client.restart()
        turn = await client.resume()
        assert turn.stop_reason == "end_turn", index
        left = {name: text for name, text in content(root).items() if name in FILES}
        assert left == AFTER, f"{index}: not each edit once"
        assert all(well_formed(request) for request in host.requests), index
        unknown = [
            one
            for one in begun
            if client.journal.session("s1").effects[one.effect_id].effect.ok is None
        ]
        results = "\n".join(
            one.text for one in host.requests[-1].messages if isinstance(one, ToolMessage)
        )
        assert ("outcome unknown" in results) == bool(unknown), index
        host.script = [reply(Say("fine"))]
        assert (await client.prompt("and now?", prompt_id="q2")).text() == "fine"


def test_killed_twice(tmp_path: Path) -> None:
    """Once while it edits, once while the next worker makes up for it."""

    async def main() -> None:
        async with agent(tmp_path, [step] * 20) as (host, client, root):
            fresh(root)
            await client.new_session(mode=Mode.ACCEPT_EDITS)
            await client.start_prompt("go")
            await client.until(
                lambda: any(isinstance(one, EffectStarted) for one in client.received)
            )
            await client.restart()
            client.kill_at(6)
            with pytest.raises(PunieError):
                await client.resume()
            await client.lost()
            await client.restart()
            assert (await client.resume()).stop_reason == "end_turn"
            assert {name: content(root)[name] for name in FILES} == AFTER
            assert all(well_formed(request) for request in host.requests)
            users = [one for one in host.requests[-1].messages if isinstance(one, UserMessage)]
            assert len(users) == 1
            calls = [one for one in client.updates["s1"] if one["sessionUpdate"] == "tool_call"]
            assert len({one["toolCallId"] for one in calls}) == len(calls), "an id came again"

    asyncio.run(main())


def test_a_turn_that_had_its_answer_is_not_asked_again(tmp_path: Path) -> None:
    """Killed between the last delta and the response: the answer is there already."""

    async def main() -> None:
        async with agent(tmp_path, [reply(Say("the answer"))]) as (host, client, root):
            fresh(root)
            await client.new_session()
            stored = client.journal.store

            def store(message: StoreMessage) -> WireError | None:
                result = stored(message)
                if client.journal.session("s1").deltas:
                    client.worker.kill()
                return result

            client.journal.store = store
            await client.start_prompt("go")
            await client.lost()
            client.journal.store = stored
            await client.restart()
            turn = await client.resume()
            assert turn.stop_reason == "end_turn"
            assert len(host.requests) == 1

    asyncio.run(main())


def test_a_cancelled_edit_that_was_asked_for_is_not_done(tmp_path: Path) -> None:
    async def main() -> None:
        edit = {"path": "a.txt", "old_text": "end", "new_text": "END"}
        async with agent(tmp_path, [reply(Call("edit_file", {**edit}))]) as (host, client, root):
            fresh(root)
            client.policy = lambda _: None
            await client.new_session()
            answer = await client.start_prompt("go")
            question = await client.question()
            await client.cancel()
            turn = await client.turn(answer)
            assert turn.stop_reason == "cancelled"
            assert question.cancelled, "the dialog stays open"
            assert [one.outcome for one in turn.meta.tools] == [Outcome.CANCELLED]
            await client.answer(question, "allow-once")  # too late
            host.script = [reply(Say("fine"))]
            assert (await client.prompt("next", prompt_id="q2")).text() == "fine"
            assert content(root)["a.txt"] == START
            assert "it had changed nothing" in told_of_tools(host.requests[-1])

    asyncio.run(main())


def told_of_tools(request: Generate) -> str:
    assert told(request)
    return "\n".join(one.text for one in request.messages if isinstance(one, ToolMessage))
