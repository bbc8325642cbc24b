"""The checkers: Punie's own pinned ty and ruff. They read the project and run none of it."""

from typing import Annotated

from msgspec import Meta

from punie_protocol.tool_types import Arguments, Path, Result

type Items = Annotated[int, Meta(ge=1, le=10_000, description="How many items at most.")]


class Typecheck(Arguments, frozen=True, tag="typecheck"):
    """Check the types of Python with ty."""

    path: Path = "."
    limit: Items = 100


class TypeProblem(Result, frozen=True):
    """One finding of the type checker; `severity` is ``error`` or ``warning``."""

    file: str
    line: int
    column: int
    severity: str
    code: str
    message: str


class TypecheckResult(Result, frozen=True):
    """`ok` without errors (warnings may be). `errors` holds both kinds in order of file and line,
    cut to the limit when `truncated`."""

    ok: bool
    error_count: int
    warning_count: int
    truncated: bool
    errors: list[TypeProblem]


class RuffCheck(Arguments, frozen=True, tag="ruff_check"):
    """Lint Python with ruff, by the project's rules."""

    path: Path = "."
    limit: Items = 100


class Violation(Result, frozen=True):
    """One violation; `code` is ``syntax-error`` for a file that is no Python."""

    file: str
    line: int
    column: int
    code: str
    message: str
    fixable: bool


class RuffCheckResult(Result, frozen=True):
    """`violations` holds them in order of file and line, cut to the limit when `truncated`."""

    ok: bool
    violation_count: int
    fixable_count: int
    truncated: bool
    violations: list[Violation]
