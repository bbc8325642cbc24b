"""ACP's edges: malformed messages, queues, cancelling."""

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from punie_protocol import errors, jsonrpc
from punie_protocol.jsonrpc import Envelope
from punie_protocol.messages.to_model_host import AssistantMessage, ToolMessage, UserMessage
from punie_protocol.testing.script import Call, Say, Wait, reply
from punie_protocol.testing.scripted_host import ScriptedHost
from tests.support.worker_case import Case, running
from tests.support.worker_harness import Turn

SLOW = reply(Say("never ending " * 100, chunk=4, delay=0.02))
LOOP = reply(Call("execute_code", {"code": "while True: pass"}))
CALLING = reply(Call("execute_code", {"code": "while True: list_files('*.none')"}))
QUICK = 5.0
"""Seconds after which a cancel hangs; how long it takes is `benchmarks.agent`'s to say."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "a.txt").write_text("alpha\n")
    return root


def wire(envelope: Envelope) -> jsonrpc.RpcError:
    assert isinstance(envelope.error, msgspec.Raw), envelope
    return jsonrpc.decode_error(envelope.error)


def busy_children(pid: int) -> list[str]:
    """The children that burn time; the sandbox's spare process waits."""
    children = psutil.Process(pid).children(recursive=True)
    for child in children:
        child.cpu_percent()
    time.sleep(0.15)
    return [child.name() for child in children if child.is_running() and child.cpu_percent() > 20]


async def cancelled(case: Case, answer: asyncio.Future[Envelope]) -> Turn:
    """Cancel the session; return the turn, which has to end quickly."""
    await case.worker.notify("s1", "session/cancel", {"sessionId": "s1"})
    async with asyncio.timeout(QUICK):
        response = await answer
    turn = Turn(response, case.worker.updates["s1"])
    assert turn.result["stopReason"] == "cancelled"
    assert turn.result["_meta"]["punie"]["promptId"] == "q1"
    return turn


def test_malformed_messages_get_json_rpc_errors(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, root, [reply(Say("fine"))]) as case:
            worker = case.worker
            for body in (b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"method": 3}'):
                await worker.send_raw("s1", body)
                stray = await worker.stray()
                assert stray.id is None
                assert wire(stray).code == jsonrpc.PARSE_ERROR
            bad: list[tuple[str, Any, int]] = [
                ("session/none", {}, jsonrpc.METHOD_NOT_FOUND),
                ("session/prompt", {}, jsonrpc.INVALID_PARAMS),
                ("session/prompt", [1], jsonrpc.INVALID_PARAMS),
                ("session/new", {"cwd": 3}, jsonrpc.INVALID_PARAMS),
                ("session/prompt", {"sessionId": "s1", "prompt": []}, jsonrpc.INVALID_PARAMS),
                (
                    "session/prompt",
                    {
                        "sessionId": "s1",
                        "prompt": [{"type": "image", "data": "", "mimeType": "image/png"}],
                    },
                    jsonrpc.INVALID_PARAMS,
                ),
                (
                    "session/prompt",
                    {"sessionId": "s9", "prompt": [{"type": "text", "text": "x"}]},
                    jsonrpc.PUNIE_ERROR,
                ),
            ]
            for method, params, code in bad:
                error = wire(await worker.request("s1", method, params))
                assert error.code == code, (method, params, error)
            await worker.notify("s1", "session/cancel", {"wrong": 1})
            await worker.notify("s1", "$/unknown", {})
            assert (await worker.prompt("hello")).text() == "fine"

    asyncio.run(main())


def test_context_comes_after_what_the_user_says(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, root, [reply(Say("fine"))]) as case:
            blocks = [
                {"type": "resource", "resource": {"uri": "file:///x.py", "text": "x = 1"}},
                {"type": "text", "text": "explain"},
                {"type": "resource_link", "uri": "file:///y.py", "name": "y.py"},
            ]
            params = {"sessionId": "s1", "prompt": blocks}
            await case.worker.request("s1", "session/prompt", params)
            expected = "explain\n\nfile:///x.py:\nx = 1\n\ny.py: file:///y.py"
            assert case.host.requests[0].messages == [UserMessage(text=expected)]

    asyncio.run(main())


