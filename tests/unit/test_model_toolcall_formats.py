"""Each way of writing tool calls: read as it streams, found by the chat template, never slow."""

import json
import pkgutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm import tool_parsers

from punie_model_host.answer import Call, Malformed, Piece, Text, Thinking
from punie_model_host.arguments import convert, fit
from punie_model_host.calls.formats import PARSER_TYPES, ToolCallFormat, detect
from punie_model_host.calls.loose_json import NotJsonError, loose
from punie_model_host.calls.names import known
from punie_model_host.profile import load_profile
from punie_model_host.toolcalls import AnswerParser
from tests.support.toolcall_corpus import schemas
from tests.support.toolcall_writers import WRITERS

SCHEMAS = schemas()["agent"]
ANYTHING = "<>[]{}()/|=:,'\"`\\ \n_"
COMMON = [
    "\n",
    " ",
    "words",
    "7",
    "<think>",
    "</think>",
    "{",
    '"',
    "read_file",
    "path",
    "```json\n",
]
FRAGMENTS = {
    format: [
        *COMMON,
        *(part for part in _parts if part.strip()),
    ]
    for format, _parts in (
        (
            format,
            write([("read_file", {"path": "MID", "start_line": 3})])
            .replace("MID", "\0MID\0")
            .replace("read_file", "read_file\0")
            .replace(">", ">\0")
            .replace("<", "\0<")
            .replace("(", "(\0")
            .replace("}", "\0}\0")
            .split("\0"),
        )
        for format, write in WRITERS.items()
    )
}
"""What the texts of a format are made of: its own tags and signs."""


def parse(
    format: ToolCallFormat, chunks: Sequence[str], *, cut: bool = False, thinking: bool = False
) -> list[Piece]:
    """Return the pieces of an answer that came in `chunks`, neighbours joined."""
    parser = AnswerParser(SCHEMAS, format, thinking=thinking)
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


