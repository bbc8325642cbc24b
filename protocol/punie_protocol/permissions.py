"""What sessions may do: modes, rules, answers. The worker's policy decides by them.

Classes other than `Permission.READ` need a permission. A rule is matched against what a call
would touch, resolved: paths after symbolic links, a command as its arguments.
"""

import shlex
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.limits import MAX_PATTERN
from punie_protocol.tool_types import Permission

MAX_RULES: Final = 1000
"""Rules of one list."""
MAX_ALTERNATIVES: Final = 256
"""Patterns that the braces of one path may stand for."""


UNCONFINED: Final = "there is no sandbox, so it needs a terminal to ask on, or the mode trusted"
UNREADABLE: Final = (
    "a rule denies commands and this text may run anything, so it needs a terminal to ask on"
)
STARTS_PROGRAMS: Final = (
    "programs are started from that file, so it needs a terminal to ask on, or a rule that names it"
)
NEEDS_MORE: Final = (UNCONFINED, UNREADABLE, STARTS_PROGRAMS)
"""Why a call is asked about although its class is allowed: what a reason says at its end."""


class Mode(StrEnum):
    """What happens when no rule and no answer decides."""

    READ_ONLY = "read-only"
    """Nothing but reading: refused without a question, whatever a rule allows."""
    ASK = "ask"
    """Somebody is asked."""
    ACCEPT_EDITS = "accept-edits"
    """Edits are allowed, the rest is asked for."""
    TRUSTED = "trusted"
    """Allowed, unless a rule forbids it."""


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Matches a call when every member that is set does. `tool` is a tool's name or a permission
    class, `path` a glob that each path of the call must match (of one that forbids: any path),
    `command` the first words of a command."""

    tool: Annotated[str, Meta(min_length=1, max_length=100)] | None = None
    path: Annotated[str, Meta(min_length=1, max_length=MAX_PATTERN)] | None = None
    command: Annotated[str, Meta(min_length=1, max_length=MAX_PATTERN)] | None = None

    def __str__(self) -> str:
        members = msgspec.structs.asdict(self).items()
        return " ".join(f"{name}={value}" for name, value in members if value is not None)


type Rules = Annotated[list[Rule], Meta(max_length=MAX_RULES)]


class PermissionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[permissions]`` of a config file. `deny` goes before everything else. `wait_s` is how long
    a question waits while nobody is there to answer it."""

    mode: Mode = Mode.ASK
    allow: Rules = []
    deny: Rules = []
    wait_s: Annotated[float, Meta(gt=0, le=86_400)] = 600.0


class Answer(StrEnum):
    """The options of a question, as their ids in ``session/request_permission``."""

    ALLOW_ONCE = "allow-once"
    ALLOW_FOR_SESSION = "allow-for-session"
    REJECT_ONCE = "reject-once"
    REJECT_ALWAYS = "reject-always"


class TrustAnswer(StrEnum):
    """The options of the question whether a project's own settings count, as their ids."""

    TRUST = "trust-settings"
    IGNORE = "ignore-settings"


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that holds for the rest of its session: `key` says for which calls."""

    key: str
    allow: bool


class PromptPermissions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a client says for one prompt: another `mode`, classes allowed without a question."""

    mode: Mode | None = None
    allow: list[Permission] = []


def check_settings(settings: PermissionSettings) -> None:
    """Raise `PunieError` (`InvalidRequest`) that names the first rule that can do nothing."""
    check_rules("permissions.allow", settings.allow)
    check_rules("permissions.deny", settings.deny)


def check_rules(where: str, rules: Sequence[Rule]) -> None:
    """Raise `PunieError` (`InvalidRequest`) that names the first rule that can do nothing; `where`
    is the key of the list."""
    for number, rule in enumerate(rules):
        if fault := _fault(rule):
            key, text, hint = fault
            message = f"{where}[{number}]{key}: {text}"
            raise PunieError(InvalidRequest(message=message, hint=hint))


def command_words(command: str) -> tuple[str, ...]:
    """Return the words of a rule's command as a shell would split them. Raises `ValueError` for an
    open quote."""
    return tuple(shlex.split(command))


def _fault(rule: Rule) -> tuple[str, str, str] | None:
    """Return the member at fault, what is wrong with it, and what to do."""
    if rule == Rule():
        return "", "an empty rule", "set tool, path or command; to allow everything set the mode"
    return (
        _fault_of_tool(rule)
        or _fault_of_path(rule.path)
        or _fault_of_command(rule)
        or _fault_of_both(rule)
    )


def _fault_of_tool(rule: Rule) -> tuple[str, str, str] | None:
    if rule.tool is None:
        return None
    classes = _classes()
    names = ", ".join(name for name, permission in classes.items() if permission != Permission.READ)
    match classes.get(rule.tool):
        case None:
            return ".tool", f"there is no tool or class '{rule.tool}'", f"one of: {names}"
        case Permission.READ:
            text = f"'{rule.tool}' only reads, which needs no permission"
            return ".tool", text, f"one of: {names}"
        case _:
            return None


def _fault_of_path(path: str | None) -> tuple[str, str, str] | None:
    if path is None:
        return None
    if ".." in path.split("/"):
        return ".path", f"'{path}' leads out of the project", "write it relative to the root"
    if _alternatives(path) > MAX_ALTERNATIVES:
        text = f"'{path}' has more than {MAX_ALTERNATIVES} alternatives"
        return ".path", text, "write several rules"
    return None


def _fault_of_command(rule: Rule) -> tuple[str, str, str] | None:
    if rule.command is None:
        return None
    try:
        words = command_words(rule.command)
    except ValueError:
        words = ()
    if not words:
        return ".command", f"'{rule.command}' is no command", 'write it as "git push"'
    runs = (Permission.EXECUTE, Permission.NETWORK)
    if rule.tool is not None and _classes()[rule.tool] not in runs:
        return ".command", f"'{rule.tool}' runs no command", "leave out tool or command"
    return None


def _fault_of_both(rule: Rule) -> tuple[str, str, str] | None:
    """A path is an edit's, a command that of what is run: no call has both."""
    if rule.path is None:
        return None
    if rule.command is not None:
        return ".path", "no call has a path and a command", "write two rules"
    if rule.tool is not None and _classes()[rule.tool] is not Permission.EDIT:
        return ".path", f"'{rule.tool}' edits no file", "leave out tool or path"
    return None


def _alternatives(glob: str) -> int:
    """Return at least as many as there are patterns without braces that `glob` stands for."""
    count = 1
    choices: list[int] = []
    for character in glob:
        match character:
            case "{":
                choices.append(1)
            case "," if choices:
                choices[-1] += 1
            case "}" if choices:
                count *= choices.pop()
            case _:
                pass
    return count


def _classes() -> dict[str, Permission]:
    """Return the class of every name a rule may have in `tool`."""
    # Not at the top: it would add 9 ms to the start of every command that prints a status.
    from punie_protocol.tools import TOOLS

    classes = {str(permission): permission for permission in Permission}
    return classes | {tool.name: tool.permission for tool in TOOLS.values()}
