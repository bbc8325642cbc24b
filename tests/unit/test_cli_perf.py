"""`punie perf`: sums, tables, and a page that needs nothing and runs nothing."""

import re
from html.parser import HTMLParser

import msgspec

from punie_protocol import client as punie
from punie_protocol.messages.common import (
    Isolation,
    ModelTiming,
    Outcome,
    Timings,
    ToolTiming,
    Usage,
)
from punie_supervisor.cli.perf import _for_machines, render, shares, tool_rows, total_timings
from punie_supervisor.cli.perf_html import page


def call(
    tool: str, ms: float, outcome: Outcome = Outcome.OK, *, wait: float = 0.0, parent: str = ""
) -> ToolTiming:
    return ToolTiming(
        id=f"{tool}-{ms}",
        tool=tool,
        start_ms=10,
        duration_ms=ms,
        outcome=outcome,
        isolation=Isolation.PROCESS,
        wait_ms=wait,
        parent=parent,
    )


def turn(session: str, title: str, *calls: ToolTiming, at: float = 1000.0) -> punie.TurnPerf:
    tools = sum(one.duration_ms for one in calls)
    return punie.TurnPerf(
        session_id=session,
        prompt_id=f"{session}-{title}",
        root="/src/<b>a</b>",
        title=title,
        started_at=at,
        state="done",
        stop_reason="end_turn",
        meta=punie.ResultMeta(
            prompt_id=title,
            model="embedded",
            isolation=Isolation.PROCESS,
            usage=Usage(input_tokens=10, cached_tokens=4, output_tokens=3),
            timings_ms=Timings(
                total=100 + tools, queue=5, ttft=9, prefill=20, decode=60, tools=tools, framework=15
            ),
            tool_count=len(calls),
            tools=list(calls),
            steps=[
                ModelTiming(start_ms=1, wall_ms=85, queue=5, prefill=20, decode=60, usage=Usage())
            ],
        ),
    )


TURNS = [
    turn("s1", "find <script>alert(1)</script>", call("search", 30), call("search", 10), at=3000),
    turn("s2", "edit", call("edit_file", 4, Outcome.DENIED, wait=50, parent="x"), at=2000),
    punie.TurnPerf(
        session_id="s2",
        prompt_id="lost",
        root="/src/a",
        title="never began",
        started_at=1000,
        state="interrupted",
        stop_reason=None,
        meta=None,
    ),
]


class Tags(HTMLParser):
    """Counts tags, and checks that they close."""

    VOID = frozenset({"meta", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_shares_are_the_whole() -> None:
    total = total_timings(TURNS)
    assert total.total == 100 + 40 + 100 + 4
    assert sum(value for _, value in shares(total)) == total.total


def test_tools_are_summed_by_name() -> None:
    rows = tool_rows([one for turn in TURNS if turn.meta for one in turn.meta.tools])
    assert [(row.tool, row.calls, row.failed, row.total) for row in rows] == [
        ("search", 2, 0, 40),
        ("edit_file", 1, 1, 4),
    ]


def test_the_tables_show_every_turn() -> None:
    text = "\n".join(render(TURNS))
    for word in ("find <script>", "never began", "interrupted", "edit_file", "framework 12%"):
        assert word in text


def test_numbers_stand_below_each_other() -> None:
    [head, *rows] = list(render(TURNS))[1:5]
    ends = {row.index(total) + len(total) for row, total in zip(rows, ("140", "104"), strict=False)}
    assert ends == {head.index("total") + len("total")}


def test_a_title_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in "\n".join(render([turn("s1", "\x1b[2Jgone")]))


def test_the_report_for_machines_has_one_kind_of_names() -> None:
    first, _, lost = map(_for_machines, TURNS)
    assert {"timings_ms", "stop_detail", "tool_count", "tools", "steps"} <= set(first["meta"])
    assert first["meta"]["timings_ms"].framework == 15
    assert lost["meta"] is None


def test_the_timeline_begins_with_the_wait() -> None:
    html = page(punie.PerfReport(turns=TURNS[:1]))
    assert "waiting" in html
    assert TURNS[0].meta is not None
    slow = msgspec.structs.replace(TURNS[0].meta.timings_ms, queue=1005, total=1140)
    late = msgspec.structs.replace(TURNS[0].meta, timings_ms=slow)
    html = page(punie.PerfReport(turns=[msgspec.structs.replace(TURNS[0], meta=late)]))
    assert "<title>1000.0 ms</title>" in html


def test_a_step_says_what_of_its_input_was_cached() -> None:
    assert TURNS[0].meta is not None
    [step, *_] = TURNS[0].meta.steps
    told = msgspec.structs.replace(
        step, usage=Usage(input_tokens=120, cached_tokens=100, output_tokens=7)
    )
    meta = msgspec.structs.replace(TURNS[0].meta, steps=[told])
    html = page(punie.PerfReport(turns=[msgspec.structs.replace(TURNS[0], meta=meta)]))
    assert "; 120 tokens in, 100 of them cached, 7 out</title>" in html


def test_the_page_is_whole_and_runs_nothing() -> None:
    html = page(punie.PerfReport(turns=TURNS))
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    assert "script" not in tags.seen
    assert tags.seen.count("details") == 3
    assert tags.seen.count("svg") == 2
    assert "&lt;script&gt;" in html
    assert "&lt;b&gt;a" in html
    assert not re.search(r"""(src|href)=["']?http""", html)


def test_no_turns_make_a_page_too() -> None:
    assert "0 turns" in page(punie.PerfReport(turns=[]))