@given(
    st.sampled_from(ToolCallFormat).flatmap(
        lambda format: st.tuples(
            st.just(format), st.lists(st.sampled_from(FRAGMENTS[format]), max_size=14).map("".join)
        )
    ),
    st.lists(st.integers(0, 200), max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_the_cutting_of_the_stream_does_not_matter(
    drawn: tuple[ToolCallFormat, str], cuts: list[int], cut: bool, thinking: bool
) -> None:
    format, text = drawn
    edges = [0, *sorted(min(at, len(text)) for at in cuts), len(text)]
    whole = parse(format, [text], cut=cut, thinking=thinking)
    chunks = [text[a:b] for a, b in pairwise(edges)]
    assert parse(format, chunks, cut=cut, thinking=thinking) == whole
    assert parse(format, list(text), cut=cut, thinking=thinking) == whole


@given(st.sampled_from(ToolCallFormat), st.text(st.sampled_from(ANYTHING) | st.characters()))
def test_any_text_is_read(format: ToolCallFormat, text: str) -> None:
    """Never an exception, and at most one fault, the last of the pieces."""
    pieces = parse(format, [text])
    assert not any(isinstance(piece, Malformed) for piece in pieces[:-1])


@pytest.mark.parametrize(
    ("format", "text"),
    [
        (ToolCallFormat.KIMI_K2, "<|tool_calls_section_begin|> {space}"),
        (ToolCallFormat.KIMI_K2, "<|tool_calls_section_begin|>x{space}x"),
        (ToolCallFormat.MISTRAL, "[TOOL_CALLS]x{space}y"),
        (ToolCallFormat.MISTRAL, "[TOOL_CALLS]x[CALL_ID]{space}y"),
    ],
)
def test_space_without_end_holds_nobody_up(format: ToolCallFormat, text: str) -> None:
    """It would take minutes to try all ways of dividing it."""
    (piece,) = parse(format, [text.format(space=" " * 200_000)])
    assert isinstance(piece, Malformed)


@pytest.mark.parametrize(
    ("format", "text"),
    [
        (ToolCallFormat.JSON, '<tool_call>{"name": "read_file", "arguments": {"path": "/'),
        (ToolCallFormat.MISTRAL, '[TOOL_CALLS]read_file[ARGS]{"path": "/'),
        (ToolCallFormat.GEMMA4, '<|tool_call>call:read_file{path:<|"|>/'),
        (ToolCallFormat.PYTHONIC, '<|tool_call_start|>[read_file(path="/'),
        (
            ToolCallFormat.KIMI_K2,
            '<|tool_call_begin|>read_file:0<|tool_call_argument_begin|>{"path": "/',
        ),
    ],
)
def test_a_text_that_nothing_ends_may_be_half_of_one(format: ToolCallFormat, text: str) -> None:
    (piece,) = parse(format, list(text))
    assert isinstance(piece, Malformed)
    assert not piece.is_cut


def test_a_name_without_end_holds_nobody_up() -> None:
    name = ":1" * 200_000 + "x"
    assert known(name, ["read_file"]) == name


@given(st.sampled_from(ToolCallFormat), st.text(st.characters(categories=["L", "N", "Zs", "Po"])))
def test_prose_before_a_call_is_never_lost(format: ToolCallFormat, prose: str) -> None:
    written = WRITERS[format]([("list_files", {})])
    pieces = parse(format, list(f"a {prose.strip()}.\n\n{written}"))
    assert pieces == [Text(f"a {prose.strip()}."), Call("list_files", "{}")]


@given(
    st.sampled_from([f for f in ToolCallFormat if f is not ToolCallFormat.FUNCTION_GEMMA]),
    st.text(st.characters(exclude_categories=["Cs"]).filter(lambda char: char not in "<|]")),
)
def test_a_text_comes_back_as_it_was_written(format: ToolCallFormat, content: str) -> None:
    arguments = {"path": "a", "content": content}
    pieces = parse(format, [WRITERS[format]([("write_file", arguments)])])
    if len(content) > 1 and content[0] == content[-1] == "\n":
        return  # beyond what formats without lines of their own can tell
    assert pieces == [Call("write_file", json.dumps(arguments, ensure_ascii=False))]


@pytest.mark.parametrize("format", ToolCallFormat)
@pytest.mark.parametrize(
    "line",
    [
        "x = 1  # a line of a file\n",
        'END = "</tool_call>" + "</parameter> </function>" # and more\n',
        '<tool_call>\n<function=read_file>\n<parameter=path>\n"\\"\n',
        "<|tool_call_end|> <tool_call|> [TOOL_CALLS] <|close|>argument<|sep|> x\n",
        " " * 80,
        "{[('\"",
    ],
)
def test_what_was_read_is_not_looked_at_again(format: ToolCallFormat, line: str) -> None:
    """The cost of a token does not grow with what came before: little of it is kept in sight."""
    text = WRITERS[format]([("write_file", {"path": "a", "content": line * 400})])
    for start in (text, f"<think>\n{text}", f"Text.\n{line * 400}"):
        parser = AnswerParser(SCHEMAS, format)
        most = 0
        for at in range(0, len(start), 5):
            parser.feed(start[at : at + 5])
            most = max(most, parser.pending)
        assert most <= 600, start[:80]


def test_every_parser_of_mlx_lm_has_a_format() -> None:
    shared = {"qwen3_coder", "json_tools", "laguna"}
    found = {module.name for module in pkgutil.iter_modules(tool_parsers.__path__)}
    assert found - shared == {format.replace("-", "_") for format in ToolCallFormat} - {
        "qwen3_coder",
        "json",
    }
    assert found <= set(PARSER_TYPES)


TEMPLATES: list[tuple[str, ToolCallFormat]] = [
    ("<tool_call>\\n<function={{ name }}>", ToolCallFormat.QWEN3_CODER),
    ("<tool_call>{{ tool_call.name }}", ToolCallFormat.JSON),
    ("<tool_call>{{ name }}<arg_key>", ToolCallFormat.GLM47),
    ("<longcat_tool_call>", ToolCallFormat.LONGCAT),
    ("<minimax:tool_call>", ToolCallFormat.MINIMAX_M2),
    ('<function name="f"><param name="p">', ToolCallFormat.MINICPM5),
    ("<atem:function_calls>", ToolCallFormat.MUSE_SPARK),
    ("<|tool_calls_section_begin|>", ToolCallFormat.KIMI_K2),
    ("<|tool_call>call:f{}<tool_call|>", ToolCallFormat.GEMMA4),
    ("<start_function_call>", ToolCallFormat.FUNCTION_GEMMA),
    ("<|tool_list_start|>", ToolCallFormat.PYTHONIC),
    ("[TOOL_CALLS]", ToolCallFormat.MISTRAL),
    ("nothing of tools", ToolCallFormat.JSON),
]


@pytest.mark.parametrize(("template", "format"), TEMPLATES)
def test_the_template_shows_the_format(template: str, format: ToolCallFormat) -> None:
    assert detect(template, None, lambda: ()) is format


def test_special_tokens_and_the_configuration_show_it_too(tmp_path: Path) -> None:
    def format_of(**tokenizer: object) -> ToolCallFormat:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        return load_profile(tmp_path, {}, {}, "nothing").tool_call_format

    assert format_of() is ToolCallFormat.JSON
    assert format_of(tool_parser_type="laguna") is ToolCallFormat.GLM47
    assert format_of(tool_parser_type=["odd"]) is ToolCallFormat.JSON
    marks = ["<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"]
    added = {"added_tokens": [{"id": n, "content": mark} for n, mark in enumerate(marks)]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(added))
    assert format_of() is ToolCallFormat.KIMI_K3
    (tmp_path / "tokenizer.json").write_text("{ damaged")
    assert format_of() is ToolCallFormat.JSON


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        ("5", {"type": "integer"}, 5),
        ("5.0", {"type": "integer"}, 5),
        (5.0, {"type": "integer"}, 5),
        ("5", {"type": "string"}, "5"),
        (5, {"type": "string"}, "5"),
        (True, {"type": "string"}, "true"),
        ("yes", {"type": "boolean"}, True),
        (0, {"type": "boolean"}, False),
        ("None", {"type": ["string", "null"]}, None),
        ("a", {"type": "array", "items": {"type": "string"}}, ["a"]),
        ("7", {"type": "array", "items": {"type": "integer"}}, [7]),
        ("7", {"type": "array"}, "7"),
        (["1", "x"], {"type": "array", "items": {"type": "integer"}}, [1, "x"]),
        ({"n": "1"}, {"type": "object", "properties": {"n": {"type": "integer"}}}, {"n": 1}),
        ("{'n': 1}", {"type": "object"}, {"n": 1}),
        ("[NaN]", {"type": "array"}, ["NaN"]),
        ("NaN", {"type": "number"}, "NaN"),
        ("1e999", {"type": "number"}, "1e999"),
        (" Fast ", {"enum": ["fast", "slow"]}, "fast"),
        ("2", {"enum": [1, 2]}, 2),
        ('{"a": 1}', {"$ref": "#/$defs/x"}, {"a": 1}),
        ('{"a": 1}', {}, '{"a": 1}'),
        ("9" * 5000, {"type": "integer"}, "9" * 5000),
    ],
)
def test_values_fit_their_schema(value: object, schema: dict[str, Any], expected: object) -> None:
    got = convert(value, schema) if isinstance(value, str) else fit(value, schema)
    assert (type(got), got) == (type(expected), expected)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=12,
    )
)
def test_a_value_that_fits_is_never_changed(value: Any) -> None:
    kinds = {"NoneType": "null", "bool": "boolean", "int": "integer", "str": "string"}
    kind = kinds.get(type(value).__name__, "array" if isinstance(value, list) else "object")
    assert fit(value, {"type": kind}) == value
    assert fit(value, {}) == value


