"""``punie prompt show``: what a model is told before the first prompt."""

import asyncio
import sys
from collections.abc import Iterator
from typing import Final

from punie_protocol import client as punie
from punie_protocol.errors import PunieError, TimedOut
from punie_supervisor.cli import output
from punie_supervisor.cli.context import announce
from punie_supervisor.cli.exit_codes import ExitCode
from punie_supervisor.clients import launch
from punie_supervisor.clients.connection import check_version, connect, ignore
from punie_supervisor.paths import Paths

TIMEOUT: Final = 120.0
"""Seconds; a worker may have to start, a model to be loaded."""


def show(directory: str, model: str | None, *, as_json: bool) -> ExitCode:
    """Print the parts of the prompt in order, each with its size."""
    paths = Paths.from_environment()
    announce(paths)
    launch.ensure_for_prompt(paths, model=model, patience=launch.START_TIMEOUT)
    report = asyncio.run(_ask(paths, punie.PromptQuery(cwd=directory, model=model)))
    if as_json:
        output.print_json(report)
    else:
        sys.stdout.write("\n".join(render(report)) + "\n")
    return ExitCode.OK


def render(report: punie.PromptReport) -> Iterator[str]:
    """Yield the report's lines for a person: the sizes, then the texts."""
    guess = "" if report.exact else " (guessed from the text)"
    yield f"{report.model}: {report.tokens:,} tokens{guess}, prompt style {report.style}"
    width = max((len(part.name) for part in report.parts), default=0)
    for part in report.parts:
        yield f"  {part.name.ljust(width)}  {part.tokens:>6,}"
    for part in report.parts:
        if part.text:
            yield f"\n--- {part.name} ---\n{part.text.strip()}"


async def _ask(paths: Paths, params: punie.PromptQuery) -> punie.PromptReport:
    async with connect(paths, ignore) as client:
        await check_version(client)
        try:
            async with asyncio.timeout(TIMEOUT):
                return await client.call(punie.PROMPT, params, punie.PromptReport)
        except TimeoutError:
            text = f"the prompt was not described within {TIMEOUT:g} s"
            raise PunieError(TimedOut(message=text, limit_s=TIMEOUT)) from None
