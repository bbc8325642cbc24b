"""The `punie` command: arguments in, exit code out. Heavy imports wait until a command needs them.

Exit codes: see `punie_supervisor.cli.exit_codes`.
"""

import io
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from punie_protocol.errors import PunieError
from punie_protocol.messages.common import Isolation
from punie_supervisor.cli.arguments import (
    allowed,
    check_one_text,
    drafting_of,
    folder_of,
    resolve_model,
)
from punie_supervisor.cli.bench_app import app as bench_app
from punie_supervisor.cli.model_app import app as model_app
from punie_supervisor.cli.options import (
    DirectoryOption,
    DraftModelOption,
    JsonOption,
    ModelOption,
    NumDraftTokensOption,
    SpeculationOption,
)

app = typer.Typer(
    name="punie",
    help="One local model, every project: ask your coding agent from the terminal.",
    epilog="Exit codes: 0 ok, 1 the turn failed, 2 usage, 3 daemon unreachable, 4 model error, "
    "5 denied, 6 time-out, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

prompt_app = typer.Typer(
    name="prompt", help="Show what a model is told.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(prompt_app)

projects_app = typer.Typer(
    name="projects",
    help="Show the projects, choose how each is isolated, stop what runs in them.",
    rich_markup_mode=None,
)
app.add_typer(projects_app)

app.add_typer(model_app)
app.add_typer(bench_app)


@app.command(context_settings={"allow_extra_args": True})  # to say what is wrong with them
def ask(
    ctx: typer.Context,
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="The question; '-' reads it from standard input.")
    ],
    directory: DirectoryOption = None,
    model: ModelOption = None,
    isolation: Annotated[
        Isolation | None,
        typer.Option(help="Who shares the project's worker process: nobody, or other projects."),
    ] = None,
    session: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Continue that conversation: its id, or how that begins."),
    ] = None,
    last: Annotated[
        bool, typer.Option("--last", help="Continue the project's last conversation.")
    ] = False,
    edit: Annotated[bool, typer.Option("--edit", help="Let it edit files.")] = False,
    run: Annotated[bool, typer.Option("--run", help="Let it run commands and tests.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Let it do everything that no rule forbids.")
    ] = False,
    format: Annotated[
        str, typer.Option(metavar="text|json|jsonl", help="How the answer is printed.")
    ] = "text",
    timeout: Annotated[
        float | None,
        typer.Option(metavar="S", min=0.001, help="Give up after S seconds."),
    ] = None,
) -> None:
    """Ask a question about a project, or have something done in it.

    On a terminal you are asked before anything is changed. Elsewhere it only reads, but for what
    --edit, --run or --yes allow. Standard input, when piped, is added as context.
    """
    from punie_supervisor.cli import ask as command
    from punie_supervisor.cli.context import Deadline, read_context
    from punie_supervisor.cli.printers import Format

    deadline = Deadline.starting_now(timeout)
    check_one_text(text, ctx.args)
    if format not in list(Format):
        raise typer.BadParameter(f"{format!r} is not one of text, json, jsonl", param_hint="format")
    if session is not None and last:
        raise typer.BadParameter("--session and --last exclude each other")
    folder = folder_of(directory)
    context = read_context(deadline)
    if text == "-":
        text, context = context, ""
    if not text.strip():
        raise typer.BadParameter("the question is empty", param_hint="TEXT")
    question = command.Question(
        text=text,
        context=context,
        directory=folder,
        elsewhere=directory is not None,
        model=resolve_model(model),
        isolation=isolation,
        session=session,
        last=last,
        allow=allowed(edit=edit, run=run, everything=yes),
        format=Format(format),
        deadline=deadline,
    )
    raise typer.Exit(command.ask(question))


@app.command()
def up(
    model: ModelOption = None,
    speculation: SpeculationOption = None,
    num_draft_tokens: NumDraftTokensOption = None,
    draft_model: DraftModelOption = None,
) -> None:
    """Start the daemon and wait until its model is loaded."""
    from punie_supervisor.cli import daemon

    wish = drafting_of(speculation, num_draft_tokens, draft_model)
    raise typer.Exit(daemon.up(resolve_model(model), wish))


@app.command()
def down() -> None:
    """Stop the daemon, its workers and the model host."""
    from punie_supervisor.cli import daemon

    raise typer.Exit(daemon.down())


@app.command()
def restart(
    model: ModelOption = None,
    speculation: SpeculationOption = None,
    num_draft_tokens: NumDraftTokensOption = None,
    draft_model: DraftModelOption = None,
) -> None:
    """Stop the daemon, then start it again."""
    from punie_supervisor.cli import daemon

    wish = drafting_of(speculation, num_draft_tokens, draft_model)
    raise typer.Exit(daemon.restart(resolve_model(model), wish))


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Show the daemon, its model, workers and projects."""
    from punie_supervisor.cli import daemon

    raise typer.Exit(daemon.status(as_json=as_json))


@app.command()
def logs(
    lines: Annotated[int, typer.Option("-n", metavar="N", min=1, help="How many lines.")] = 100,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as lines come.")] = False,
) -> None:
    """Print the daemon's log."""
    from punie_supervisor.cli import daemon

    raise typer.Exit(daemon.logs(lines=lines, follow=follow))


