"""`punie bench profile`: what samples come to, and how a person reads it."""

from pathlib import Path
from typing import Any

import msgspec

from punie_protocol.client import ResultMeta
from punie_protocol.engine import DraftCounts, EngineSettings, Speculation
from punie_protocol.errors import TimedOut
from punie_protocol.messages.common import (
    Isolation,
    ModelTiming,
    Outcome,
    Timings,
    ToolTiming,
    Usage,
)
from punie_supervisor.cli import scratch_project
from punie_supervisor.cli.bench_profile import sample
from punie_supervisor.cli.hardware import hardware
from punie_supervisor.cli.profile_report import (
    QUERIES,
    Kind,
    Measured,
    Profile,
    Query,
    Sample,
    between,
    measured,
    render,
)
from punie_supervisor.clients.question import Answered
from punie_supervisor.clients.turn import ToolCallReport, TurnReport

DIRECT, TOOLS = QUERIES[0], QUERIES[2]


def timings(total: float) -> Timings:
    return Timings(
        total=total, queue=1, ttft=5, prefill=4, decode=total / 2, tools=3, framework=total / 4
    )


def one(run: int, total: float = 0.0, failure: str = "") -> Sample:
    return Sample(run=run, failure=failure, timings_ms=timings(total), steps=1, decode_tok_s=20)


def profile(*queries: Measured, **fields: Any) -> Profile:
    given: dict[str, Any] = {
        "version": "1",
        "hardware": "a box",
        "model": "m",
        "settings": EngineSettings(speculation=Speculation.NGRAM),
        "project": "/p",
        "runs": 3,
        "failed": 0,
        "drafts": {},
    }
    return Profile(queries=[*queries], **given | fields)


def answered(**fields: Any) -> Answered:
    step = ModelTiming(start_ms=1, wall_ms=85, queue=5, prefill=20, decode=60, usage=Usage())
    call = ToolTiming(
        id="1",
        tool="search",
        start_ms=2,
        duration_ms=3,
        outcome=Outcome.OK,
        isolation=Isolation.PROCESS,
    )
    usage = Usage(input_tokens=40, cached_tokens=10, output_tokens=12)
    meta = ResultMeta(
        prompt_id="p",
        model="m",
        isolation=Isolation.PROCESS,
        usage=usage,
        timings_ms=timings(1000),
        tools=[call],
        steps=[step, step],
    )
    given: dict[str, Any] = {
        "answer": "7",
        "session_id": "s",
        "project": "/p",
        "model": "m",
        "stop_reason": "end_turn",
        "usage": usage,
        "timings_ms": timings(1000),
        "tool_calls": [ToolCallReport(id="1", name="search")],
    }
    return Answered(report=TurnReport(**given | fields), meta=meta)


def test_five_questions_direct_and_with_tools() -> None:
    assert len(QUERIES) == len({query.name for query in QUERIES}) == 5
    assert {query.kind for query in QUERIES} == set(Kind)


def test_the_first_run_stands_alone_and_the_others_have_a_median() -> None:
    found = measured(DIRECT, [one(1, 100), one(2, 30), one(3, 10), one(4, 20)])
    assert found.first == timings(100)
    assert found.warm == timings(20)
    assert len(found.samples) == 4


def test_one_run_is_all_there_is() -> None:
    found = measured(DIRECT, [one(1, 100)])
    assert found.first == found.warm == timings(100)


def test_what_failed_is_no_measurement() -> None:
    found = measured(DIRECT, [one(1, 1, "no"), one(2, 30), one(3, 1, "no"), one(4, 40)])
    assert found.first is None
    assert found.warm == timings(35)
    nothing = measured(DIRECT, [one(1, 1, "no")])
    assert (nothing.first, nothing.warm, len(nothing.samples)) == (None, None, 1)


def test_a_turn_becomes_a_sample() -> None:
    found = sample(TOOLS, 2, answered())
    assert (found.run, found.failure, found.model, found.answer) == (2, "", "m", "7")
    assert (found.steps, found.tools, found.cached_share) == (2, ["search"], 0.25)
    assert found.decode_tok_s == (12 - 2) / 0.5, "each step's first token is the prefill's"


