"""The worker's pure rules: coalescing, what is sent of a history, prompts, error lines."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from punie_protocol.errors import InvalidRequest, ToolFailed
from punie_protocol.messages.to_model_host import AssistantMessage, SystemMessage, UserMessage
from punie_protocol.tools_code import ExecuteCode
from punie_protocol.tools_files import ListFilesResult, Match, ReadFileResult, SearchResult
from punie_workers.chat import size, split_turns, to_chat, turn_starts
from punie_workers.coalescer import DELAY, FIRST_DELAY, SIZE, Block, BlockKind, Chunk, Coalescer
from punie_workers.code_errors import error_text
from punie_workers.command_tools import describe
from punie_workers.conversation import INTERRUPTED, dangling_answers
from punie_workers.display import LIMIT, shown
from punie_workers.launching import Launch
from punie_workers.updates import title

ONE = Block(BlockKind.MESSAGE, "m1")
TWO = Block(BlockKind.THOUGHT, "m1t")


def test_the_first_chunk_of_a_block_comes_soon_and_the_others_wait() -> None:
    rule = Coalescer()
    assert rule.add(ONE, "a", 10.0) == []
    assert rule.due == 10.0 + FIRST_DELAY
    assert rule.poll(10.0) == []
    assert rule.poll(10.0 + FIRST_DELAY) == [Chunk(ONE, "a")]
    assert rule.due is None
    rule.add(ONE, "b", 11.0)
    rule.add(ONE, "c", 11.1)
    assert rule.due == 11.0 + DELAY
    assert rule.poll(11.0 + DELAY) == [Chunk(ONE, "bc")]


def test_another_block_and_a_full_one_go_out_at_once() -> None:
    rule = Coalescer()
    rule.add(ONE, "a", 0.0)
    assert rule.add(TWO, "x", 0.0) == [Chunk(ONE, "a")]
    assert rule.add(TWO, "y" * SIZE, 0.0) == [Chunk(TWO, "x" + "y" * SIZE)]
    assert rule.flush() == []
    rule.add(ONE, "void", 0.0)
    rule.drop()
    assert (rule.flush(), rule.due) == ([], None)


EVENTS = st.lists(
    st.tuples(st.sampled_from([ONE, TWO]), st.text(max_size=5000), st.floats(0, 0.4)), max_size=20
)


@given(EVENTS)
def test_no_text_is_lost_reordered_or_late(events: list[tuple[Block, str, float]]) -> None:
    rule, now, out = Coalescer(), 0.0, []
    for block, text, pause in events:
        now += pause
        out += rule.poll(now)
        out += rule.add(block, text, now)
        assert rule.due is None or now < rule.due <= now + DELAY
    out += rule.flush()
    for kind in (ONE, TWO):
        sent = "".join(chunk.text for chunk in out if chunk.block == kind)
        assert sent == "".join(text for block, text, _ in events if block == kind)
    assert all(chunk.text for chunk in out)


def turn(prompt: str, answer: str) -> list[ModelMessage]:
    return [
        ModelRequest(parts=[UserPromptPart(prompt)]),
        ModelResponse(parts=[TextPart(answer)]),
    ]


CALL = ToolCallPart("search", '{"pattern": "x"}', "c1")


def test_turns_begin_at_prompts() -> None:
    tools: list[ModelMessage] = [
        ModelResponse(parts=[CALL]),
        ModelRequest(parts=[ToolReturnPart("search", "y", "c1")]),
    ]
    history = [*turn("a", "b")[:1], *tools, *turn("c", "d")]
    assert turn_starts(history) == [0, 3]
    assert [type(message).__name__ for message in to_chat(history, "rules")] == [
        "SystemMessage",
        "UserMessage",
        "AssistantMessage",
        "ToolMessage",
        "UserMessage",
        "AssistantMessage",
    ]


def test_the_context_comes_before_the_conversation() -> None:
    assert to_chat(turn("a", "b"), "rules", "project") == [
        SystemMessage(text="rules"),
        UserMessage(text="project"),
        UserMessage(text="a"),
        AssistantMessage(text="b"),
    ]


def test_a_prompt_behind_results_begins_a_turn_of_its_own() -> None:
    """As pydantic-ai merges the answer to an interrupted call with the next prompt."""
    merged = ModelRequest(
        parts=[ToolReturnPart("search", "y", "c1"), UserPromptPart("c"), UserPromptPart("d")]
    )
    history: list[ModelMessage] = [*turn("a", "b")[:1], ModelResponse(parts=[CALL]), merged]
    pieces = split_turns(history)
    assert turn_starts(pieces) == [0, 3, 4]
    assert to_chat(pieces) == to_chat(history)
    assert split_turns(pieces) == pieces
    assert sum(map(size, pieces)) >= sum(map(size, history))


def test_the_length_of_a_message_is_that_of_its_texts() -> None:
    plain = size(ModelResponse(parts=[TextPart("")]))
    assert size(ModelResponse(parts=[TextPart("x" * 1000)])) == plain + 1000
    assert size(ModelResponse(parts=[ToolCallPart("search", {"a": 1}, "c1")])) > plain


def test_what_is_shown_is_cut_and_says_so() -> None:
    files = [f"src/package/module_{n}.py" for n in range(200)]
    listing = ListFilesResult(count=200, truncated=False, files=files)
    assert shown(listing) == msgspec.to_builtins(listing)
    read = ReadFileResult(
        text="\x00" * 2_000_000,
        start_line=1,
        end_line=1,
        total_lines=1,
        truncated=False,
        encoding="utf-8",
        content_hash="0" * 16,
    )
    cut = shown(read)
    assert cut["_cut"] > 11_000_000
    assert msgspec.convert(cut, ReadFileResult).text.startswith("\x00" * 64)
    matches = [Match(file="f" * 4000, line=n, text="t" * 500) for n in range(10_000)]
    found = shown(SearchResult(match_count=10_000, truncated=False, matches=matches))
    assert msgspec.convert(found, SearchResult).matches[0].line == 0
    code = shown(ExecuteCode(code="x" * 200_000))
    assert set(code) == {"code", "_cut"}
    assert shown({"half": "\ud800"}) == {"half": "?"}
    for value in (cut, found, code):
        assert len(msgspec.json.encode(value)) <= LIMIT


@given(
    st.recursive(
        st.text(max_size=300) | st.integers(0, 9),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=300,
    )
)
def test_whatever_a_model_passes_can_be_shown(value: Any) -> None:
    assert len(msgspec.json.encode(shown({"value": [value] * 50}))) <= LIMIT


def test_open_tool_calls_are_answered() -> None:
    history: list[ModelMessage] = [*turn("a", "b")[:1], ModelResponse(parts=[CALL])]
    (request,) = dangling_answers(history)
    assert isinstance(request, ModelRequest)
    (part,) = request.parts
    assert isinstance(part, ToolReturnPart)
    assert (part.tool_call_id, part.content) == ("c1", f"{INTERRUPTED}; it had changed nothing")
    assert dangling_answers([*history, request]) == []
    assert dangling_answers(turn("a", "b")) == []
    assert dangling_answers([]) == []


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ToolFailed(kind="not_found", message="no file 'x'"), "not_found: no file 'x'"),
        (ToolFailed(kind="io", message="a\n  b"), "io: a b"),
        (InvalidRequest(message="bad", hint="def f()"), "invalid_request: bad (use: def f())"),
    ],
)
def test_error_lines(error: ToolFailed | InvalidRequest, line: str) -> None:
    assert error_text(error) == line


def test_titles_are_one_short_line() -> None:
    assert title("search", {"pattern": "x", "limit": 3}) == "search: x"
    assert title("execute_code", {"code": "\n a = 1\nb"}) == "execute_code: a = 1…"
    assert title("run_command", {"command": f"ls {'x' * 80}; rm a"}).endswith("x…")
    assert title("list_files", {}) == "list_files"
    assert len(title("search", {"pattern": "y" * 500})) < 100


def test_no_line_of_a_command_passes_for_what_is_said_of_it() -> None:
    launch = Launch(
        command=("/bin/sh", "-c", "ls\nfor at most 5 s\nrm -r x"),
        folder=".",
        timeout=120,
        sandbox=None,
        name="it",
        advice="",
    )
    said = describe(launch, 120).splitlines()
    assert said[:4] == ["$ ls", "> for at most 5 s", "> rm -r x", "for at most 120 s"]
