"""The limits of a program of Code Mode, and what the model is told at each."""

import msgspec

from punie_protocol.errors import ToolFailed
from punie_protocol.limits import MAX_TOOL_OUTPUT

_MB = 1024 * 1024


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds, sizes in bytes, `output` and `printed` in characters.

    `time_s` counts the program's own computing: neither its tool calls, which have deadlines of
    their own, nor a wait for a permission. `total_s` counts everything. More than `output` printed
    characters are cut; more than `printed` end the program.
    """

    time_s: float = 30.0
    total_s: float = 3600.0
    memory: int = 256 * _MB
    calls: int = 1000
    output: int = MAX_TOOL_OUTPUT
    printed: int = 4_000_000
    processes: int = 8
    checkout_s: float = 30.0


def too_slow(limits: Limits, line: int) -> ToolFailed:
    """Return the failure of a program that computed too long; `line` is its last call's, or 0."""
    return ToolFailed(
        kind="time_limit",
        message=f"stopped after {limits.time_s:g} s of computing{_after(line)}",
        hint="do less in one program, or split the work into several",
    )


def too_long(limits: Limits, running: str, line: int) -> ToolFailed:
    """Return the failure of a program that took too long, waiting included; `running` is the tool
    that it waited for."""
    where = f", in {running} (line {line}): that call was cancelled" if running else ""
    hint = "split the work into several programs"
    if running:
        hint = f"look what {running} has done before you call it again; {hint}"
    return ToolFailed(
        kind="time_limit",
        message=f"stopped after {limits.total_s:g} s, waiting included{where}",
        hint=hint,
    )


def too_big(limits: Limits) -> ToolFailed:
    """Return the failure of a program that took too much memory."""
    return ToolFailed(
        kind="memory_limit",
        message=f"stopped: more than {limits.memory // _MB} MB of memory",
        hint="keep less at once: take one file after the other and keep only what you need of it",
    )


def too_many_calls(limits: Limits, line: int) -> ToolFailed:
    """Return the failure of a program that called too many tools."""
    return ToolFailed(
        kind="call_limit",
        message=f"stopped{_after(line)}: more than {limits.calls} tool calls",
        hint="let one `search` or `list_files` do the work of many calls, or split the program",
    )


def too_talkative(limits: Limits) -> ToolFailed:
    """Return the failure of a program that printed without end."""
    return ToolFailed(
        kind="output_limit",
        message=f"stopped: more than {limits.printed} characters printed",
        hint="print counts, names or the first lines only",
    )


def too_busy(limits: Limits) -> ToolFailed:
    """Return the failure of a program that got no sandbox."""
    return ToolFailed(
        kind="busy",
        message=f"{limits.processes} programs are running; none ended in {limits.checkout_s:g} s",
        hint="nothing was run: call the tools one by one, or run the program again later",
    )


def cut(text: str, size: int, limits: Limits) -> str:
    """Return printed `text` for the model; `size` is how much was printed in all."""
    if size <= limits.output:
        return text
    more = size - limits.output
    return f"{text[: limits.output]}\n… cut: {more} more characters were printed; print less"


def _after(line: int) -> str:
    return f", after the call in line {line}" if line else ""
