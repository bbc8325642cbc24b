"""``punie perf``: where the time of turns went, as tables and as an HTML report."""

import asyncio
import datetime
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from punie_protocol import client as punie
from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.messages.common import Outcome, Timings, ToolTiming
from punie_supervisor.cli import output
from punie_supervisor.cli.exit_codes import ExitCode
from punie_supervisor.cli.tables import table
from punie_supervisor.clients import sessions
from punie_supervisor.clients.connection import check_version, connect, ignore
from punie_supervisor.paths import Paths


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to report: a session, or the last turns of a project (``None``: of all). `html` is
    where the report goes, by default into the state folder; with `as_json` only if it is given."""

    session: str | None
    directory: str | None
    turns: int
    html: Path | None
    as_json: bool


class ToolRow(msgspec.Struct, frozen=True, kw_only=True):
    """All calls of one tool; milliseconds."""

    tool: str
    calls: int
    failed: int
    total: float
    median: float
    longest: float


def perf(wanted: Wanted) -> ExitCode:
    """Print the report and write it as HTML."""
    paths = Paths.from_environment()
    report = asyncio.run(_ask(paths, wanted))
    if wanted.as_json:
        turns = msgspec.to_builtins([_for_machines(turn) for turn in report.turns])
        output.print_json({"turns": output.rounded(turns)})
    elif not report.turns:
        output.say("no turns yet")
        return ExitCode.OK
    else:
        sys.stdout.write("\n".join(render(report.turns)) + "\n")
    if wanted.html or not wanted.as_json:
        _write_html(wanted.html or paths.state_dir / "perf.html", report)
    return ExitCode.OK


def _for_machines(turn: punie.TurnPerf) -> dict[str, Any]:
    """Return a turn with the names of ``ask --format json``; on the wire ACP's camelCase rules."""
    fields = msgspec.structs.asdict(turn)
    return fields | {"meta": turn.meta and msgspec.structs.asdict(turn.meta)}


def render(turns: Sequence[punie.TurnPerf]) -> Iterator[str]:
    """Yield the tables for a person: turns newest first, the tools of all of them, the shares."""
    yield "turns, newest first; times in milliseconds"
    yield from table(_TURN_HEAD, [_turn_row(turn) for turn in turns], words={0, 1, 2, 13})
    if rows := tool_rows(calls_of(turns)):
        yield ""
        yield from table(_TOOL_HEAD, [_cells(row) for row in rows], words={0})
    yield ""
    yield shares_line(total_timings(turns))


def calls_of(turns: Sequence[punie.TurnPerf]) -> list[ToolTiming]:
    """Return the tool calls of all turns."""
    return [call for turn in turns if turn.meta for call in turn.meta.tools]


def tool_rows(calls: Sequence[ToolTiming]) -> list[ToolRow]:
    """Return a row for each tool, the one that took the most time first."""
    by_tool: dict[str, list[ToolTiming]] = {}
    for call in calls:
        by_tool.setdefault(call.tool, []).append(call)
    rows = [_tool_row(tool, some) for tool, some in by_tool.items()]
    return sorted(rows, key=lambda row: -row.total)


def _tool_row(tool: str, calls: list[ToolTiming]) -> ToolRow:
    times = sorted(call.duration_ms for call in calls)
    return ToolRow(
        tool=tool,
        calls=len(calls),
        failed=sum(call.outcome is not Outcome.OK for call in calls),
        total=sum(times),
        median=times[len(times) // 2],
        longest=times[-1],
    )


def total_timings(turns: Sequence[punie.TurnPerf]) -> Timings:
    """Return the sum over all turns; `ttft` is of no use there and 0."""
    total = Timings()
    for timings in (turn.meta.timings_ms for turn in turns if turn.meta):
        total = Timings(
            total=total.total + timings.total,
            queue=total.queue + timings.queue,
            prefill=total.prefill + timings.prefill,
            decode=total.decode + timings.decode,
            tools=total.tools + timings.tools,
            permission_wait=total.permission_wait + timings.permission_wait,
            framework=total.framework + timings.framework,
        )
    return total


def shares(timings: Timings) -> list[tuple[str, float]]:
    """Return the parts of a total, in order, with their milliseconds."""
    return [
        ("queue", timings.queue),
        ("model", timings.prefill + timings.decode),
        ("tools", timings.tools),
        ("permission", timings.permission_wait),
        ("framework", timings.framework),
    ]


def shares_line(timings: Timings) -> str:
    """Return the shares in one line."""
    total = timings.total or 1.0
    parts = [f"{name} {value / total:.0%}" for name, value in shares(timings)]
    return f"total {ms(timings.total)}: {', '.join(parts)}"


def ms(value: float) -> str:
    """Return a time for a person."""
    return f"{value / 1000:.1f} s" if value >= 10_000 else f"{value:.1f} ms"


def when(turn: punie.TurnPerf) -> str:
    """Return the local time of a turn's start."""
    at = datetime.datetime.fromtimestamp(turn.started_at, datetime.UTC).astimezone()
    return at.strftime("%Y-%m-%d %H:%M:%S")


_TURN_HEAD: Final = (
    "started", "session", "ended", "total", "queue", "ttft", "prefill", "decode", "tools",
    "asked", "framework", "steps", "calls", "prompt",
)  # fmt: skip
_TOOL_HEAD: Final = ("tool", "calls", "not ok", "total", "median", "longest")
_MAX_TITLE: Final = 40


def _turn_row(turn: punie.TurnPerf) -> tuple[str, ...]:
    ended = turn.stop_reason or turn.state
    title = output.printable(turn.title[:_MAX_TITLE])
    if (meta := turn.meta) is None:
        return (_short_time(turn), turn.session_id[:8], ended, *["-"] * 10, title)
    t = meta.timings_ms
    times = (
        t.total, t.queue, t.ttft, t.prefill, t.decode, t.tools, t.permission_wait, t.framework,
    )  # fmt: skip
    counts = (str(len(meta.steps)), str(meta.tool_count))
    return (_short_time(turn), turn.session_id[:8], ended, *map(_number, times), *counts, title)


def _short_time(turn: punie.TurnPerf) -> str:
    """Return the time of a turn of today, else the date too."""
    day, time = when(turn).split()
    today = datetime.datetime.now().astimezone().date().isoformat()
    return time if day == today else f"{day} {time}"


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _cells(row: ToolRow) -> tuple[str, ...]:
    times = map(_number, (row.total, row.median, row.longest))
    return (row.tool, str(row.calls), str(row.failed), *times)


def _write_html(file: Path, report: punie.PerfReport) -> None:
    from punie_supervisor.cli.perf_html import page

    try:
        with open(file, "w", encoding="utf-8", opener=_private) as out:
            out.write(page(report))
    except OSError as error:
        message = f"cannot write the report {file}: {error.strerror}"
        raise PunieError(
            InvalidRequest(message=message, hint="choose another place with --html FILE")
        ) from None
    output.say(f"report: {file}")


def _private(path: str, flags: int) -> int:
    """Open a file for its owner alone, also one that was there before."""
    fd = os.open(path, flags, 0o600)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        os.fchmod(fd, 0o600)
    return fd


async def _ask(paths: Paths, wanted: Wanted) -> punie.PerfReport:
    async with connect(paths, ignore) as client:
        await check_version(client)
        session = wanted.session and (await sessions.find(client, wanted.session)).session_id
        query = punie.PerfQuery(session_id=session, cwd=wanted.directory, turns=wanted.turns)
        return await client.ask_daemon(punie.PERF, query, punie.PerfReport)