def test_how_a_turn_fails() -> None:
    late = TimedOut(message="no complete answer within 1 s", limit_s=1)
    assert sample(DIRECT, 1, answered(error=late, stop_reason=None)).failure == late.message
    assert sample(DIRECT, 1, answered(stop_reason="max_tokens")).failure == (
        "it ended early: max_tokens"
    )
    assert sample(DIRECT, 1, answered(stop_reason="refusal", stop_detail="x")).failure == "x"
    assert "without a tool" in sample(TOOLS, 1, answered(tool_calls=[])).failure
    assert sample(DIRECT, 1, answered(tool_calls=[])).failure == ""


def test_a_turn_that_was_not_measured() -> None:
    bare = msgspec.structs.replace(
        answered(usage=Usage(), timings_ms=Timings(), stop_reason="cancelled"), meta=None
    )
    found = sample(DIRECT, 1, bare)
    assert (found.steps, found.tools, found.decode_tok_s, found.cached_share) == (0, [], 0, 0)


def test_drafts_between_two_reports() -> None:
    before = {"ngram": DraftCounts(proposed=10, accepted=5, emitted=8)}
    after = {
        "ngram": DraftCounts(proposed=30, accepted=20, emitted=29),
        "draft": DraftCounts(),
    }
    assert between(before, after) == {"ngram": DraftCounts(proposed=20, accepted=15, emitted=21)}
    assert between(after, after) == {}


def test_a_person_reads_a_line_for_the_first_run_and_one_for_the_others() -> None:
    direct = measured(DIRECT, [one(1, 1000), one(2, 400), one(3, 200)])
    tools = measured(TOOLS, [one(1, 1, "the model\x1b answered without a tool"), one(2, 100)])
    drafts = {"ngram": DraftCounts(proposed=20, accepted=15, emitted=21)}
    lines = list(render(profile(direct, tools, drafts=drafts, failed=1)))
    assert lines[0] == "a box"
    assert lines[1] == "model m, speculation ngram, in /p"
    head, *rows = (line.split() for line in lines[3:7])
    assert head[:6] == ["query", "answer", "run", "total", "queue", "ttft"]
    assert {"prefill", "decode", "tools", "asked", "framework", "cached"} <= set(head)
    assert [row[:4] for row in rows] == [
        ["concept", "direct", "first", "1000"],
        ["concept", "direct", "warm", "300"],
        ["count", "tools", "warm", "100"],
    ]
    assert all(len(row) == len(head) for row in rows)
    assert "failed: count, run 1: the model␛ answered without a tool" in lines
    assert lines[-2].startswith("total 400.0 ms: queue 0%, model ")
    assert lines[-1] == "n-gram drafts: 15 of 20 accepted (75%), 3.5 tokens a step"


def test_nothing_but_failures_can_be_read_too() -> None:
    lines = list(render(profile(measured(DIRECT, [one(1, failure="no")]), settings=None)))
    assert "failed: concept, run 1: no" in lines


def test_the_machine_fits_a_line() -> None:
    assert "\n" not in hardware()
    assert " cores, " in hardware()


def test_the_generated_project_is_always_the_same(tmp_path: Path) -> None:
    at = tmp_path / "a" / "b"
    assert scratch_project.make(at) == str(at.resolve())
    before = {file: file.stat().st_mtime_ns for file in at.rglob("*.py")}
    assert len(before) == 8
    assert sum("(ValueError)" in file.read_text() for file in before) == 7
    for file in before:
        compile(file.read_text(), str(file), "exec")
    scratch_project.make(at)
    assert {file: file.stat().st_mtime_ns for file in at.rglob("*.py")} == before
    next(iter(before)).write_text("changed")
    scratch_project.make(at)
    assert {str(file.relative_to(at)): file.read_text() for file in at.rglob("*.py")} == {
        name: text for name, text in scratch_project.files().items() if name.endswith(".py")
    }


def test_queries_can_be_keys() -> None:
    assert len({Query("a", Kind.DIRECT, "x"), Query("a", Kind.DIRECT, "x")}) == 1
