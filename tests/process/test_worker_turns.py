"""Turns through a real worker process, with a scripted model host."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from punie_protocol import errors, jsonrpc
from punie_protocol.client import ResultMeta
from punie_protocol.messages.common import PromptStyle, Role, Usage
from punie_protocol.messages.to_model_client import StopReason
from punie_protocol.messages.to_model_host import (
    AssistantMessage,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from punie_protocol.testing.script import Call, Die, Fail, Say, Think, Wait, model_info, reply
from tests.support.worker_case import running
from tests.support.worker_harness import Turn, WorkerHarness

LIST = Call("list_files", {"pattern": "*.txt"})


def project(folder: Path) -> Path:
    root = folder / "project"
    root.mkdir()
    (root / "a.txt").write_text("alpha\nbeta\n")
    (root / "b.txt").write_text("gamma\n")
    return root


def meta(turn: Turn) -> ResultMeta:
    return msgspec.convert(turn.result["_meta"]["punie"], ResultMeta)


def test_an_answer_streams_in_chunks_and_is_measured(tmp_path: Path) -> None:
    async def main() -> None:
        script = [reply(Think("hm"), Say("abcdefgh" * 4, chunk=8, delay=0.08))]
        async with running(tmp_path, project(tmp_path), script) as case:
            assert case.worker.hello is not None
            assert case.worker.hello.role is Role.WORKER
            assert case.worker.hello.pid == case.worker.pid
            turn = await case.worker.prompt("hello")
            assert turn.text() == "abcdefgh" * 4
            assert turn.text("agent_thought_chunk") == "hm"
            chunks = turn.of("agent_message_chunk")
            assert len(chunks) > 1
            assert len({chunk["messageId"] for chunk in chunks}) == 1
            assert chunks[0]["_meta"]["punie"]["promptId"] == "q1"
            assert turn.result["stopReason"] == "end_turn"
            told = meta(turn)
            assert (told.prompt_id, told.model, told.isolation) == ("q1", "scripted", "process")
            assert told.usage == Usage(input_tokens=10, cached_tokens=4, output_tokens=5)
            times = told.timings_ms
            assert times.queue >= 1.5 + 1.0
            assert times.prefill == 2.0
            assert times.decode == 3.0
            assert times.total >= times.queue + times.prefill + times.decode + 300
            assert 0 < times.ttft < times.total

    asyncio.run(main())


def test_a_direct_tool_call_is_shown_and_told_as_json(tmp_path: Path) -> None:
    async def main() -> None:
        script = [reply(Say("looking"), LIST), reply(Say("two"))]
        async with running(tmp_path, project(tmp_path), script) as case:
            turn = await case.worker.prompt("how many?")
            start = turn.of("tool_call")[0]
            assert start["rawInput"] == {"pattern": "*.txt", "path": ".", "limit": 1000}
            assert start["kind"] == "search"
            name, parent, update = turn.tools()[0]
            assert (name, parent, update["status"]) == ("list_files", None, "completed")
            expected = {"count": 2, "truncated": False, "files": ["a.txt", "b.txt"]}
            assert update["rawOutput"] == expected
            assert update["_meta"]["punie"]["durationMs"] > 0
            told = case.host.requests[1].messages[-1]
            assert isinstance(told, ToolMessage)
            assert msgspec.json.decode(told.text) == expected
            texts = turn.of("agent_message_chunk")
            assert [text["content"]["text"] for text in texts] == ["looking", "two"]
            assert texts[0]["messageId"] != texts[1]["messageId"]
            assert meta(turn).timings_ms.tools > 0
            assert meta(turn).usage.output_tokens == 10
            assert len(case.worker.deltas["s1"]) == 3

    asyncio.run(main())


def test_a_conversation_goes_on_in_another_worker(tmp_path: Path) -> None:
    async def main() -> None:
        root = project(tmp_path)
        async with running(tmp_path, root, [reply(LIST), reply(Say("two"))]) as case:
            await case.worker.prompt("how many?")
            deltas = case.worker.deltas["s1"]
            async with WorkerHarness(case.host.path) as second:
                await second.open_project(root)
                await second.open_session(deltas=deltas)
                case.host.script = [reply(Say("a.txt"))]
                turn = await second.prompt("the first?", prompt_id="q2")
                assert turn.text() == "a.txt"
                assert len(second.deltas["s1"]) == 4
            messages = case.host.requests[-1].messages
            kinds = [UserMessage, AssistantMessage, ToolMessage, AssistantMessage, UserMessage]
            assert [type(message) for message in messages] == kinds
            assert messages[0] == UserMessage(text="how many?")
            assert messages[3] == AssistantMessage(text="two")

    asyncio.run(main())


def test_a_conversation_comes_in_several_messages(tmp_path: Path) -> None:
    async def main() -> None:
        root = project(tmp_path)
        async with running(tmp_path, root, [reply(LIST), reply(Say("two"))]) as case:
            await case.worker.prompt("how many?")
            first, *more = case.worker.deltas["s1"]
            async with WorkerHarness(case.host.path) as second:
                await second.open_project(root)
                await second.open_session(deltas=[first])
                for delta in more:
                    await second.send_history([delta])
                case.host.script = [reply(Say("a.txt"))]
                assert (await second.prompt("the first?", prompt_id="q2")).text() == "a.txt"
                assert len(second.deltas["s1"]) == 4
            messages = case.host.requests[-1].messages
            assert messages[0] == UserMessage(text="how many?")
            assert messages[3] == AssistantMessage(text="two")

    asyncio.run(main())


def test_a_history_that_cannot_be_read_closes_its_session_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, project(tmp_path), [reply(Say("fine"))]) as case:
            await case.worker.send_history([b"{"])
            turn = await case.worker.prompt("hello")
            assert isinstance(turn.wire_error, errors.Internal)
            await case.worker.new_session("s2")
            assert (await case.worker.prompt("hello", "s2")).text() == "fine"

    asyncio.run(main())


def test_a_conversation_over_the_frame_limit_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        root = project(tmp_path)
        script = [reply(Say("one")), reply(Say("two")), reply(Say("three"))]
        wide = model_info(window=4_000_000)
        async with running(tmp_path, root, script, model=wide) as case:
            text = "\N{SNOWMAN}" * 2_000_000
            turns = [await case.worker.prompt(text, prompt_id=f"q{n}") for n in range(3)]
            assert [turn.text() for turn in turns] == ["one", "two", "three"]
            sent = case.host.requests[-1].messages
            assert sent == [
                UserMessage(text=text),
                AssistantMessage(text="two"),
                UserMessage(text=text),
            ]
            assert "earlier conversation left out" in turns[2].text("agent_thought_chunk")

    asyncio.run(main())


def test_a_step_is_repeated_when_the_host_dies(tmp_path: Path) -> None:
    async def main() -> None:
        script = [
            reply(LIST),
            reply(Say("half an", chunk=4, delay=0.05), Die()),
            reply(Say("a whole answer")),
        ]
        async with running(tmp_path, project(tmp_path), script) as case:
            turn = await case.worker.prompt("how many?")
            assert turn.result["stopReason"] == "end_turn"
            last = turn.of("agent_message_chunk")[-1]
            assert last["content"]["text"] == "a whole answer"
            first = turn.of("agent_message_chunk")[0]
            assert first["content"]["text"].startswith("half")
            assert first["messageId"] != last["messageId"]
            assert case.host.requests[1].messages == case.host.requests[2].messages
            assert len(turn.of("tool_call")) == 1, "a tool ran twice"
            case.host.script = [reply(Say("yes"))]
            await case.worker.prompt("sure?", prompt_id="q2")
            assert AssistantMessage(text="a whole answer") in case.host.requests[-1].messages
            assert "half" not in str(case.host.requests[-1].messages)

    asyncio.run(main())


def test_a_host_that_keeps_dying_fails_the_turn(tmp_path: Path) -> None:
    async def main() -> None:
        script = [reply(Say("x"), Die()), reply(Die()), reply(Call("search", {}), Die())]
        script.append(reply(Die()))
        async with running(tmp_path, project(tmp_path), script) as case:
            turn = await case.worker.prompt("hello")
            assert isinstance(turn.wire_error, errors.ProcessLost)
            assert len(case.host.requests) == 4
            case.host.script = [reply(Say("back"))]
            assert (await case.worker.prompt("again", prompt_id="q2")).text() == "back"

    asyncio.run(main())


def test_a_failed_step_fails_the_turn_and_leaves_no_trace(tmp_path: Path) -> None:
    async def main() -> None:
        script = [reply(Fail(errors.ModelFault(message="not a number"))), reply(Say("fine"))]
        async with running(tmp_path, project(tmp_path), script) as case:
            turn = await case.worker.prompt("hello")
            assert turn.wire_error == errors.ModelFault(message="not a number")
            assert turn.error.code == -32050
            assert isinstance(turn.error.data, jsonrpc.RpcErrorData)
            assert isinstance(turn.error.data.meta, msgspec.Raw)
            measured = msgspec.json.decode(turn.error.data.meta, type=ResultMeta)
            assert (measured.prompt_id, measured.model) == ("q1", "scripted")
            assert measured.timings_ms.total > 0
            assert case.worker.deltas["s1"] == []
            assert (await case.worker.prompt("again", prompt_id="q2")).text() == "fine"
            assert case.host.requests[-1].messages == [UserMessage(text="again")]

    asyncio.run(main())


def overflow(tokens: int) -> Fail:
    return Fail(errors.ContextOverflow(message="too long", tokens=tokens, limit=1000))


def test_a_long_conversation_loses_its_oldest_turns_only_on_the_wire(tmp_path: Path) -> None:
    async def main() -> None:
        script = [reply(Say("one")), reply(Say("two")), reply(overflow(1400)), reply(Say("three"))]
        async with running(tmp_path, project(tmp_path), script) as case:
            await case.worker.prompt("first", prompt_id="q1")
            await case.worker.prompt("second", prompt_id="q2")
            turn = await case.worker.prompt("third", prompt_id="q3")
            assert turn.text() == "three"
            assert "earlier conversation left out" in turn.text("agent_thought_chunk")
            sent = case.host.requests[-1].messages
            assert sent[0] == UserMessage(text="second")
            assert sent[-1] == UserMessage(text="third")
            assert len(case.worker.deltas["s1"]) == 4  # and what was left out

    asyncio.run(main())


def test_a_prompt_that_can_never_fit_fails_and_the_session_lives(tmp_path: Path) -> None:
    async def main() -> None:
        script = [reply(Say("one")), reply(overflow(300_000)), reply(overflow(299_000))]
        async with running(tmp_path, project(tmp_path), script) as case:
            await case.worker.prompt("first", prompt_id="q1")
            turn = await case.worker.prompt("x" * 1_000_000, prompt_id="q2")
            assert isinstance(turn.wire_error, errors.ContextOverflow)
            case.host.script = [reply(Say("fine"))]
            assert (await case.worker.prompt("short", prompt_id="q3")).text() == "fine"
            assert case.host.requests[-1].messages[-1] == UserMessage(text="short")

    asyncio.run(main())


def test_wrong_calls_are_told_and_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        wrong = reply(Call("list_files", {"patern": "*"}))
        async with running(tmp_path, project(tmp_path), [wrong, reply(Say("sorry"))]) as case:
            turn = await case.worker.prompt("go")
            told = case.host.requests[-1].messages[-1]
            assert isinstance(told, ToolMessage)
            assert told.text.startswith("error: invalid_request: list_files:")
            assert "patern" in told.text
            assert turn.tools()[0][2]["status"] == "failed"
            case.host.script = [wrong] * 9
            turn = await case.worker.prompt("go", prompt_id="q2")
            assert turn.result["stopReason"] == "max_turn_requests"
            assert "called list_files wrongly 4 times" in turn.text("agent_thought_chunk")
            assert len(case.host.script) == 5
            case.host.script = [reply(Call("nope", {})), reply(Say("sorry"))]
            turn = await case.worker.prompt("go", prompt_id="q3")
            assert turn.text() == "sorry"
            told = case.host.requests[-1].messages[-1]
            assert isinstance(told, ToolMessage)
            assert "nope" in told.text

    asyncio.run(main())


def test_a_turn_has_24_requests(tmp_path: Path) -> None:
    async def main() -> None:
        script = [reply(Call("list_files", {"limit": n})) for n in range(1, 31)]
        async with running(tmp_path, project(tmp_path), script) as case:
            turn = await case.worker.prompt("go")
            assert turn.result["stopReason"] == "max_turn_requests"
            assert "24 requests to the model" in turn.text("agent_thought_chunk")
            assert "24 requests" in turn.result["_meta"]["punie"]["stopDetail"]
            assert len(case.host.requests) == 24
            case.host.script = [reply(Say("fine"))]
            assert (await case.worker.prompt("next", prompt_id="q2")).text() == "fine"

    asyncio.run(main())


def test_an_answer_cut_by_its_length_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        script = [reply(Say("and so on"), stop_reason=StopReason.LENGTH)]
        async with running(tmp_path, project(tmp_path), script) as case:
            turn = await case.worker.prompt("tell me all")
            assert turn.result["stopReason"] == "max_tokens"

    asyncio.run(main())


@pytest.mark.parametrize("empty", [(), (Say(" \n "),)], ids=["nothing", "blank"])
def test_an_empty_answer_is_sent_back_once(tmp_path: Path, empty: tuple[Say, ...]) -> None:
    async def main() -> None:
        script = [reply(*empty), reply(Say("hi"))]
        async with running(tmp_path, project(tmp_path), script) as case:
            turn = await case.worker.prompt("hello")
            assert turn.text().strip() == "hi"
            assert len(case.host.requests) == 2
            case.host.script = [reply(*empty), reply(*empty), reply(Say("late"))]
            turn = await case.worker.prompt("hello", prompt_id="q2")
            assert isinstance(turn.wire_error, errors.ModelFault)
            case.host.script = [reply(Say("fine"))]
            assert (await case.worker.prompt("next", prompt_id="q3")).text() == "fine"

    asyncio.run(main())


def test_the_same_call_again_and_again_is_told_then_stopped(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, project(tmp_path), [reply(LIST)] * 9) as case:
            turn = await case.worker.prompt("go")
            assert turn.result["stopReason"] == "max_turn_requests"
            assert len(case.host.script) == 5
            told = case.host.requests[-1].messages[-1]
            assert isinstance(told, ToolMessage)
            assert "called list_files 3 times with the same arguments" in told.text
            case.host.script = [reply(Say("fine"))]
            assert (await case.worker.prompt("next", prompt_id="q2")).text() == "fine"

    asyncio.run(main())


def test_a_model_that_repeats_itself_is_stopped(tmp_path: Path) -> None:
    async def main() -> None:
        again = Say("over and over and over again. " * 2000, chunk=64)
        script = [reply(again, Wait(60.0))]  # it has not ended by itself
        async with running(tmp_path, project(tmp_path), script) as case:
            turn = await case.worker.prompt("go")
            assert turn.result["stopReason"] == "max_tokens"
            assert "repeats itself" in turn.result["_meta"]["punie"]["stopDetail"]
            assert case.host.cancelled, "the model host went on"
            case.host.script = [reply(Say("fine"))]
            assert (await case.worker.prompt("next", prompt_id="q2")).text() == "fine"

    asyncio.run(main())


def test_a_journal_that_refuses_fails_the_turn(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, project(tmp_path), [reply(LIST)]) as case:
            case.worker.store_error = errors.Internal(message="disk full")
            turn = await case.worker.prompt("go")
            assert turn.wire_error == errors.Internal(message="disk full")
            assert turn.of("tool_call") == [], "a step went on that was not durable"

    asyncio.run(main())


@pytest.mark.parametrize("style", list(PromptStyle))
def test_prompt_styles(tmp_path: Path, style: PromptStyle) -> None:
    async def main() -> None:
        script = [reply(LIST), reply(Say("one")), reply(Say("two"))]
        async with running(tmp_path, project(tmp_path), script, model=model_info(style)) as case:
            await case.worker.prompt("first", prompt_id="q1")
            await case.worker.prompt("second", prompt_id="q2")
            requests = case.host.requests
            first = [request.messages[0] for request in requests]
            match style:
                case PromptStyle.LEARNED:
                    assert first[0] == UserMessage(text="first")
                    assert not any(request.tools for request in requests)
                case PromptStyle.TOOLS:
                    assert isinstance(first[0], SystemMessage)
                    assert first == [first[0]] * 3
                    assert "def read_file(" in first[0].text
                    second = [request.messages[1] for request in requests]
                    assert second == [second[0]] * 3
                    assert isinstance(second[0], UserMessage)
                    assert "project" in second[0].text
                    names = [tool.name for tool in requests[0].tools]
                    assert "execute_code" in names
                    assert requests[0].tools == requests[2].tools

    asyncio.run(main())
