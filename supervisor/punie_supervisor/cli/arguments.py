"""What arguments of the command line mean. Heavy imports have no place here."""

import os
from pathlib import Path

import typer

from punie_protocol import backends
from punie_protocol.client import Drafting
from punie_protocol.engine import Speculation
from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.tool_types import Permission


def check_one_text(text: str, more: list[str]) -> None:
    """Raise `typer.BadParameter` for a question of several words without quotes."""
    if more:
        question = " ".join([text, *more])
        message = f'put the question in quotes: punie ask "{question}"'
        raise typer.BadParameter(message, param_hint="TEXT")


def folder_of(directory: Path | None) -> str:
    """Return a project's folder as a real path. Raises `typer.BadParameter`, and `PunieError` as
    `paths.absolute` does."""
    from punie_supervisor.paths import absolute

    directory = Path(absolute(str(directory)) if directory is not None else os.curdir)
    if not directory.is_dir():
        raise typer.BadParameter(f"{directory} is not a folder", param_hint="DIR")
    return os.path.realpath(directory)


def allowed(*, edit: bool, run: bool, everything: bool) -> list[Permission]:
    """Return the classes of tools that need no question."""
    if everything:
        return [Permission.EDIT, Permission.EXECUTE, Permission.NETWORK]
    return [Permission.EDIT] * edit + [Permission.EXECUTE] * run


def resolve_model(model: str | None) -> str | None:
    """Return a model as the daemon takes it: a name or a path as `Paths.model`, a server's address
    as it is.

    Raises `PunieError` for a server's address that is none, or that lacks its ``http://``.
    """
    if not model:
        return None
    if backends.is_backend(model) or "://" in model:
        backends.parse(model)
        return model
    if _lacks_scheme(model):
        message = f"model {model[:200]!r} looks like a server's address without its scheme"
        raise PunieError(InvalidRequest(message=message, hint=f"write it as http://{model[:200]}"))
    from punie_supervisor.paths import Paths

    return Paths.from_environment().model(model)


def drafting_of(
    speculation: Speculation | None, num_draft_tokens: int | None, draft_model: str | None
) -> Drafting:
    """Return what the flags change, a draft model's path absolute. Raises `PunieError` for one that
    is a server's."""
    return Drafting(
        speculation=speculation,
        num_draft_tokens=num_draft_tokens,
        draft_model=resolve_folder(draft_model) if draft_model else draft_model,
    )


def resolve_folder(model: str | None) -> str | None:
    """Return a model for our own host, as `resolve_model` does. Raises `PunieError` for a server's
    address too."""
    if model and backends.is_backend(model):
        text = f"{model[:200]} is a server's: our model host does not load it"
        hint = f"name it in a prompt, or: punie restart --model {model[:200]}"
        raise PunieError(InvalidRequest(message=text, hint=hint))
    return resolve_model(model)


def _lacks_scheme(model: str) -> bool:
    """Whether it reads as ``host:port``, perhaps with a path, and no such path exists."""
    host, colon, port = model.partition("#")[0].partition("/")[0].rpartition(":")
    return bool(host and colon) and port.isdecimal() and not Path(model).exists()
