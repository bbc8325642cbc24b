"""What is said of refused calls: why, and which flag would allow them, if one would."""

from typing import Any

import pytest

from punie_protocol.messages.common import Outcome
from punie_protocol.permissions import NEEDS_MORE
from punie_protocol.tool_types import Permission
from punie_supervisor.cli.denied import MAX_SHOWN, denied_calls, sentences
from punie_supervisor.clients.turn import ToolCallReport


def refused(reason: str, name: str = "edit_file", **arguments: Any) -> ToolCallReport:
    told = f"error: denied: {name} was not done: {reason}; do not try it again (say so)"
    return ToolCallReport(
        id=f"{name}{arguments}",
        name=name,
        arguments=arguments,
        ok=False,
        outcome=Outcome.DENIED,
        result={"error": told},
    )


def test_only_refused_calls_count() -> None:
    no = refused("read-only mode")
    done = ToolCallReport(id="1", name="edit_file", ok=True, outcome=Outcome.OK)
    failed = ToolCallReport(id="2", name="edit_file", ok=False, outcome=Outcome.FAILED)
    assert denied_calls([done, no, failed]) == [no]


def test_the_flag_is_named() -> None:
    lines = list(sentences([refused("read-only mode", path="a.py")], []))
    assert lines == [
        "error: not allowed: edit_file a.py (read-only mode)",
        "to allow it: --edit (or --yes: everything)",
    ]


def test_a_command_is_named_as_it_would_have_run() -> None:
    lines = list(sentences([refused("mode ask", "run_command", command=["make", "a b"])], []))
    assert lines == [
        "error: not allowed: run_command make 'a b' (mode ask)",
        "to allow it: --run (or --yes: everything)",
    ]


def test_the_network_is_a_permission_of_its_own() -> None:
    call = refused("nobody allowed it", "run_command", command="curl x", network=True)
    assert list(sentences([call], [Permission.EXECUTE]))[-1] == "to allow it: --yes"


def test_the_same_refusal_is_said_once() -> None:
    again = [refused("read-only mode", path="a.py")] * 3
    assert len(list(sentences(again, []))) == 2


def test_no_flag_helps_against_a_rule() -> None:
    rule = refused("rule deny path=a.py in the user's settings", path="a.py")
    [line] = sentences([rule], [])
    assert "rule deny path=a.py" in line


def test_a_flag_that_was_given_is_not_named() -> None:
    assert len(list(sentences([refused("the user rejected it")], [Permission.EDIT]))) == 1


def test_many_refusals_are_counted() -> None:
    lines = list(sentences([refused("read-only mode", path=f"{n}.py") for n in range(9)], []))
    assert len(lines) == MAX_SHOWN + 2
    assert lines[MAX_SHOWN] == "and 4 more"


def test_a_result_without_a_reason_is_fine() -> None:
    odd = ToolCallReport(id="1", name="of_a_newer_daemon", outcome=Outcome.DENIED, result=None)
    assert list(sentences([odd], [])) == ["error: not allowed: of_a_newer_daemon"]


@pytest.mark.parametrize("more", NEEDS_MORE)
@pytest.mark.parametrize("first", ["read-only mode", "nobody allowed it"])
def test_no_flag_is_named_where_one_does_not_help(first: str, more: str) -> None:
    [line] = sentences([refused(f"{first}; {more}", "pytest_run", path="tests")], [])
    assert line == f"error: not allowed: pytest_run tests ({first}; {more})"


def test_what_the_tool_itself_refuses_has_its_reason() -> None:
    told = {"error": "error: denied: no program is run there (open another folder)\nmore"}
    call = ToolCallReport(id="1", name="run_command", outcome=Outcome.DENIED, result=told)
    line = next(iter(sentences([call], [Permission.EXECUTE])))
    assert line == "error: not allowed: run_command: no program is run there (open another folder)"
