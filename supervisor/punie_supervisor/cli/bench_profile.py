"""``punie bench profile``: five questions through the daemon, and where the time of each goes."""

import asyncio
import sys
import time
from typing import Final

import msgspec

from punie_protocol.client import ModelStatus
from punie_protocol.engine import DraftCounts
from punie_protocol.handshake import version
from punie_supervisor.cli import output, profile_report, scratch_project
from punie_supervisor.cli.context import announce
from punie_supervisor.cli.daemon import read_status, wait_for_model
from punie_supervisor.cli.exit_codes import ExitCode
from punie_supervisor.cli.hardware import hardware
from punie_supervisor.cli.profile_report import QUERIES, Kind, Measured, Profile, Query, Sample
from punie_supervisor.clients import launch
from punie_supervisor.clients.connection import Client, check_version, connect
from punie_supervisor.clients.question import Answered, Asker
from punie_supervisor.paths import Paths

REPORT: Final = 3.0
"""Seconds for the engine's report of the last turn: it makes one a second."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure; `directory` None: in the generated project. `model` as in a prompt."""

    directory: str | None
    runs: int
    model: str | None
    timeout_s: float
    as_json: bool


def profile(wanted: Wanted) -> ExitCode:
    """Ask, and print what was measured; 1 when a turn failed. Starts the daemon when none runs, and
    waits for its model first."""
    paths = Paths.from_environment()
    announce(paths)
    launch.ensure_for_prompt(paths, model=wanted.model, patience=launch.START_TIMEOUT)
    if code := asyncio.run(wait_for_model(paths)):
        return code
    project = wanted.directory or scratch_project.make(paths.scratch_project)
    found = asyncio.run(_measure(paths, wanted, project))
    output.clear_progress()
    if wanted.as_json:
        output.print_json(output.rounded(msgspec.to_builtins(found)))
    else:
        sys.stdout.write("".join(f"{line}\n" for line in profile_report.render(found)))
        sys.stdout.flush()
    return ExitCode.TURN_FAILED if found.failed else ExitCode.OK


async def _measure(paths: Paths, wanted: Wanted, project: str) -> Profile:
    before = (await read_status(paths)).model
    asker = Asker()
    async with connect(paths, asker.handle) as client:
        await check_version(client)
        samples = await _ask_all(client, asker, wanted, project)
    turns = [sample for found in samples.values() for sample in found]
    after = await _settled(paths, before, sum(turn.steps for turn in turns))
    queries = [profile_report.measured(query, samples[query]) for query in QUERIES]
    return Profile(
        version=version(),
        hardware=hardware(),
        model=next((turn.model for turn in turns if turn.model), after.name),
        settings=after.settings,
        project=project,
        runs=wanted.runs,
        failed=_failed(queries),
        queries=queries,
        drafts=profile_report.between(_drafts(before), _drafts(after)),
    )


async def _ask_all(
    client: Client, asker: Asker, wanted: Wanted, project: str
) -> dict[Query, list[Sample]]:
    """Ask all questions once, then all again: the first round finds nothing cached but what others
    left."""
    samples: dict[Query, list[Sample]] = {query: [] for query in QUERIES}
    for run in range(1, wanted.runs + 1):
        for query in QUERIES:
            output.progress(f"run {run} of {wanted.runs}: {query.text}")
            answered = await asker.ask(
                client, project, query.text, model=wanted.model, timeout_s=wanted.timeout_s
            )
            samples[query].append(sample(query, run, answered))
    return samples


def sample(query: Query, run: int, answered: Answered) -> Sample:
    """Return what one turn came to. Pure."""
    report, meta = answered.report, answered.meta
    usage, timings = report.usage, report.timings_ms
    steps = len(meta.steps) if meta else 0
    decode_s = timings.decode / 1000
    return Sample(
        run=run,
        failure=_failure(query, answered),
        model=report.model or "",
        timings_ms=timings,
        usage=usage,
        steps=steps,
        tools=[call.tool for call in meta.tools] if meta else [],
        decode_tok_s=max(0, usage.output_tokens - steps) / decode_s if decode_s else 0.0,
        cached_share=usage.cached_tokens / usage.input_tokens if usage.input_tokens else 0.0,
        answer=report.answer,
        error=report.error,
    )


def _failure(query: Query, answered: Answered) -> str:
    report = answered.report
    if report.error is not None:
        return report.error.message
    if report.stop_reason != "end_turn":
        return report.stop_detail or f"it ended early: {report.stop_reason}"
    if query.kind is Kind.TOOLS and not report.tool_calls:
        return "the model answered without a tool"
    return ""


async def _settled(paths: Paths, before: ModelStatus, steps: int) -> ModelStatus:
    """Return the model's status once its engine has counted our requests, or `REPORT` seconds
    later."""
    deadline = time.monotonic() + REPORT
    wanted = _requests(before) + steps
    while _requests(now := (await read_status(paths)).model) < wanted:
        if now.pid is None or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.1)
    return now


def _requests(model: ModelStatus) -> int:
    return sum(model.engine.requests.values()) if model.engine else 0


def _drafts(model: ModelStatus) -> dict[str, DraftCounts]:
    return model.engine.drafts if model.engine else {}


def _failed(queries: list[Measured]) -> int:
    return sum(bool(sample.failure) for query in queries for sample in query.samples)
