"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from punie_protocol.engine import Speculation

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|PATH|URL",
        envvar="PUNIE_MODEL",
        help="Model folder, a name ('embedded', or a folder of the models directory), or a "
        "server's: http://host:port/v1#name.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DirectoryOption = Annotated[
    Path | None, typer.Option("-C", metavar="DIR", help="The project. Default: here.")
]
SpeculationOption = Annotated[
    Speculation | None,
    typer.Option(
        "--speculation",
        metavar="auto|ngram|draft|off",
        help="Where drafted tokens come from; the answers are the same. Until the daemon ends.",
    ),
]
NumDraftTokensOption = Annotated[
    int | None,
    typer.Option(
        "--num-draft-tokens",
        metavar="N",
        min=0,
        max=64,
        help="Drafted tokens a step, at most; 0: as many as pay. Until the daemon ends.",
    ),
]
DraftModelOption = Annotated[
    str | None,
    typer.Option(
        "--draft-model",
        metavar="NAME|PATH",
        help="A small model with the same tokenizer; '': none. Until the daemon ends.",
    ),
]
