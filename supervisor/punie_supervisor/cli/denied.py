"""What a person is told when a turn was not allowed to do something. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from punie_protocol.messages.common import Outcome
from punie_protocol.permissions import NEEDS_MORE
from punie_protocol.tool_types import Permission
from punie_supervisor.cli.calls import called
from punie_supervisor.clients.turn import ToolCallReport

MAX_SHOWN: Final = 5
"""Refusals that are shown; the rest is counted."""

_FLAGS: Final = {Permission.EDIT: "--edit", Permission.EXECUTE: "--run"}
_EVERYTHING: Final = "--yes"


def denied_calls(calls: Iterable[ToolCallReport]) -> list[ToolCallReport]:
    """Return the calls that were refused; nothing of them happened."""
    return [call for call in calls if call.outcome is Outcome.DENIED]


def sentences(denied: Sequence[ToolCallReport], allowed: Sequence[Permission]) -> Iterator[str]:
    """Yield what was refused and why, a line each, and last the flag that would allow it, unless
    it was given or would not help."""
    refused = list(dict.fromkeys(map(_refusal, denied)))
    yield from (f"error: not allowed: {line}" for line in refused[:MAX_SHOWN])
    if len(refused) > MAX_SHOWN:
        yield f"and {len(refused) - MAX_SHOWN} more"
    by_flag = [call for call in denied if _is_by_flag(_reason(call))]
    if missing := [one for one in _classes(by_flag) if one not in allowed]:
        flags = " ".join(dict.fromkeys(_FLAGS.get(one, _EVERYTHING) for one in missing))
        yield f"to allow it: {flags}" + (" (or --yes: everything)" if flags != _EVERYTHING else "")


def _is_by_flag(reason: str) -> bool:
    """Whether a flag would help: not against a rule, nor where more than that is needed."""
    return not reason.startswith("rule ") and not reason.endswith(NEEDS_MORE)


def _refusal(call: ToolCallReport) -> str:
    what = called(call)
    reason = _reason(call)
    if not reason:
        return what
    return f"{what}: {reason}" if "(" in reason else f"{what} ({reason})"


def _reason(call: ToolCallReport) -> str:
    """Return why, in the worker's words, without its advice to the model."""
    text = str(call.result.get("error", "")) if isinstance(call.result, dict) else ""
    reason = text.partition(" was not done: ")[2]
    if not reason:  # the tool itself refused, before anybody was asked
        return text.removeprefix("error: ").removeprefix("denied: ").partition("\n")[0]
    return reason.partition("; do not try it again")[0]


def _classes(calls: Iterable[ToolCallReport]) -> list[Permission]:
    """Return the classes that the calls are of; of a command that wants the network too, both."""
    # Not at the top: only a turn that was refused something needs the tools.
    from punie_protocol.tools import TOOLS

    classes: set[Permission] = set()
    for call in calls:
        if call.name in TOOLS:
            classes.add(TOOLS[call.name].permission)
        match call.arguments:
            case {"network": True}:
                classes.add(Permission.NETWORK)
    return [one for one in Permission if one in classes and one is not Permission.READ]
