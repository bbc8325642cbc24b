"""Code Mode's rules without a sandbox: advice, what the type checker found, limits, views."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from punie_protocol.errors import Denied, InvalidRequest, ToolFailed, WireError
from punie_protocol.tool_views import result_classes
from punie_protocol.tools import TOOLS
from punie_protocol.tools_files import EditResult, Match, SearchResult
from punie_workers.code_advice import (
    IMPORTS,
    NAMES,
    OS_CALLS,
    RULES,
    advice,
    name_advice,
    os_advice,
    plain,
)
from punie_workers.code_checks import is_certain, parse, rejection
from punie_workers.code_errors import error_text, so_far
from punie_workers.code_limits import Limits, cut
from punie_workers.code_views import CODE_TOOLS, view

DATA = Path(__file__).parents[1] / "data" / "code_mode.toml"


def test_every_rule_has_a_program() -> None:
    data = tomllib.loads(DATA.read_text())
    told = "\n".join(one.get("told", "") for kind in data.values() for one in kind)
    groups = re.compile(r"\\\d")
    for rule in RULES:
        assert groups.split(rule.advice)[0] in told, rule


def test_no_two_programs_have_one_name() -> None:
    data = tomllib.loads(DATA.read_text())
    titles = [one.get("name") or one["construct"] for kind in data.values() for one in kind]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Name `open` used when not defined", NAMES["open"]),
        ("NameError: name 'exec_code' is not defined", ""),
        ("Name `json` used when not defined", "import json first"),
        ("Name `serch` used when not defined", "do you mean search?"),
        ("Cannot resolve imported module `urllib.request`", IMPORTS["urllib"]),
        ("ModuleNotFoundError: No module named 'types'", IMPORTS["types"]),
        ("type object 'str' has no attribute 'upper'", "write lambda s: s.upper()"),
        ("Object of type `Match` is not iterable", "Match has only: file, line, text"),
        ("Expected `Sized`, found `SearchResult`", "SearchResult has only: match_count"),
        ("parameter `x` of function `move_file`", "def move_file(path: str, destination: str)"),
        ("division by zero", ""),
    ],
)
def test_advice(message: str, expected: str) -> None:
    assert advice(message).startswith(expected)
    assert bool(advice(message)) == bool(expected)


def test_advice_names_tools_that_are_there() -> None:
    everything = [*NAMES.values(), *IMPORTS.values(), *OS_CALLS.values()]
    called = {name for text in everything for name in re.findall(r"\b([a-z]+_[a-z]+)\(", text)}
    assert called
    assert called <= CODE_TOOLS
    assert not NAMES.keys() & CODE_TOOLS


def test_what_is_asked_of_the_system_is_answered_with_a_tool() -> None:
    expected = 'Path.iterdir: not available in here: use list_files("*.py").files'
    assert os_advice("Path.iterdir") == expected
    assert os_advice("Path.resolve") == "Path.resolve: not available in here: use the tools"
    assert name_advice("zzz") == ""
    assert plain("The monty syntax parser does not yet support yield") == "there are no yield"


SURE = [
    "error[unresolved-attribute] Object of type `Match` has no attribute `path`",
    "error[unresolved-reference] Name `foo` used when not defined",
    (
        "error[invalid-argument-type] Argument to function `read_file` is incorrect: "
        'Expected `int`, found `Literal["b"]`'
    ),
    (
        "error[invalid-argument-type] Argument to function `write_file` is incorrect: "
        "Expected `str`, found `int | None`"
    ),
    (
        "error[unsupported-operator] Operator `+` is not supported between objects of type "
        '`Literal[1]` and `Literal["a"]`'
    ),
    "error[not-iterable] Object of type `ListFilesResult` is not iterable",
    "error[missing-argument] No argument provided for required parameter `path`",
    "error[invalid-syntax] unexpected EOF while parsing",
]
UNSURE = [
    (
        "error[unresolved-attribute] Attribute `group` is not defined on `None` in union "
        "`Match[str] | None`"
    ),
    (
        "error[invalid-argument-type] Argument to function `edit_file` is incorrect: "
        "Expected `str`, found `str | int`"
    ),
    (
        "error[invalid-argument-type] Argument to function `len` is incorrect: "
        "Expected `Sized`, found `None | list[str]`"
    ),
    (
        "error[unsupported-operator] Operator `+` is not supported between objects of type "
        "`str | int` and `Literal[1]`"
    ),
    (
        "error[unsupported-operator] Operator `+` is not supported between objects of type "
        '`Literal["a", 5]` and `Literal[1]`'
    ),
    "error[not-iterable] Object of type `None | list[str]` may not be iterable",
    "error[not-subscriptable] Cannot subscript object of type `None` with no `__getitem__` method",
    "error[no-matching-overload] No overload of function `sum` matches arguments",
    "error[unresolved-import] Cannot resolve imported module `__future__`",
    "warning[redundant-condition] Function `len` is always truthy",
]


@pytest.mark.parametrize("text", SURE)
def test_what_is_certainly_wrong_is_rejected(text: str) -> None:
    (found,) = parse(f"main.py:3:7: {text}\n")
    assert found.line == 3
    assert is_certain(found)
    assert rejection(f"main.py:3:7: {text}\n") is not None


@pytest.mark.parametrize("text", UNSURE)
def test_what_may_be_right_is_not(text: str) -> None:
    (found,) = parse(f"main.py:3:7: {text}\n")
    assert not is_certain(found)
    assert rejection(f"main.py:3:7: {text}\n") is None


def test_a_rejection_tells_the_first_findings_and_leaves_out_the_unsure() -> None:
    lines = [f"main.py:{n}:1: error[unresolved-reference] Name `a{n}` used" for n in range(1, 6)]
    lines.insert(0, f"main.py:9:1: {UNSURE[0]}")
    told = rejection("\n".join(lines))
    assert told is not None
    assert told.message == (
        "Name `a1` used (line 1); Name `a2` used (line 2); Name `a3` used (line 3); and 2 more"
    )


def test_findings_that_cannot_be_read_are_a_rejection() -> None:
    told = rejection("something else")
    assert told is not None
    assert told.message == "something else"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ToolFailed(kind="io", message="a\n  b", hint="try c"), "io: a b (try c)"),
        (InvalidRequest(message="bad", hint="def f()"), "invalid_request: bad (use: def f())"),
        (Denied(message="no"), "denied: no"),
        (ToolFailed(kind="x", message="y", output="printed before:\n1\n2"),
         "x: y\nprinted before:\n1\n2"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_and_then_what_was_printed(error: WireError, line: str) -> None:
    assert error_text(error) == line


def test_what_was_done_is_told_within_bounds() -> None:
    error = so_far(ToolFailed(kind="x", message="y"), [f"edit_file {n}" for n in range(30)], "out")
    assert isinstance(error, ToolFailed)
    done, *printed = error.output.split("\n")
    assert done.startswith("done before: edit_file 0, edit_file 1, ")
    assert done.endswith("edit_file 19 and 10 more")
    assert printed == ["printed before:", "out"]
    bare = ToolFailed(kind="x", message="y")
    assert so_far(bare, [], "") == bare


def test_output_is_cut_with_a_count() -> None:
    limits = Limits(output=5)
    assert cut("hello", 5, limits) == "hello"
    expected = "hello\n… cut: 3 more characters were printed; print less"
    assert cut("hello", 8, limits) == expected


def test_views_are_named_tuples_all_the_way_down() -> None:
    match = Match(file="a", line=1, text="x")
    seen = view(SearchResult(match_count=1, truncated=False, matches=[match]))
    assert seen.matches[0].file == "a"
    assert repr(seen.matches) == "[Match(file='a', line=1, text='x')]"
    with pytest.raises(AttributeError):
        seen.match_count = 2
    assert view("text") == "text"


def test_every_result_has_a_view() -> None:
    for cls in result_classes().values():
        fields = msgspec.structs.fields(cls)
        assert view(cls(**{field.name: [] for field in fields}))._fields == cls.__struct_fields__
    assert EditResult.__name__ in result_classes()
    assert "ExecuteCodeResult" not in result_classes()
    assert len(CODE_TOOLS) == len(TOOLS) - 1
