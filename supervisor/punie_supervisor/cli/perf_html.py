"""The HTML report of ``punie perf``: one file, no script, nothing from elsewhere."""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from punie_protocol import client as punie
from punie_protocol.messages.common import ModelTiming, Outcome, Timings, ToolTiming
from punie_supervisor.cli.perf import calls_of, ms, shares, tool_rows, total_timings, when

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --queue: #9aa0a6; --model: #4c78d0;
  --tools: #2f9e6b; --permission: #c58b1a; --framework: #c0504d; }
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.bar { display: flex; height: 1.1rem; border-radius: 3px; overflow: hidden; margin: .3rem 0; }
.bar span { display: block; min-width: 1px; }
.queue { background: var(--queue); } .model { background: var(--model); }
.tools { background: var(--tools); } .permission { background: var(--permission); }
.framework { background: var(--framework); } .prefill { background: var(--model); opacity: .55; }
.legend span { display: inline-block; margin-right: 1rem; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .35em;
  border-radius: 2px; }
details { border: 1px solid var(--line); border-radius: 6px; padding: .4rem .8rem;
  margin: .4rem 0; }
summary { cursor: pointer; } summary .quiet, .quiet { opacity: .65; }
svg { width: 100%; min-width: 36rem; height: auto; display: block; }
svg text { font-size: 10px; fill: currentColor; }
.failed { color: var(--framework); }
"""
_ROW = 16
_WIDTH = 1000
_LABEL = 190


def page(report: punie.PerfReport) -> str:
    """Return the report: totals, tools, then each session with its turns and their timelines."""
    turns = report.turns
    sessions, projects = {t.session_id for t in turns}, {t.root for t in turns}
    counts = f"{len(turns)} turns, {len(sessions)} sessions, {len(projects)} projects"
    body = [
        "<h1>Punie: where the time went</h1>",
        f"<p>{counts}; times are wall time.</p>",
        *_share(total_timings(turns), legend=True),
        "<h2>Tools</h2>",
        *_tool_table(calls_of(turns)),
        *_sessions(turns),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>Punie: performance</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _share(timings: Timings, *, legend: bool = False) -> Iterator[str]:
    total = timings.total or 1.0
    parts = [(name, value, value / total) for name, value in shares(timings)]
    yield '<div class="bar">'
    for name, value, part in parts:
        if value > 0:
            yield (
                f'<span class="{name}" style="width:{part:.2%}" '
                f'title="{name}: {ms(value)}, {part:.1%}"></span>'
            )
    yield "</div>"
    if legend:
        keys = "".join(
            f'<span><i class="{name}"></i>{name} {ms(value)} ({part:.1%})</span>'
            for name, value, part in parts
        )
        yield f'<p class="legend">{keys}</p>'


def _tool_table(calls: Sequence[ToolTiming]) -> Iterator[str]:
    if not calls:
        yield "<p>No tool was called.</p>"
        return
    yield (
        '<div class="wide"><table><thead><tr><th>tool</th><th>calls</th><th>not ok</th>'
        "<th>total</th><th>median</th><th>longest</th></tr></thead><tbody>"
    )
    for row in tool_rows(calls):
        times = "".join(f"<td>{ms(t)}</td>" for t in (row.total, row.median, row.longest))
        yield (
            f"<tr><td>{escape(row.tool)}</td><td>{row.calls}</td><td>{row.failed}</td>{times}</tr>"
        )
    yield "</tbody></table></div>"


def _sessions(turns: Sequence[punie.TurnPerf]) -> Iterator[str]:
    ordered = sorted(turns, key=lambda turn: (turn.session_id, turn.started_at))
    sessions = [list(group) for _, group in groupby(ordered, key=lambda turn: turn.session_id)]
    for session in sorted(sessions, key=lambda one: -one[-1].started_at):
        yield f"<h2>Session {escape(session[0].session_id)}</h2>"
        yield f'<p class="quiet">{escape(session[0].root)}</p>'
        yield from _share(total_timings(session))
        for turn in session:
            yield from _turn(turn)


def _turn(turn: punie.TurnPerf) -> Iterator[str]:
    meta = turn.meta
    total = ms(meta.timings_ms.total) if meta else "-"
    yield (
        f"<details><summary>{escape(turn.title or turn.prompt_id)} "
        f'<span class="quiet">{when(turn)}, {escape(turn.stop_reason or turn.state)}, {total}'
        f"</span></summary>"
    )
    if meta is not None:
        yield from _share(meta.timings_ms, legend=True)
        yield from _facts(meta)
        yield _timeline(meta)
        yield from _tool_table(meta.tools)
    yield "</details>"


def _facts(meta: punie.ResultMeta) -> Iterator[str]:
    usage = meta.usage
    yield (
        f"<p>{escape(meta.model)}, isolation {meta.isolation.value}; {len(meta.steps)} model "
        f"steps, {meta.tool_count} tool calls; {usage.input_tokens} tokens in, "
        f"{usage.cached_tokens} of them cached, {usage.output_tokens} out; first token after "
        f"{ms(meta.timings_ms.ttft)}.</p>"
    )
    if meta.stop_detail:
        yield f'<p class="failed">{escape(meta.stop_detail)}</p>'


def _timeline(meta: punie.ResultMeta) -> str:
    """Return the model steps and tool calls of a turn over time, as SVG. They are timed from where
    the worker began; what the turn waited before that comes first."""
    waited = max(0.0, meta.timings_ms.queue - sum(step.queue for step in meta.steps))
    ends = [step.start_ms + step.wall_ms for step in meta.steps]
    ends += [call.start_ms + call.duration_ms + call.wait_ms for call in meta.tools]
    scale = (_WIDTH - _LABEL) / max([meta.timings_ms.total, *(waited + end for end in ends), 1.0])
    rows: list[tuple[float, str]] = [
        (step.start_ms, _step(n, step, scale)) for n, step in enumerate(meta.steps, 1)
    ]
    rows += [(call.start_ms, _call(call, scale)) for call in meta.tools]
    rows.sort(key=lambda row: row[0])
    drawn = [_row(0, 0, _label("waiting") + _rect("queue", 0, waited, scale, ms(waited)))]
    drawn += [_row(n, waited * scale, row) for n, (_, row) in enumerate(rows, 1)]
    height = _ROW * len(drawn) + 4
    return (
        f'<div class="wide"><svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="timeline">'
        + "".join(drawn)
        + "</svg></div>"
    )


def _row(number: int, shift: float, drawn: str) -> str:
    """Return a row of the timeline; what stands in it is moved right, its label is not."""
    label, _, bars = drawn.partition("</text>")
    bars = f'<g transform="translate({shift:.1f} 0)">{bars}</g>'
    return f'<g transform="translate(0 {_ROW * number})">{label}</text>{bars}</g>'


def _step(number: int, step: ModelTiming, scale: float) -> str:
    waited, usage = step.start_ms + step.queue, step.usage
    label = (
        f"model step {number}: {ms(step.wall_ms)} (queue {ms(step.queue)}, "
        f"prefill {ms(step.prefill)}, decode {ms(step.decode)}); {usage.input_tokens} tokens in, "
        f"{usage.cached_tokens} of them cached, {usage.output_tokens} out"
    )
    return _label(f"model step {number}") + "".join(
        (
            _rect("queue", step.start_ms, step.queue, scale, label),
            _rect("prefill", waited, step.prefill, scale, label),
            _rect("model", waited + step.prefill, step.decode, scale, label),
        )
    )


def _call(call: ToolTiming, scale: float) -> str:
    indent = "\N{NO-BREAK SPACE}" * 3 if call.parent else ""
    label = f"{call.tool}: {ms(call.duration_ms)}, {call.outcome.value}"
    kind = "tools" if call.outcome is Outcome.OK else "framework"
    waited = _rect("permission", call.start_ms, call.wait_ms, scale, "waited for a permission")
    done = _rect(kind, call.start_ms + call.wait_ms, call.duration_ms, scale, label)
    return _label(indent + call.tool) + waited + done


def _label(text: str) -> str:
    return f'<text x="0" y="11">{escape(text[:30])}</text>'


def _rect(kind: str, start: float, length: float, scale: float, label: str) -> str:
    if length <= 0:
        return ""
    x, width = _LABEL + start * scale, max(1.0, length * scale)
    faint = ' opacity=".55"' if kind == "prefill" else ""
    return (
        f'<rect x="{x:.1f}" y="2" width="{width:.1f}" height="11" rx="2" '
        f'fill="var(--{_FILL[kind]})"{faint}><title>{escape(label)}</title></rect>'
    )


_FILL = {
    "queue": "queue",
    "prefill": "model",
    "model": "model",
    "tools": "tools",
    "permission": "permission",
    "framework": "framework",
}
