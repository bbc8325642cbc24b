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
from punie_protocol.tools import (
    ExecuteCode,
    ListFilesResult,
    Match,
    ReadFileResult,
    SearchResult,
)
from punie_workers.chat import fitting_start, start_within, to_chat, turn_starts
from punie_workers.coalescer import DELAY, FIRST_DELAY, SIZE, Block, BlockKind, Chunk, Coalescer
from punie_workers.code_errors import error_text
from punie_workers.conversation import INTERRUPTED, dangling_answers
from punie_workers.display import LIMIT, shown
from punie_workers.prompts import system_prompt, tool_schemas
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


def test_whole_turns_are_left_out_until_it_may_fit() -> None:
    history = [message for n in range(10) for message in turn(f"{n}" * 100, "x" * 100)]
    assert fitting_start(history, 0, 1000, 1001) == 2
    assert fitting_start(history, 2, 1000, 1001) == 4
    assert fitting_start(history, 0, 1000, 2000) == 10
    assert fitting_start(history, 0, 1000, 10**9) == 18
    assert fitting_start(history, 18, 1000, 1001) is None
    assert fitting_start(turn("a", "b"), 0, 1000, 1001) is None


def test_what_can_never_fit_is_not_tried() -> None:
    history = [message for n in range(10) for message in turn(f"{n}" * 1000, "x" * 1000)]
    assert start_within(history, 100_000) == 0
    assert start_within(history, 5000) == 16
    assert start_within(history, 10) == 18
    assert start_within([], 10) == 0


def test_what_is_shown_is_cut_and_says_so() -> None:
    files = [f"src/package/module_{n}.py" for n in range(200)]
    listing = ListFilesResult(count=200, truncated=False, files=files)
    assert shown(listing) == msgspec.to_builtins(listing)
    read = ReadFileResult(
        text="\x00" * 2_000_000, start_line=1, end_line=1, total_lines=1, truncated=False
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
    assert (part.tool_call_id, part.content) == ("c1", INTERRUPTED)
    assert dangling_answers([*history, request]) == []
    assert dangling_answers(turn("a", "b")) == []
    assert dangling_answers([]) == []


def test_the_system_prompt_is_stable_and_compact() -> None:
    prompt = system_prompt("punie")
    assert prompt == system_prompt.__wrapped__("punie")
    assert prompt != system_prompt("other")
    assert len(prompt) < 4500
    assert [schema.name for schema in tool_schemas()] == [
        "read_file",
        "list_files",
        "search",
        "execute_code",
    ]


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
    assert title("execute_code", {"code": "\n a = 1\nb"}) == "execute_code: a = 1"
    assert title("list_files", {}) == "list_files"
    assert len(title("search", {"pattern": "y" * 500})) < 100
