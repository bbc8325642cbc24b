"""What is derived from the tools' definitions."""

import ast

import msgspec
import pytest

from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.interp_codec import decode_reply, encode_request
from punie_protocol.tool_views import bind_arguments, parameters_schema, signature, stubs
from punie_protocol.tools import TOOLS, ListFilesResult, ReadFile, Search


def test_names_and_result_fields_are_frozen() -> None:
    fields = {
        name: [field.name for field in msgspec.structs.fields(tool.result)]
        for name, tool in TOOLS.items()
    }
    assert fields["read_file"] == ["text", "start_line", "end_line", "total_lines", "truncated"]
    assert fields["list_files"] == ["count", "truncated", "files"]
    assert fields["search"] == ["match_count", "truncated", "matches"]


def test_stub_is_python_with_every_code_mode_tool() -> None:
    tree = ast.parse(stubs())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert functions == {tool.name for tool in TOOLS.values() if tool.code_mode}
    assert "execute_code" not in functions


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
