"""What goes wrong in a turn, through a real worker process: odd answers, odd calls, a journal that
refuses."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from punie_protocol import errors
from punie_protocol.backends import Backend
from punie_protocol.errors import WireError
from punie_protocol.messages.common import Outcome
from punie_protocol.messages.to_model_client import StopReason
from punie_protocol.messages.to_supervisor import EffectFinished
from punie_protocol.permissions import Mode
from punie_protocol.testing.script import (
    Action,
    Call,
    Die,
    Fail,
    Reply,
    Say,
    Think,
    Wait,
    model_info,
    reply,
    tool_results,
)
from punie_protocol.testing.store import StoreMessage
from tests.support import openai_server
from tests.support.openai_server import OpenAIServer
from tests.support.worker_case import Case, running
from tests.support.worker_harness import Turn, WorkerHarness

BROKEN = "```python\ndef (\n```\n"
CHECKING = msgspec.structs.replace(model_info(), check_fences=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "a.txt").write_text("alpha\nbeta\n")
    return root


def test_the_answer_after_a_useless_one_is_what_it_is(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        script = [reply(), reply(Say(BROKEN))]
        async with running(tmp_path, root, script, model=CHECKING) as case:
            assert (await case.worker.prompt("go")).text() == BROKEN
            case.host.script = [reply(Say(BROKEN)), reply(Say("It is " + BROKEN))]
            turn = await case.worker.prompt("go", prompt_id="q2")
            assert turn.stop_reason == "end_turn"
            blocks = {one["messageId"] for one in turn.of("agent_message_chunk")}
            assert len(blocks) == 2, "two answers in one message"

    asyncio.run(main())


@pytest.mark.parametrize("empty", [(), (Say(" \n"),), (Think("hm"),)], ids=["no", "blank", "think"])
def test_nothing_twice_is_said_as_such(
    tmp_path: Path, root: Path, empty: tuple[Action, ...]
) -> None:
    async def main() -> None:
        async with running(tmp_path, root, [reply(*empty), reply(*empty)]) as case:
            turn = await case.worker.prompt("go")
            expected = errors.ModelFault(message="the model answered with nothing, twice")
            assert turn.wire_error == expected

    asyncio.run(main())


@pytest.mark.parametrize("cut", [Say(BROKEN[:12]), Think("and so on")], ids=["fence", "thought"])
def test_an_answer_cut_by_its_length_is_not_sent_back(
    tmp_path: Path, root: Path, cut: Action
) -> None:
    async def main() -> None:
        script = [reply(cut, stop_reason=StopReason.LENGTH), reply(Say("never asked"))]
        async with running(tmp_path, root, script, model=CHECKING) as case:
            turn = await case.worker.prompt("go")
            assert turn.stop_reason == "max_tokens"
            assert "limit of tokens" in turn.meta.stop_detail
            assert len(case.host.requests) == 1
            case.host.script = [reply(Say("fine"))]
            assert (await case.worker.prompt("next", prompt_id="q2")).text() == "fine"

    asyncio.run(main())


@asynccontextmanager
async def served(
    root: Path, *script: openai_server.Reply
) -> AsyncGenerator[tuple[OpenAIServer, WorkerHarness, Backend]]:
    async with OpenAIServer(script) as server, WorkerHarness("/nowhere") as worker:
        await worker.open_project(root)
        await worker.new_session()
        yield server, worker, Backend(url=server.url, name="coder")


@pytest.mark.parametrize(
    "arguments",
    ['{"pattern": "*', "[1]", '"*"', '{"pattern": "\\ud800"}', '{"limit": 1%s}' % ("0" * 30)],
    ids=["broken", "list", "text", "half-a-pair", "huge"],
)
def test_arguments_that_are_none_are_told_shown_and_counted(root: Path, arguments: str) -> None:
    async def main() -> None:
        wrong = openai_server.call("list_files", arguments)
        async with served(root, wrong, openai_server.say("sorry")) as (server, worker, backend):
            turn = await worker.prompt("go", backend=backend)
            assert turn.text() == "sorry"
            (told,) = [one for one in server.requests[-1].body["messages"] if one["role"] == "tool"]
            assert told["content"].startswith("error: invalid_request: list_files: ")
            assert [one.outcome for one in turn.meta.tools] == [Outcome.FAILED]
            (shown,) = turn.tools()
            assert shown[2]["status"] == "failed"
            server.script = [wrong] * 9
            turn = await worker.prompt("go", prompt_id="q2", backend=backend)
            assert turn.stop_reason == "max_turn_requests"
            assert "called list_files wrongly 4 times" in turn.meta.stop_detail

    asyncio.run(main())


def test_calls_with_one_id_are_done_once_each(root: Path) -> None:
    async def main() -> None:
        parts = []
        for index, name in enumerate("bc"):
            function = {"name": "write_file", "arguments": json.dumps({"path": name, "text": name})}
            call = {"index": index, "id": "same", "type": "function", "function": function}
            parts.append(openai_server.chunk({"tool_calls": [call]}))
        both = openai_server.Reply((*parts, *openai_server.ended("tool_calls")))
        async with served(root, both, openai_server.say("done")) as (server, worker, backend):
            await worker.set_mode(Mode.TRUSTED)
            turn = await worker.prompt("go", backend=backend)
            assert turn.text() == "done"
            assert [(root / name).read_text() for name in "bc"] == ["b", "c"]
            *_, asked, one, other = server.requests[-1].body["messages"]
            ids = [call["id"] for call in asked["tool_calls"]]
            assert len(set(ids)) == 2
            assert [one["tool_call_id"], other["tool_call_id"]] == ids

    asyncio.run(main())


def test_a_server_that_keeps_breaking_off_is_named(root: Path) -> None:
    async def main() -> None:
        broken = openai_server.Reply((openai_server.chunk({"content": "half"}),), cut=True)
        async with served(root, *[broken] * 4) as (server, worker, backend):
            turn = await worker.prompt("go", backend=backend)
            assert server.url in turn.wire_error.message
            assert "model host" not in turn.wire_error.message
            assert len(server.requests) == 4

    asyncio.run(main())


def test_a_wrong_call_of_any_length_is_told_and_said_in_short(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        wrong = reply(Call("list_files", {"x" * 1_000_000: 1}))
        async with running(tmp_path, root, [wrong, wrong, wrong, wrong]) as case:
            turn = await case.worker.prompt("go")
            assert turn.stop_reason == "max_turn_requests"
            assert len(turn.meta.stop_detail) < 2000
            assert all(len(one.text) < 100_000 for one in tool_results(case.host.requests[-1]))

    asyncio.run(main())


def test_an_edit_that_happened_is_not_called_a_failure(tmp_path: Path, root: Path) -> None:
    """The journal takes no note of how it ended: the turn ends, nothing more is done."""

    async def main() -> None:
        program = 'edit_file("a.txt", "beta", "beta\\nnew")\nwrite_file("b.txt", "more")'
        script = [reply(Call("execute_code", {"code": program})), reply(Say("never asked"))]
        async with running(tmp_path, root, script) as case:
            await case.worker.set_mode(Mode.TRUSTED)

            def refuse(message: StoreMessage) -> WireError | None:
                full = errors.Internal(message="disk full")
                return full if isinstance(message, EffectFinished) else None

            case.worker.journal.refuse = refuse
            turn = await case.worker.prompt("go")
            assert turn.wire_error == errors.Internal(message="disk full")
            assert (root / "a.txt").read_text() == "alpha\nbeta\nnew\n"
            assert not (root / "b.txt").exists(), "it went on without a journal"
            outcomes = {name: one["status"] for name, _, one in turn.tools()}
            assert outcomes["edit_file"] == "completed"
            assert len(case.host.requests) == 1, "the model was told something"
            case.worker.journal.refuse = None
            case.host.script = [reply(Say("fine"))]
            assert (await case.worker.prompt("again", prompt_id="q2")).text() == "fine"
            assert "done: edit_file a.txt" in tool_results(case.host.requests[-1])[0].text

    asyncio.run(main())


def test_results_of_a_turn_that_failed_are_told_once_from_then_on(
    tmp_path: Path, root: Path
) -> None:
    async def main() -> None:
        script = [reply(Call("list_files", {})), reply(Fail(errors.ModelFault(message="broken")))]
        async with running(tmp_path, root, script) as case:
            await case.worker.prompt("go")
            case.host.script = [reply(Say("one"))]
            await case.worker.prompt("second", prompt_id="q2")
            seen = [type(one).__name__ for one in case.host.requests[-1].messages]
            assert seen == ["UserMessage", "AssistantMessage", "ToolMessage", "UserMessage"]
            await case.worker.restart()
            case.host.script = [reply(Say("two"))]
            await case.worker.prompt("third", prompt_id="q3")
            again = [type(one).__name__ for one in case.host.requests[-1].messages]
            assert again == [*seen, "AssistantMessage", "UserMessage"]

    asyncio.run(main())


def times(turn: Turn) -> tuple[float, float, float]:
    """Return framework, permission wait and the sum of all shares but the total."""
    t = turn.meta.timings_ms
    return (
        t.framework,
        t.permission_wait,
        t.queue + t.prefill + t.decode + t.tools + t.permission_wait + t.framework,
    )


async def measured(case: Case, *script: Reply) -> tuple[float, float]:
    case.host.script = [*script]
    turn = await case.worker.prompt("go", prompt_id=f"q{len(case.host.requests)}")
    framework, waited, total = times(turn)
    assert total == pytest.approx(turn.meta.timings_ms.total)
    return framework, waited


def test_the_time_of_a_step_that_failed_is_not_ours(tmp_path: Path, root: Path) -> None:
    """Nor is the wait before it is tried again."""

    async def main() -> None:
        busy = Fail(errors.Overloaded(message="busy"))
        async with running(tmp_path, root) as case:
            lost = await measured(case, reply(Wait(1.0), Say("half"), Die()), reply(Say("whole")))
            assert lost[0] < 900
            again = await measured(case, *[reply(busy)] * 3, reply(Say("at last")))
            assert again[0] < 2500, "2.6 s passed between the requests"

    asyncio.run(main())


def test_nobody_asked_is_no_wait_for_a_permission(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, root) as case:
            _, waited = await measured(case, reply(Say("hello")))
            assert waited == 0.0

    asyncio.run(main())
