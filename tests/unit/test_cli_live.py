"""What a running program prints, as it is streamed and shown."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_protocol.messages.common import Outcome
from punie_protocol.verbatim import fenced
from punie_supervisor.cli import calls
from punie_supervisor.cli.live import MAX_LINES, MAX_WIDTH, Live
from punie_supervisor.cli.output import fitted
from punie_supervisor.clients.turn import EventKind, ToolCallReport, TurnCollector, added


def updates(*texts: str) -> list[str]:
    """Return what is new in each update of a call that shows `texts`, one after the other."""
    collector = TurnCollector("s", "/p")
    start = {"sessionUpdate": "tool_call", "toolCallId": "t", "title": "run_command"}
    collector.update(msgspec.json.encode({"sessionId": "s", "update": start}))
    events = []
    for text in texts:
        block = {"type": "content", "content": {"type": "text", "text": fenced(text)}}
        update = {
            "sessionUpdate": "tool_call_update",
            "toolCallId": "t",
            "status": "in_progress",
            "content": [block],
        }
        events.append(collector.update(msgspec.json.encode({"sessionId": "s", "update": update})))
    assert all(event.kind is EventKind.TOOL_OUTPUT for event in events)
    return [event.text for event in events]


def test_each_update_shows_all_and_only_the_new_is_told() -> None:
    assert updates("a\n", "a\nb\n", "a\nb\n", "b\nc\n") == ["a\n", "b\n", "", "c\n"]


@given(st.text("ab\n", max_size=30), st.text("ab\n", max_size=30), st.integers(0, 30))
def test_nothing_is_lost_when_the_beginning_is_cut(before: str, more: str, cut: int) -> None:
    now = (before + more)[min(cut, len(before)) :]
    new = added(before, now)
    assert now.endswith(new)
    assert len(new) <= len(more)


def test_what_has_nothing_in_common_is_new() -> None:
    assert added("abc", "xyz") == "xyz"
    assert added("abc", "") == ""


def test_what_is_shown_before_it_runs_is_no_output() -> None:
    collector = TurnCollector("s", "/p")
    start = {"sessionUpdate": "tool_call", "toolCallId": "t", "title": "edit_file"}
    collector.update(msgspec.json.encode({"sessionId": "s", "update": start}))
    diff = {"type": "diff", "path": "/a", "newText": "x"}
    command = {"type": "content", "content": {"type": "text", "text": fenced("$ make")}}
    for status, content in (
        (None, [command]),
        ("pending", [command]),
        ("in_progress", [diff]),
        ("in_progress", None),
        ("in_progress", []),
    ):
        update = {
            "sessionUpdate": "tool_call_update",
            "toolCallId": "t",
            "status": status,
            "content": content,
        }
        params = msgspec.json.encode({"sessionId": "s", "update": update})
        assert collector.update(params).kind is EventKind.OTHER


def test_whole_lines_are_shown_and_the_rest_is_counted() -> None:
    live = Live()
    assert list(live.add("one\ntw")) == ["  one"]
    assert list(live.add("o\r\n")) == ["  two"]
    shown = list(live.add("more\n" * 100))
    assert len(shown) == MAX_LINES - 2
    assert (live.hidden, live.last) == (100 - len(shown), "more")
    assert list(live.add("the last")) == []
    assert list(live.end()) == [f"  … {live.hidden} more lines"]
    assert live.last == "the last"


def test_a_line_without_an_end_is_shown_at_the_end() -> None:
    live = Live()
    assert list(live.add("no newline")) == []
    assert list(live.end()) == ["  no newline"]


def test_a_bar_of_progress_is_shown_as_it_was_last() -> None:
    assert list(Live().add("10 %\r50 %\r100 %\r\n")) == ["  100 %"]


def test_nothing_of_it_steers_the_terminal() -> None:
    evil = "\x1b[2Jgone\x07 \u202eabc \x9b1m\n"
    [line] = Live().add(evil)
    assert line.isprintable()


def test_no_line_is_long_and_nothing_grows() -> None:
    live = Live()
    assert list(live.add("x" * 1_000_000)) == []
    assert len(live._open) <= MAX_WIDTH * 4
    [line] = live.add("\n")
    assert len(line) <= MAX_WIDTH + 3


def test_a_line_that_is_to_be_taken_away_does_not_wrap() -> None:
    assert fitted("short", 80) == "short"
    assert len(fitted("x" * 100, 80)) < 80
    assert fitted("好" * 100, 80) == "好" * 39 + "…"


@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        ({"path": "a.py"}, "a.py"),
        ({"command": ["make", "a test"], "cwd": "."}, "make 'a test'"),
        ({"command": "make\nrm -rf build", "path": "."}, "make …"),
        ({"command": "x" * 1000}, "x" * calls.MAX_COMMAND + "…"),
        ({"command": "", "job": "j1"}, "job j1"),
        ({}, ""),
        (None, ""),
    ],
)
def test_what_a_call_is_about(arguments: object, target: str) -> None:
    assert calls.target(arguments) == target


def call(name: str, result: object, **arguments: object) -> ToolCallReport:
    return ToolCallReport(id="1", name=name, ok=True, arguments=arguments, result=result)


def failed(error: str, **arguments: object) -> ToolCallReport:
    return ToolCallReport(
        id="1",
        name="run_command",
        ok=False,
        outcome=Outcome.FAILED,
        arguments=arguments,
        result={"error": f"error: {error}"},
    )


RAN = {"ok": True, "output": "", "exit_code": 0, "running": False, "job": "", "duration": 1.0}
TESTED = {"ok": False, "passed": 3, "failed": 1, "errors": 0, "skipped": 0, "tests": []}


@pytest.mark.parametrize(
    ("one", "line"),
    [
        (call("run_command", RAN, command="make"), "run_command make: exit code 0"),
        (call("run_command", RAN | {"exit_code": None}, command="a"), "run_command a: stopped"),
        (
            call("run_command", RAN | {"running": True, "job": "j7"}, command=["serve"]),
            "run_command serve: runs in the background, job j7",
        ),
        (
            call("run_command", RAN, command="curl x", network=True),
            "run_command curl x (with the network): exit code 0",
        ),
        (call("pytest_run", TESTED | {"errors": 1}), "pytest_run: 3 passed, 1 failed, 1 error"),
        (call("pytest_run", TESTED, path="tests"), "pytest_run tests: 3 passed, 1 failed"),
        (call("pytest_run", TESTED | {"passed": 0, "failed": 0}), "pytest_run: no tests"),
        (call("run_command", RAN | {"exit_code": None}, job="j1"), ""),
        (
            call("run_command", RAN | {"exit_code": None}, job="*", stop=True),
            "run_command job *: stopped",
        ),
        (failed("took too long\nand more", command="make"), "run_command make: took too long …"),
        (call("read_file", {"text": ""}, path="a"), ""),
        (call("run_command", {"error": "denied"}, command="make"), ""),
    ],
)
def test_what_a_call_did(one: ToolCallReport, line: str) -> None:
    assert calls.done(one) == line


def test_what_an_edit_did() -> None:
    result = {"path": "b.py", "diff": "", "added": 1, "removed": 2}
    assert calls.done(call("edit_file", result, path="b.py")) == "edit_file b.py +1 -2"
    moved = call("move_file", result, path="a.py", destination="b.py")
    assert calls.done(moved) == "move_file a.py → b.py +1 -2"
