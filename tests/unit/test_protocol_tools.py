"""What is derived from the tools' definitions."""

import ast

import msgspec
import pytest

from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.interp_codec import decode_reply, encode_request
from punie_protocol.tool_views import (
    bind_arguments,
    parameters_schema,
    prompt_stubs,
    result_classes,
    signature,
    stubs,
)
from punie_protocol.tools import TOOLS
from punie_protocol.tools_files import ListFilesResult, ReadFile, Search

FROZEN = {
    "read_file": ["text", "start_line", "end_line", "total_lines", "truncated"],
    "list_files": ["count", "truncated", "files"],
    "search": ["match_count", "truncated", "matches"],
    "run_command": ["ok", "exit_code", "output", "truncated", "duration", "job", "running"],
    "pytest_run": ["ok", "passed", "failed", "errors", "skipped", "duration"],
}
"""Later fields may come after these."""


def test_names_and_result_fields_are_frozen() -> None:
    fields = {
        name: [field.name for field in msgspec.structs.fields(tool.result)]
        for name, tool in TOOLS.items()
    }
    assert {
        name: found[: len(FROZEN[name])] for name, found in fields.items() if name in FROZEN
    } == FROZEN


BUILTINS = {"map", "filter", "getattr", "hasattr", "setattr", "format"}


def test_stub_is_python_with_every_code_mode_tool() -> None:
    tree = ast.parse(stubs())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert functions - BUILTINS == {tool.name for tool in TOOLS.values() if tool.code_mode}
    assert functions >= BUILTINS
    assert "execute_code" not in functions


def test_the_stub_of_the_prompt_says_the_same_in_one_line_each() -> None:
    text = prompt_stubs()
    tree = ast.parse(text)
    assert len(tree.body) == len(text.splitlines())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert [node.name for node in classes] == list(result_classes())
    for node in classes:
        fields = [ast.unparse(line).split(":")[0] for line in node.body]
        assert fields == list(result_classes()[node.name].__struct_fields__)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert [node.name for node in functions] == [t.name for t in TOOLS.values() if t.code_mode]
    for tool in TOOLS.values():
        assert not tool.code_mode or f" -> {tool.result.__name__}: ...  # {tool.doc}\n" in text
    for node in functions:
        told = [(one.arg, one.annotation) for one in node.args.args]
        fields = msgspec.structs.fields(TOOLS[node.name].arguments)
        assert [name for name, _ in told] == [field.name for field in fields]
        assert len(node.args.defaults) == sum(not field.required for field in fields)
    assert len(text) < 4200
    assert text.isascii()


def test_the_type_of_an_argument_is_told_unless_its_default_says_it() -> None:
    lines = {line.split("(")[0]: line for line in prompt_stubs().splitlines()}
    assert "(path, start_line=1, max_lines=2000) -> " in lines["def read_file"]
    assert "(command: list[str] | str = '', cwd='.', timeout=120.0, " in lines["def run_command"]
    assert "class RunCommandResult: ok: bool; exit_code: int | None; output; " in prompt_stubs()
    assert "    exit_code: int | None\n    output: str\n" in stubs()


def test_stubs_of_some_tools_hold_their_classes_only() -> None:
    some = [TOOLS["search"], TOOLS["execute_code"]]
    assert list(result_classes(some)) == ["Match", "SearchResult"]
    assert prompt_stubs(some).count("\n") == 3


def test_schema_is_a_flat_object() -> None:
    schema = parameters_schema(TOOLS["search"])
    assert schema["required"] == ["pattern"]
    assert schema["properties"]["limit"]["maximum"] == 10_000
    assert "$ref" not in str(schema)


def test_a_call_is_positional_or_keyword() -> None:
    tool = TOOLS["search"]
    expected = Search("x", "*.py", limit=3)
    assert bind_arguments(tool, ("x", "*.py"), {"limit": 3}) == expected
    assert bind_arguments(tool, (), {"pattern": "x", "glob": "*.py", "limit": 3}) == expected


@pytest.mark.parametrize(
    ("args", "kwargs", "reason"),
    [
        ((), {}, "path"),
        ((1,), {}, "str"),
        (("a", 0), {}, ">= 1"),
        (("a",), {"path": "b"}, "'path' twice"),
        (("a", 1, 2, 3), {}, "takes 3 arguments, 4 were given"),
        (("a",), {"colour": 1}, "colour"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(args: tuple, kwargs: dict, reason: str) -> None:
    with pytest.raises(PunieError, match=reason) as caught:
        bind_arguments(TOOLS["read_file"], args, kwargs)
    assert isinstance(caught.value.error, InvalidRequest)
    assert caught.value.error.hint == signature(TOOLS["read_file"])


def test_request_for_an_interpreter_is_marshal() -> None:
    import marshal

    assert marshal.loads(encode_request("read_file", ReadFile("a"))) == [
        "read_file",
        {"type": "read_file", "path": "a", "start_line": 1, "max_lines": 2000},
    ]


def test_reply_without_end_marker_is_not_a_reply() -> None:
    import marshal

    good = marshal.dumps(["ok", {"count": 0, "truncated": False, "files": []}, "end"])
    assert decode_reply(good, ListFilesResult) == ListFilesResult(
        count=0, truncated=False, files=[]
    )
    for bad in (good[:-3], marshal.dumps(["ok", {}, None]), b"", marshal.dumps(None)):
        with pytest.raises(PunieError):
            decode_reply(bad, ListFilesResult)
