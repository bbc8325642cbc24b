"""What the client makes of a turn's updates, and of failures."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_protocol import errors
from punie_protocol.errors import LinkClosed, PunieError
from punie_protocol.messages.common import Timings
from punie_supervisor.cli.exit_codes import ExitCode, exit_code, wire_exit_code
from punie_supervisor.cli.main import resolve_model
from punie_supervisor.cli.printers import JsonPrinter
from punie_supervisor.clients.errors import DaemonUnreachable
from punie_supervisor.clients.turn import (
    EventKind,
    PromptResult,
    ToolCallReport,
    TurnCollector,
    TurnReport,
)


def update(kind: str, **fields: object) -> bytes:
    """The params of one notification."""
    return msgspec.json.encode({"sessionId": "s", "update": {"sessionUpdate": kind} | fields})


def text(words: str, message: str = "m1") -> bytes:
    """A text chunk."""
    return update("agent_message_chunk", content={"type": "text", "text": words}, messageId=message)


def tool(call: str, name: str, parent: str | None = None) -> bytes:
    """The start of a tool call."""
    meta = {"punie": {"tool": name} | ({"parent": parent} if parent else {})}
    return update("tool_call", toolCallId=call, title=name, rawInput={"a": 1}, _meta=meta)


@given(st.lists(st.text(max_size=5), min_size=1))
def test_the_answer_is_all_text_of_the_message(words: list[str]) -> None:
    collector = TurnCollector("s", "/p")
    for word in words:
        collector.update(text(word))
    report = collector.finish(PromptResult(stop_reason="end_turn"))
    assert report.answer == "".join(words)


def test_the_answer_comes_after_the_last_tool_call() -> None:
    collector = TurnCollector("s", "/p")
    collector.update(text("let me look"))
    collector.update(tool("t1", "execute_code"))
    collector.update(tool("t2", "search", parent="t1"))
    done = update(
        "tool_call_update",
        toolCallId="t2",
        status="completed",
        rawOutput={"match_count": 0},
        _meta={"punie": {"durationMs": 1.5}},
    )
    assert collector.update(done).kind is EventKind.TOOL_FINISHED
    collector.update(update("tool_call_update", toolCallId="t1", status="failed"))
    event = collector.update(text("nothing", message="m2"))
    assert event.new_block
    report = collector.report
    assert report.answer == "nothing"
    assert [(c.name, c.ok, c.parent) for c in report.tool_calls] == [
        ("execute_code", False, None),
        ("search", True, "t1"),
    ]
    assert report.tool_calls[1].duration_ms == 1.5


def test_a_superseded_block_is_dropped() -> None:
    collector = TurnCollector("s", "/p")
    collector.update(text("half an ans", message="m1"))
    collector.update(text("a whole answer", message="m2"))
    assert collector.report.answer == "a whole answer"


def test_updates_of_newer_daemons_are_passed_over() -> None:
    collector = TurnCollector("s", "/p")
    assert collector.update(update("plan", entries=[])).kind is EventKind.OTHER
    stray = update("tool_call_update", toolCallId="unknown", status="completed")
    assert collector.update(stray).kind is EventKind.OTHER


def test_a_notice_is_no_thought() -> None:
    collector = TurnCollector("s", "/p")
    for notice, kind in ((True, EventKind.NOTICE), (False, EventKind.THOUGHT)):
        thought = update(
            "agent_thought_chunk",
            content={"type": "text", "text": "hm"},
            _meta={"punie": {"notice": notice}},
        )
        assert collector.update(thought).kind is kind
    assert collector.report.answer == ""
    assert collector.report.notices == ["hm"]


def test_what_a_call_came_to() -> None:
    collector = TurnCollector("s", "/p")
    collector.update(tool("t1", "edit_file"))
    meta = {"outcome": "denied", "waitMs": 12.5, "durationMs": 1, "isolation": "process"}
    done = update("tool_call_update", toolCallId="t1", status="failed", _meta={"punie": meta})
    collector.update(done)
    [call] = collector.report.tool_calls
    assert (call.outcome, call.wait_ms, call.isolation, call.ok) == (
        "denied", 12.5, "process", False,
    )  # fmt: skip


def test_machines_are_given_microseconds_and_results_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    exact = 0.12345678
    call = ToolCallReport(id="t", name="search", duration_ms=exact, result={"score": exact})
    report = TurnReport(
        answer="", session_id="s", project="/p", notices=["n"], tool_calls=[call],
        timings_ms=Timings(total=exact),
    )  # fmt: skip
    JsonPrinter().finish(report)
    told = msgspec.json.decode(capsys.readouterr().out)
    assert told["timings_ms"]["total"] == told["tool_calls"][0]["duration_ms"] == 0.123
    assert told["tool_calls"][0]["wait_ms"] is None
    assert told["tool_calls"][0]["result"] == {"score": exact}
    assert told["notices"] == ["n"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Denied(message=""), ExitCode.DENIED),
        (errors.TimedOut(message="", limit_s=1), ExitCode.TIMED_OUT),
        (errors.ModelLoadFailed(message="", folder="", file=""), ExitCode.MODEL),
        (errors.ModelUnavailable(message=""), ExitCode.MODEL),
        (errors.ContextOverflow(message="", tokens=2, limit=1), ExitCode.TURN_FAILED),
        (errors.ProcessLost(message="", process="w", pid=1), ExitCode.TURN_FAILED),
        (errors.NotFound(message="", what="s"), ExitCode.USAGE),
        (errors.NotFound(message="", what="model"), ExitCode.MODEL),
        (errors.ModelFault(message=""), ExitCode.MODEL),
    ],
)
def test_exit_codes(error: errors.WireError, code: ExitCode) -> None:
    assert wire_exit_code(error) is code


def test_a_lost_daemon_is_unreachable(tmp_path) -> None:
    assert exit_code(LinkClosed("gone")) is ExitCode.UNREACHABLE
    assert exit_code(DaemonUnreachable(tmp_path, "nobody")) is ExitCode.UNREACHABLE


@pytest.mark.parametrize(
    ("given_model", "expected"),
    [
        (None, None),
        ("", None),
        ("embedded", "embedded"),
        ("/m/x", "/m/x"),
        ("qwen3-30b", "qwen3-30b"),
    ],
)
def test_models_by_name_or_path(given_model: str | None, expected: str | None) -> None:
    assert resolve_model(given_model) == expected


def test_a_server_is_no_folder() -> None:
    assert resolve_model("http://localhost:1/v1#m") == "http://localhost:1/v1#m"
    for wrong in ("ftp://x", "http://", "http://host:port/v1"):
        with pytest.raises(PunieError, match="not a server's address"):
            resolve_model(wrong)


@pytest.mark.parametrize("model", ["127.0.0.1:1234/v1#x", "localhost:1234", "h:1/v1"])
def test_an_address_without_its_scheme_is_no_path(model: str) -> None:
    with pytest.raises(PunieError, match="without its scheme") as caught:
        resolve_model(model)
    assert caught.value.error.hint == f"write it as http://{model}"


def test_a_relative_model_path_becomes_absolute(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_model("./m") == str(tmp_path / "m")
    assert resolve_model(".") == str(tmp_path)
