"""The parser of a model's answer."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_model_host.answer import Call, Malformed, Piece, Text, Thinking
from punie_model_host.toolcalls import AnswerParser, Schemas

SCHEMAS: Schemas = {
    "run": {
        "count": {"type": "integer"},
        "ratio": {"type": "number"},
        "dry": {"type": "boolean"},
        "names": {"type": "array"},
        "options": {"anyOf": [{"type": "object"}, {"type": "null"}]},
        "text": {"type": "string"},
    }
}

FRAGMENTS = [
    "<tool_call>",
    "</tool_call>",
    "<function=run>",
    "<function=",
    "</function>",
    "<parameter=text>",
    "<parameter=count>",
    "</parameter>",
    "<think>",
    "</think>",
    "\n",
    " ",
    "words",
    "7",
    '{"name": "run", "arguments": {"a": "</tool_call>"}}',
    "{",
    "<",
    ">",
]


def parse(*chunks: str, cut: bool = False, thinking: bool = False) -> list[Piece]:
    """Return the pieces of an answer that came in `chunks`, neighbours joined."""
    parser = AnswerParser(SCHEMAS, thinking=thinking)
    pieces = [piece for chunk in chunks for piece in parser.feed(chunk)]
    joined: list[Piece] = []
    for piece in pieces + parser.finish(cut=cut):
        match piece, joined[-1] if joined else None:
            case Text(more), Text(text):
                joined[-1] = Text(text + more)
            case Thinking(more), Thinking(text):
                joined[-1] = Thinking(text + more)
            case _:
                joined.append(piece)
    return joined


def call(name: str, **arguments: object) -> Call:
    return Call(name, json.dumps(arguments, ensure_ascii=False))


def xml(name: str, **values: str) -> str:
    parameters = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
    return f"<function={name}>\n{parameters}</function>\n"


@given(
    st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join),
    st.lists(st.integers(0, 120), max_size=6),
    st.booleans(),
)
def test_the_cutting_of_the_stream_does_not_matter(text: str, cuts: list[int], cut: bool) -> None:
    edges = [0, *sorted(min(at, len(text)) for at in cuts), len(text)]
    chunks = [text[a:b] for a, b in pairwise(edges)]
    assert parse(*chunks, cut=cut) == parse(text, cut=cut) == parse(*text, cut=cut)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,12}", fullmatch=True),
        st.text().filter(lambda text: "</" not in text and "\r" not in text),
        max_size=4,
    )
)
def test_values_come_back_as_they_were_written(values: dict[str, str]) -> None:
    assert parse(f"<tool_call>\n{xml('free', **values)}</tool_call>") == [call("free", **values)]


def test_text_before_a_call_and_space_after_it() -> None:
    text = f"I look.\n\n<tool_call>\n{xml('run', text='x')}</tool_call>\n  \n"
    assert parse(text) == [Text("I look."), call("run", text="x")]


def test_values_become_what_the_schema_says() -> None:
    values = {
        "count": "3",
        "ratio": "0.5",
        "dry": "True",
        "names": "['a', \"b\"]",
        "options": "null",
        "text": "12",
        "unknown": "12",
    }
    expected = {
        "count": 3,
        "ratio": 0.5,
        "dry": True,
        "names": ["a", "b"],
        "options": None,
        "text": "12",
        "unknown": "12",
    }
    assert parse(f"<tool_call>\n{xml('run', **values)}</tool_call>") == [call("run", **expected)]


def test_a_value_that_fits_no_type_stays_text() -> None:
    pieces = parse(f"<tool_call>\n{xml('run', count='many', dry='perhaps')}</tool_call>")
    assert pieces == [call("run", count="many", dry="perhaps")]


def test_one_line_feed_at_each_end_is_not_the_values() -> None:
    pieces = parse(f"<tool_call>\n{xml('run', text='\n  a\n\n')}</tool_call>")
    assert pieces == [call("run", text="\n  a\n\n")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(xml("run", text="x"), [call("run", text="x")], id="no opener at all"),
        pytest.param(
            f"Well:\n{xml('run', text='x')}</tool_call>",
            [Text("Well:"), call("run", text="x")],
            id="no opener, at a line's start",
        ),
        pytest.param(
            f"<tool_call>\n{xml('run', text='x')}{xml('run', text='y')}</tool_call>",
            [call("run", text="x"), call("run", text="y")],
            id="two functions in a block",
        ),
        pytest.param(
            f"<tool_call>{xml('run', text='x')}",
            [call("run", text="x")],
            id="the block has no end",
        ),
        pytest.param(
            "<tool_call>\n<function=run>\n<parameter=text>\nx\n</parameter>",
            [call("run", text="x")],
            id="the function has no end",
        ),
        pytest.param(
            "<tool_call>\n<function=run>\n<parameter=text>\nx\n</function>\n</tool_call>",
            [call("run", text="x")],
            id="the parameter has no end",
        ),
        pytest.param(
            f"<tool_call>\n{xml('run', text='a</parameter>b')}</tool_call>",
            [call("run", text="a</parameter>b")],
            id="a closing tag inside a value",
        ),
        pytest.param(
            f"<tool_call>\n{xml('run', text='</tool_call> and </function> too')}</tool_call>",
            [call("run", text="</tool_call> and </function> too")],
            id="other closing tags inside a value",
        ),
        pytest.param(
            '<tool_call>\n{"name": "run", "arguments": {"text": "</tool_call>"}}\n</tool_call>',
            [call("run", text="</tool_call>")],
            id="JSON",
        ),
        pytest.param(
            '<tool_call>{"name": "run", "arguments": "{\\"count\\": 1}"}',
            [call("run", count=1)],
            id="JSON in a string, without an end",
        ),
    ],
)
def test_repairs(text: str, expected: list[Piece]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<tool_call>\nread it", "no call"),
        ("<tool_call>", "no call"),
        ("<tool_call>\n<function=>\n</function></tool_call>", "without a name"),
        ("<tool_call>\n<function=run>\nwhat?", "between the parameters"),
        ("<tool_call>\n<function=run>\n<parameter=text>\nhalf", "no end"),
        ('<tool_call>{"name": 3}</tool_call>', "not a JSON object"),
        ('<tool_call>{"name": "run", "arguments": [1]}</tool_call>', "not a JSON object"),
    ],
)
def test_beyond_repair(text: str, reason: str) -> None:
    (piece,) = parse(text)
    assert isinstance(piece, Malformed)
    assert reason in piece.reason
    assert piece.start.startswith("<tool_call>")


def test_a_call_cut_at_the_limit_is_not_made() -> None:
    text = "<tool_call>\n<function=run>\n<parameter=text>\nx\n</parameter>"
    (piece,) = parse(text, cut=True)
    assert isinstance(piece, Malformed)
    assert "limit of tokens" in piece.reason


def test_a_draft_ends_where_the_thinking_does_whatever_its_letters() -> None:
    """``İ`` is longer in lower case."""
    text = "<tool_call>İİİ</think>So."
    for chunks in ([text], list(text)):
        assert parse(*chunks, thinking=True) == [Thinking("<tool_call>İİİ"), Text("So.")]


def test_letters_that_are_only_like_those_of_a_tag_are_none() -> None:
    """``ſ`` is another case of s, and not in lower case."""
    for text in ("<tool_call><tool_callſ>", "<tool_call>\n</tool_callſ>"):
        assert isinstance(parse(text)[-1], Malformed)


def test_objects_in_objects_are_no_call() -> None:
    text = '<tool_call>{"name": ' + '{"name": ' * 3000 + '"x"' + "}" * 3001 + "</tool_call>"
    (piece,) = parse(text)
    assert isinstance(piece, Malformed)


def test_thinking_is_no_text() -> None:
    assert parse("<think>\nhm, a < b\n</think>\n\nSo.") == [Thinking("hm, a < b"), Text("So.")]
    assert parse("hm</think>So.", thinking=True) == [Thinking("hm"), Text("So.")]


def test_markers_in_running_text_are_text() -> None:
    for text in (
        "use <function=x> or <think>",
        "a <tool_cal",
        "if a < b:\n    <b>\n",
        "x </think>",
    ):
        assert parse(text) == [Text(text)]
