"""``punie bench``: its commands' arguments."""

from typing import Annotated

import typer

from punie_supervisor.cli.arguments import folder_of, resolve_model
from punie_supervisor.cli.options import DirectoryOption, JsonOption, ModelOption

app = typer.Typer(
    name="bench",
    help="Measure Punie on this machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def bench() -> None:
    """Measure Punie on this machine."""


@app.command()
def profile(
    directory: DirectoryOption = None,
    scratch: Annotated[
        bool,
        typer.Option("--scratch", help="In a small generated project, the same everywhere."),
    ] = False,
    runs: Annotated[
        int, typer.Option("--runs", metavar="N", min=1, max=100, help="How often each is asked.")
    ] = 3,
    model: ModelOption = None,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0.001, help="Seconds for one question.")
    ] = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Ask five questions, two for a direct answer and three for tools, and show where the time of
    each goes: the first time, and the median of the times after.

    Through the daemon, as 'punie ask' does. It only reads.
    """
    from punie_supervisor.cli import bench_profile as command

    if scratch and directory is not None:
        raise typer.BadParameter("-C and --scratch exclude each other")
    wanted = command.Wanted(
        directory=None if scratch else folder_of(directory),
        runs=runs,
        model=resolve_model(model),
        timeout_s=timeout,
        as_json=as_json,
    )
    raise typer.Exit(command.profile(wanted))