def test_prompts_of_a_session_wait_for_each_other(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        script = [reply(Wait(0.3), Say("one")), *[reply(Say("next"))] * 16]
        async with running(tmp_path, root, script) as case:
            answers = [await case.worker.start_prompt(f"{n}") for n in range(18)]
            async with asyncio.timeout(10):
                envelopes = await asyncio.gather(*answers)
            refused = [one for one in envelopes if isinstance(one.error, msgspec.Raw)]
            assert len(refused) == 1
            data = wire(refused[0]).data
            assert isinstance(data, jsonrpc.RpcErrorData)
            assert isinstance(data.punie, errors.Overloaded)
            asked = [request.messages[-1] for request in case.host.requests]
            assert asked == [UserMessage(text=f"{n}") for n in range(17)]
            assert (await case.worker.ping()).busy == 0

    asyncio.run(main())


def test_cancelling_a_stream_stops_the_host_and_keeps_what_was_said(
    tmp_path: Path, root: Path
) -> None:
    async def main() -> None:
        async with running(tmp_path, root, [SLOW]) as case:
            answer = await case.worker.start_prompt("tell")
            await case.worker.until(lambda: case.worker.updates["s1"])
            assert (await case.worker.ping()).busy == 1
            turn = await cancelled(case, answer)
            await case.worker.until(lambda: case.host.cancelled == [1])
            said = turn.text()
            assert said.startswith("never")
            case.host.script = [reply(Say("fine"))]
            assert (await case.worker.prompt("again", prompt_id="q2")).text() == "fine"
            sent = case.host.requests[-1].messages
            assert sent == [
                UserMessage(text="tell"),
                AssistantMessage(text=said),
                UserMessage(text="again"),
            ]

    asyncio.run(main())


@pytest.mark.parametrize("script", [LOOP, CALLING], ids=["loop", "host calls"])
def test_cancelling_a_program_leaves_nothing_running(tmp_path: Path, root: Path, script) -> None:
    async def main() -> None:
        async with running(tmp_path, root, [script]) as case:
            answer = await case.worker.start_prompt("go")
            await case.worker.until(lambda: case.worker.updates["s1"])
            await asyncio.sleep(0.2)
            turn = await cancelled(case, answer)
            assert {update["status"] for _, _, update in turn.tools()} <= {"completed", "failed"}
            started = {one["toolCallId"] for one in turn.of("tool_call")}
            assert started == {update["toolCallId"] for _, _, update in turn.tools()}
            assert await asyncio.to_thread(busy_children, case.worker.pid) == []
            case.host.script = [reply(Say("fine"))]
            assert (await case.worker.prompt("again", prompt_id="q2")).text() == "fine"
            kinds = [type(message) for message in case.host.requests[-1].messages]
            assert kinds == [UserMessage, AssistantMessage, ToolMessage, UserMessage]
            told = case.host.requests[-1].messages[2]
            assert isinstance(told, ToolMessage)
            assert "it had changed nothing" in told.text

    asyncio.run(main())


def test_cancelling_before_the_first_word_leaves_no_trace(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, root, [reply(Wait(60))]) as case:
            answer = await case.worker.start_prompt("tell")
            await case.worker.until(lambda: case.host.requests)
            await cancelled(case, answer)
            await case.worker.until(lambda: case.host.cancelled == [1])
            assert case.worker.deltas["s1"] == []

    asyncio.run(main())


def test_cancelling_takes_the_waiting_prompts_along(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, root, [SLOW]) as case:
            first = await case.worker.start_prompt("one")
            second = await case.worker.start_prompt("two", prompt_id="q2")
            await case.worker.until(lambda: case.worker.updates["s1"])
            await cancelled(case, first)
            result = Turn(await second, []).result
            assert result["stopReason"] == "cancelled"
            assert len(case.host.requests) == 1

    asyncio.run(main())


def test_cancel_request_takes_one_prompt_alone(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        script = [reply(Wait(0.3), Say("one")), reply(Say("three"))]
        async with running(tmp_path, root, script) as case:
            answers = [await case.worker.start_prompt(f"{n}") for n in range(3)]
            second = 3  # session/new was 1
            await case.worker.notify("s1", "$/cancel_request", {"requestId": second})
            reasons = [Turn(await answer, []).result["stopReason"] for answer in answers]
            assert reasons == ["end_turn", "cancelled", "end_turn"]
            asked = [request.messages[-1] for request in case.host.requests]
            assert asked == [UserMessage(text="0"), UserMessage(text="2")]

    asyncio.run(main())


def test_cancel_request_stops_the_turn_and_not_what_waits(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, root, [SLOW, reply(Say("two"))]) as case:
            first = await case.worker.start_prompt("one")
            second = await case.worker.start_prompt("two", prompt_id="q2")
            await case.worker.until(lambda: case.worker.updates["s1"])
            await case.worker.notify("s1", "$/cancel_request", {"requestId": 99})
            await case.worker.notify("s1", "$/cancel_request", {"requestId": 2})
            reasons = [Turn(await one, []).result["stopReason"] for one in (first, second)]
            assert reasons == ["cancelled", "end_turn"]

    asyncio.run(main())


def test_a_cancel_while_the_host_is_away_is_quick(tmp_path: Path, root: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, root, []) as case:
            await case.host.__aexit__()
            answer = await case.worker.start_prompt("tell")
            await asyncio.sleep(0.2)
            await cancelled(case, answer)
            waiting = await case.worker.start_prompt("again", prompt_id="q2")
            await asyncio.sleep(0.2)
            async with ScriptedHost(case.host.path, [reply(Say("back"))]):
                async with asyncio.timeout(5):
                    await waiting
                assert Turn(await waiting, case.worker.updates["s1"]).text() == "back"
            await case.host.__aenter__()

    asyncio.run(main())