@app.command()
def perf(
    session: Annotated[
        str | None,
        typer.Argument(
            metavar="SESSION", help="Its id, or how that begins. Default: all of the project."
        ),
    ] = None,
    directory: DirectoryOption = None,
    everywhere: Annotated[bool, typer.Option("--all", help="The turns of all projects.")] = False,
    turns: Annotated[
        int, typer.Option("-n", metavar="N", min=1, max=1000, help="How many at most.")
    ] = 20,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the HTML report goes. Default: state folder."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show where the time of turns went, and write an HTML report."""
    from punie_supervisor.cli import perf as command

    wanted = command.Wanted(
        session=session,
        directory=None if everywhere or session else folder_of(directory),
        turns=turns,
        html=html.expanduser() if html else None,
        as_json=as_json,
    )
    raise typer.Exit(command.perf(wanted))


@prompt_app.command()
def show(
    directory: DirectoryOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a model is told before a prompt, part by part, with the tokens of each."""
    from punie_supervisor.cli import prompt as command

    directory_ = folder_of(directory)
    raise typer.Exit(command.show(directory_, resolve_model(model), as_json=as_json))


@app.command()
def trust(
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="The project. Default: here.")
    ] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Trust it no more.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Trust a project's own settings as they are now.

    They are in .punie/config.toml, or [tool.punie] in pyproject.toml. Any change asks again.
    """
    from punie_supervisor.cli import trust as command

    raise typer.Exit(command.trust(folder_of(directory), trusted=not revoke, as_json=as_json))


@projects_app.callback(invoke_without_command=True)
def projects(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Show the projects, choose how each is isolated, stop what runs in them."""
    if ctx.invoked_subcommand is None:
        list_projects(as_json)
    if as_json:
        raise typer.BadParameter(f"it belongs behind {ctx.invoked_subcommand}", param_hint="--json")


@projects_app.command("list")
def list_projects(as_json: JsonOption = False) -> None:
    """Show the projects and how each is isolated."""
    from punie_supervisor.cli import projects as command

    raise typer.Exit(command.show(as_json=as_json))


@projects_app.command()
def isolate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The project.")],
    isolation: Annotated[
        Isolation,
        typer.Argument(
            metavar="interpreter|process",
            help="process: a worker process of its own. interpreter: an interpreter of its own "
            "in a process that several projects share.",
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Choose who shares a project's worker process. It is kept.

    Between two prompts: not while one is under way.
    """
    from punie_supervisor.cli import projects as command

    raise typer.Exit(command.isolate(folder_of(directory), isolation, as_json=as_json))


@projects_app.command()
def unconfined(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The project.")],
    revoke: Annotated[bool, typer.Option("--revoke", help="No more.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Let a project's commands run where there is no sandbox.

    They can then read and change all that you can. Where there is one, they run in it all the same.
    """
    from punie_supervisor.cli import projects as command

    raise typer.Exit(command.unconfined(folder_of(directory), allowed=not revoke, as_json=as_json))


@projects_app.command()
def commands(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The project.")],
    as_json: JsonOption = False,
) -> None:
    """Show a project's background commands."""
    from punie_supervisor.cli import projects as command

    raise typer.Exit(command.commands(folder_of(directory), stop=False, as_json=as_json))


@projects_app.command()
def stop(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The project.")],
    as_json: JsonOption = False,
) -> None:
    """End a project's background commands."""
    from punie_supervisor.cli import projects as command

    raise typer.Exit(command.commands(folder_of(directory), stop=True, as_json=as_json))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Check everything that Punie needs on this machine.

    Needs no daemon and starts none. Exit code 1 when something is missing.
    """
    from punie_supervisor.cli import doctor as command

    raise typer.Exit(command.doctor(as_json=as_json))


@app.command()
def version(as_json: JsonOption = False) -> None:
    """Print Punie's version."""
    from punie_protocol import handshake
    from punie_protocol.limits import PROTOCOL

    if as_json:
        from punie_supervisor.cli import output

        output.print_json({"version": handshake.version(), "protocol": PROTOCOL})
    else:
        sys.stdout.write(f"punie {handshake.version()}\n")


def main() -> NoReturn:
    """Run the command and exit with its code; a failure is one line on stderr, no traceback."""
    from punie_supervisor.cli import output
    from punie_supervisor.cli.exit_codes import ExitCode, exit_code

    _mend_streams()
    try:
        _run(sys.argv[1:])
    except PunieError as error:
        output.say_error(error.error)
        sys.exit(exit_code(error))
    except UnicodeEncodeError as error:
        output.say(f"error: {error.object!a} is not text: it has bytes that are not UTF-8")
        sys.exit(ExitCode.USAGE)
    except BrokenPipeError:
        output.silence_stdout()
        sys.exit(ExitCode.TURN_FAILED)
    except OSError as error:
        output.say(f"error: {error}")
        sys.exit(ExitCode.TURN_FAILED)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    sys.exit(ExitCode.OK)


def _run(arguments: list[str]) -> None:
    """Run a command. `status` is asked for by scripts and shell prompts all the time, and typer
    takes longer to read its one option (it imports pydantic) than the daemon takes to answer."""
    match arguments:
        case ["status", *options] if options in ([], ["--json"]):
            from punie_supervisor.cli import daemon

            sys.exit(daemon.status(as_json=bool(options)))
        case _:
            app()


def _mend_streams() -> None:
    """A closed standard stream becomes the null device, a narrow encoding no reason to fail."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (for the whole run)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
