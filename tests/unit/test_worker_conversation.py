"""What a model is told after an interruption, and when streamed text is due."""

import asyncio
import socket

import msgspec
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart, ToolReturnPart

from punie_protocol.codec import MessageDecoder
from punie_protocol.link import FrameLink
from punie_protocol.messages.common import Isolation
from punie_protocol.messages.to_worker import Effect, ToWorker
from punie_workers.coalescer import FIRST_DELAY, BlockKind
from punie_workers.conversation import dangling_answers
from punie_workers.outlet import Outlet
from punie_workers.updates import Updates


def effect(number: int, ok: bool | None) -> Effect:
    arguments = msgspec.json.encode({"path": f"f{number}.txt", "text": "x"})
    return Effect(
        effect_id=f"q1:{number}", tool="write_file", arguments=arguments, ok=ok, summary=""
    )


def told(effects: list[Effect]) -> list[str]:
    calls = [ToolCallPart("execute_code", {}, "c1"), ToolCallPart("read_file", {}, "c2")]
    (request,) = dangling_answers([ModelResponse(parts=[TextPart("I do"), *calls])], effects)
    parts = [part for part in request.parts if isinstance(part, ToolReturnPart)]
    assert [part.tool_call_id for part in parts] == ["c1", "c2"]
    return [str(part.content) for part in parts]


def test_what_became_of_each_effect_is_told_once() -> None:
    first, second = told([effect(1, True), effect(2, False), effect(3, None)])
    assert "; done: write_file f1.txt; not done: write_file f2.txt; outcome unknown" in first
    assert first.endswith(": write_file f3.txt")
    assert "write_file" not in second
    assert "it had changed nothing" in told([])[0]


def test_a_command_is_told_by_its_words() -> None:
    def ran(arguments: dict[str, object]) -> str:
        data = msgspec.json.encode(arguments)
        one = Effect(effect_id="q1:1", tool="run_command", arguments=data, ok=None, summary="")
        return told([one])[0].partition("repeat it: ")[2]

    assert ran({"command": ["git", "commit", "-m", "a b"]}) == "run_command git commit -m 'a b'"
    assert ran({"command": "make; ls", "cwd": "."}) == "run_command make; ls"


def test_a_thousand_effects_are_told_in_short() -> None:
    text = told([effect(number, True) for number in range(1000)])[0]
    assert "done: 950 more and write_file f950.txt, " in text
    assert text.endswith("write_file f999.txt")
    assert len(text) < 2000


def test_the_first_words_after_a_thought_are_not_held_up_by_it() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        link = await FrameLink.over(ours, MessageDecoder("worker", ToWorker), name="test")
        updates = Updates("s1", "q1", Outlet(link, "s1"), root="/", isolation=Isolation.PROCESS)
        loop = asyncio.get_running_loop()
        await updates.text(BlockKind.THOUGHT, "hm")
        updates._tick()
        updates._flush()
        await updates.text(BlockKind.THOUGHT, "so")
        slow = updates._timer
        assert slow is not None
        await updates.text(BlockKind.MESSAGE, "done")
        assert slow.cancelled()
        assert updates._timer is not None
        assert updates._timer.when() <= loop.time() + FIRST_DELAY
        updates.close()
        assert updates._timer is None
        link.abort("test over")
        theirs.close()

    asyncio.run(main())