@pytest.mark.parametrize(
    ("written", "meant"),
    [("ReadFile", "read_file"), ("functions.read-file:3", "read_file"), ("reed_file", "reed_file")],
)
def test_names_are_known_by_their_letters_alone(written: str, meant: str) -> None:
    assert known(written, ["read_file", "write_file"]) == meant
    assert known(written, ["read_file", "readFile", "Read.File"]) in (written, "read_file")


def test_a_name_that_could_be_two_is_neither() -> None:
    assert known("READ_FILE", ["read_file", "readFile"]) == "READ_FILE"


@pytest.mark.parametrize("text", ['{"a" "b"}', '{"a": "b', "]", "", "[" * 100_000, "{'a' 1}"])
def test_what_is_no_json_is_said_to_be_none(text: str) -> None:
    with pytest.raises(NotJsonError, match=r"\w"):
        loose(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{'a': True, b: None, \"c\": [1, 2,],}", {"a": True, "b": None, "c": [1, 2]}),
        ('{"x": "he said "hi" and, "yes", ok"}', {"x": 'he said "hi" and, "yes", ok'}),
        ('{"content": "d = {"a": "b"}"}', {"content": 'd = {"a": "b"}'}),
        ('{"a": src/main.py, "b": 3}', {"a": "src/main.py", "b": 3}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        (r'{"re": "\d+\.py", "u": "\ud83d\ude00"}', {"re": r"\d+\.py", "u": "😀"}),
        ('{"a": [1, 2', {"a": [1, 2]}),
    ],
)
def test_what_is_nearly_json_is_read(text: str, value: object) -> None:
    assert loose(text) == value
