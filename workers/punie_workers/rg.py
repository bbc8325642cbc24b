"""Runs Punie's own pinned ripgrep in a folder of the project.

The model's patterns go here and never into `re`: ripgrep is linear in the input. A glob is no
``--glob``, which would override ignore rules; the project half filters instead, and a file type
made of the glob's last component only narrows the work.
"""

import re
from typing import Final

from punie_protocol.errors import PunieError, ToolFailed
from punie_workers import programs
from punie_workers.programs import Kinds, Output, Program
from punie_workers.readers import Folder, Reader

TIMEOUT: Final = 30.0
MAX_OUTPUT: Final = 32 * 1024 * 1024
"""Bytes read of one run; past it ripgrep is ended, and counts are of what was read."""

_MAX_COLUMNS = 2048
"""Bytes of a line that are printed: four for each character that is kept."""

_COMMON = ["--no-config", "--no-messages", "--no-require-git", "--no-ignore-global", "--null"]
_SAFE_TYPE = re.compile(r"[\w.*?+-]*(\{[\w.*?+,-]+\})?[\w.*?+-]*", re.ASCII)
"""Globs that ripgrep and the project half surely read alike."""


_RIPGREP = Program(
    name="the search",
    kinds=Kinds(missing="search_missing", failed="search_failed", output="search_output"),
    timeout=TIMEOUT,
    limit=MAX_OUTPUT,
)
_ONE_LINE = "a search looks at one line at a time; read_file shows the lines around a match"
_NO_FOLDER = "failed to get current working directory"
_ANSWERS = frozenset({0, 1, 2})
"""Matches, none, and an error: of the pattern when ripgrep says so, else of single files."""


async def files(reader: Reader, folder: Folder) -> Output:
    """Return the files below `folder`, each ended by NUL, in no order."""
    return await _run(reader, [*_COMMON, "--files", *_parents(folder)], folder)


async def search(
    reader: Reader, folder: Folder, pattern: str, glob: str, *, ignore_case: bool
) -> Output:
    """Return the lines that match `pattern`: path, NUL, number, colon, text, newline. Raises
    `PunieError` with ``invalid_pattern``."""
    _check(pattern)
    arguments = [*_COMMON, "--line-number", "--no-heading", "--with-filename", "--color=never"]
    arguments += [f"--max-columns={_MAX_COLUMNS}", "--max-columns-preview", *_parents(folder)]
    arguments += ["--ignore-case"] if ignore_case else ["--case-sensitive"]
    last = glob.rsplit("/", 1)[-1]
    if _SAFE_TYPE.fullmatch(last) and last.strip("*") and "**" not in last:
        arguments += [f"--type-add=punie:{last}", "--type=punie"]
    return await _run(reader, [*arguments, "-e", pattern, "--", "."], folder)


def _check(pattern: str) -> None:
    """Refuse what cannot be an argument of a program."""
    if "\0" in pattern or any("\ud800" <= character <= "\udfff" for character in pattern):
        message = r"a NUL or half a surrogate pair in the pattern; write \x00 for a NUL"
        raise PunieError(ToolFailed(kind="invalid_pattern", message=message))


def _parents(folder: Folder) -> list[str]:
    """Below the root, ignore files of the folders above count; at the root nothing above does."""
    return [] if folder.path else ["--no-ignore-parent"]


async def _run(reader: Reader, arguments: list[str], folder: Folder) -> Output:
    output = await reader.run(_RIPGREP, [programs.bundled("rg"), *arguments], folder)
    if output.complete and output.code == 2 and _NO_FOLDER in output.errors:
        raise PunieError(ToolFailed(kind="not_found", message="the folder was deleted meanwhile"))
    if output.complete and output.code == 2 and output.errors.strip():
        error = ToolFailed(kind="invalid_pattern", message=_reason(output.errors))
        raise PunieError(error)
    if output.complete:
        programs.check(_RIPGREP, output, _ANSWERS)
    return output


def _reason(errors: str) -> str:
    """Return ripgrep's reason in one line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    for line in lines:
        if line.startswith("error: "):
            return f"regex parse error: {line.removeprefix('error: ')}"
    reason = lines[0].removeprefix("rg: ")
    return f"{reason}: {_ONE_LINE}" if "not allowed" in reason else reason
