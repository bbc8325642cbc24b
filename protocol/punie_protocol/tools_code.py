"""The code tools: the symbol index, and Code Mode itself."""

from typing import Annotated

from msgspec import Meta

from punie_protocol.limits import MAX_CODE, MAX_PATTERN
from punie_protocol.tool_types import Arguments, Path, Result


class Symbols(Arguments, frozen=True, tag="symbols"):
    """Python symbols: the outline of a file or folder, or where `name` is defined and, with
    `references`, who refers to it."""

    path: Path = "."
    name: Annotated[
        str, Meta(max_length=MAX_PATTERN, description='"Class", "function" or "Class.method".')
    ] = ""
    references: bool = False
    limit: Annotated[int, Meta(ge=1, le=10_000, description="How many at most.")] = 200


class Symbol(Result, frozen=True):
    """A definition. `name` is qualified (``Class.method``), `kind` one of ``class``, ``function``,
    ``method``, ``variable``; `signature` is its head in one line."""

    name: str
    kind: str
    file: str
    line: int
    end_line: int
    signature: str


class Reference(Result, frozen=True):
    """A line that uses the name; `inside` is the qualified definition it stands in."""

    file: str
    line: int
    text: str
    inside: str


class SymbolsResult(Result, frozen=True):
    """In order of file and line, both lists cut to the limit when `truncated`. `unreadable` are
    Python files that do not parse: what they hold is not known."""

    symbol_count: int
    reference_count: int
    truncated: bool
    symbols: list[Symbol]
    references: list[Reference]
    unreadable: list[str]


class ExecuteCode(Arguments, frozen=True, tag="execute_code"):
    """Run Python that calls the other tools as functions; what it prints is the result."""

    code: Annotated[str, Meta(min_length=1, max_length=MAX_CODE, description="Python source.")]


class ExecuteCodeResult(Result, frozen=True):
    """What the code printed."""

    output: str
    truncated: bool
