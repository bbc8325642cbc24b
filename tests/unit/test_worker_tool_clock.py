"""Time of tools and of questions is counted once, whatever overlaps."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_protocol.limits import MAX_TURN_CALLS
from punie_protocol.messages.common import Isolation, Outcome
from punie_workers import tool_clock
from punie_workers.tool_clock import ToolClock


class Clock:
    """Time that a test turns forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(tool_clock, "time", self)

    def perf_counter(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_question_stops_the_clock_of_the_tools(clock: Clock) -> None:
    tools = ToolClock(Isolation.PROCESS, 99.0)
    with tools.call("q:1", "execute_code", None) as outer:
        clock.forward(1)
        with tools.call("q:2", "edit_file", outer) as inner:
            clock.forward(2)
            with inner.asking():
                clock.forward(100)
            clock.forward(3)
        clock.forward(4)
    assert (tools.tools, tools.waiting, tools.count) == (10, 100, 2)
    first, second = tools.timings
    assert (first.id, first.start_ms, first.duration_ms, first.wait_ms) == (
        "q:1",
        1000,
        10_000,
        100_000,
    )
    assert (second.parent, second.duration_ms, second.wait_ms) == ("q:1", 5000, 100_000)
    assert second.outcome is Outcome.OK


def test_parallel_calls_count_once(clock: Clock) -> None:
    tools = ToolClock(Isolation.INTERPRETER, 100.0)
    with tools.call("1", "search", None), tools.call("2", "search", None):
        clock.forward(5)
    assert tools.tools == 5
    assert [one.duration_ms for one in tools.timings] == [5000, 5000]


def test_only_so_many_calls_are_kept_but_all_are_counted(clock: Clock) -> None:
    tools = ToolClock(Isolation.PROCESS, 100.0)
    for number in range(MAX_TURN_CALLS + 5):
        with tools.call(str(number), "search", None):
            clock.forward(1)
    assert len(tools.timings) == MAX_TURN_CALLS
    assert tools.count == tools.tools == MAX_TURN_CALLS + 5


@given(steps=st.lists(st.sampled_from(["call", "end", "ask", "answered", "wait"]), max_size=40))
def test_tools_and_questions_never_exceed_the_wall(steps: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        tools = ToolClock(Isolation.PROCESS, clock.now)
        calls, questions = [], []
        for step in steps:
            match step:
                case "call":
                    calls.append(tools.call("x", "search", None))
                    calls[-1].__enter__()
                case "ask" if calls:
                    questions.append(tools.asking())
                    questions[-1].__enter__()
                case "answered" if questions:
                    questions.pop().__exit__(None, None, None)
                case "end" if calls and not questions:
                    calls.pop().__exit__(None, None, None)
                case _:
                    clock.forward(1)
        assert tools.tools + tools.waiting <= clock.now - 100.0


def test_the_real_clock_moves() -> None:
    tools = ToolClock(Isolation.PROCESS, time.perf_counter())
    with tools.call("1", "search", None):
        pass
    assert tools.timings[0].duration_ms >= 0


def test_a_program_of_very_many_calls_is_kept_itself() -> None:
    clock = ToolClock(Isolation.PROCESS, 0.0)
    with clock.call("p", "execute_code", None) as program:
        for number in range(MAX_TURN_CALLS):
            with clock.call(f"{number}", "read_file", program):
                pass
    assert clock.count == MAX_TURN_CALLS + 1
    assert len(clock.timings) == MAX_TURN_CALLS
    assert clock.timings[0].id == "p"
