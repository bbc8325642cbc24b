"""``punie model``: its commands' arguments."""

from typing import Annotated

import typer

from punie_protocol.client import Use
from punie_supervisor.cli.arguments import drafting_of, resolve_folder
from punie_supervisor.cli.options import (
    DraftModelOption,
    JsonOption,
    NumDraftTokensOption,
    SpeculationOption,
)

app = typer.Typer(
    name="model",
    help="Choose the model, and let other programs use it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_models(as_json: JsonOption = False) -> None:
    """Show the models of the models directory, and which one is in use.

    Needs no daemon and starts none.
    """
    from punie_supervisor.cli import model_list as command

    raise typer.Exit(command.show(as_json=as_json))


@app.command()
def use(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|PATH",
            help="'embedded', a folder of the models directory, or a path. Default: as it is.",
        ),
    ] = None,
    speculation: SpeculationOption = None,
    num_draft_tokens: NumDraftTokensOption = None,
    draft_model: DraftModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Use another model, or other settings of its engine, while the daemon goes on.

    What runs is finished first, what comes meanwhile waits. One that cannot be loaded changes
    nothing. Until the daemon ends: for longer, config.toml.
    """
    from punie_supervisor.cli import use as command

    drafting = drafting_of(speculation, num_draft_tokens, draft_model)
    wish = command.as_use(drafting, resolve_folder(model))
    if wish == Use():
        raise typer.BadParameter("name a model, or a setting", param_hint="NAME|PATH")
    raise typer.Exit(command.use(wish, as_json=as_json))


@app.command()
def serve(
    port: Annotated[
        int | None,
        typer.Option(
            "--openai-port",
            metavar="N",
            min=0,
            max=65535,
            help="Its port; 0 for any. Default: openai_port of the config file, else any.",
        ),
    ] = None,
    stop: Annotated[bool, typer.Option("--stop", help="Close it.")] = False,
    show_key: Annotated[bool, typer.Option("--show-key", help="Print the key.")] = False,
    speculation: SpeculationOption = None,
    num_draft_tokens: NumDraftTokensOption = None,
    draft_model: DraftModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve the model to other programs of yours: OpenAI's API on this machine, with a key.

    It stays until the daemon ends, or --stop.
    """
    from punie_supervisor.cli import serve as command
    from punie_supervisor.drafting import is_empty

    wish = drafting_of(speculation, num_draft_tokens, draft_model)
    if stop and (port is not None or show_key or not is_empty(wish)):
        raise typer.BadParameter("it goes alone", param_hint="--stop")
    if stop:
        raise typer.Exit(command.stop(as_json=as_json))
    raise typer.Exit(command.serve(port, wish, show_key=show_key, as_json=as_json))
