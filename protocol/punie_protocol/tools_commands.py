"""The tools that run programs of the project: commands, and its tests.

They run in the sandbox; see `docs/reference/security.md` for what that promises.
"""

from typing import Annotated, Final

from msgspec import Meta

from punie_protocol.limits import MAX_PATTERN
from punie_protocol.tool_types import Arguments, Path, Result
from punie_protocol.tools_checks import Items

MAX_COMMAND: Final = 32 * 1024
"""Characters of a command, all of which a permission question shows."""
MAX_WORDS: Final = 1000
"""Words of a command."""
MAX_TIMEOUT: Final = 3600.0
"""Seconds that a call may wait for its program."""
ALL_JOBS: Final = "*"
"""As `RunCommand.job`: each background command of the project."""

type Timeout = Annotated[float, Meta(gt=0, le=MAX_TIMEOUT, description="Seconds at most.")]
type Word = Annotated[str, Meta(max_length=MAX_COMMAND)]
type Words = Annotated[
    list[Word], Meta(min_length=1, max_length=MAX_WORDS, description="Program and arguments.")
]
type ShellText = Annotated[str, Meta(max_length=MAX_COMMAND, description="A text for /bin/sh.")]


class RunCommand(Arguments, frozen=True, tag="run_command"):
    """Run words, or a text for sh. A `background` one has a `job`: call with that ("*": all) for
    new output or to `stop` it."""

    command: Words | ShellText = ""
    cwd: Path = "."
    timeout: Timeout = 120.0
    network: bool = False
    background: bool = False
    job: Annotated[str, Meta(max_length=100, description='A job\'s id, or "*" for all.')] = ""
    stop: bool = False


class RunCommandResult(Result, frozen=True):
    """`ok`: nothing has failed: the program ended with status 0, or still runs. `exit_code` is
    ``None`` while it runs and when it was stopped. `output` is what it printed, errors between
    the rest, without the control sequences of a terminal; beginning and end of it when
    `truncated`. `duration` is seconds since its start. Of all jobs (``"*"``), `output` has a line
    for each."""

    ok: bool
    exit_code: int | None
    output: str
    truncated: bool
    duration: float
    job: str
    running: bool


class PytestRun(Arguments, frozen=True, tag="pytest_run"):
    """Run tests; `select` is pytest's -k."""

    path: Path = "."
    select: Annotated[
        str, Meta(max_length=MAX_PATTERN, description='Names, such as "login and not slow".')
    ] = ""
    timeout: Timeout = 600.0
    limit: Items = 100


class TestOutcome(Result, frozen=True):
    """`name` is pytest's node id, `outcome` one of ``passed``, ``failed``, ``error`` (outside of
    the test itself), ``skipped``. `message` is the text of the failure or the reason, cut at
    4,000 characters."""

    __test__ = False

    name: str
    outcome: str
    duration: float
    message: str


class PytestRunResult(Result, frozen=True):
    """`ok` when at least one test ran and none failed. `tests` are failures and errors first, then
    the others, both in the order they ran, cut to the limit when `truncated`."""

    ok: bool
    passed: int
    failed: int
    errors: int
    skipped: int
    duration: float
    truncated: bool
    tests: list[TestOutcome]
