"""May a tool call happen? Pure: what it would touch and what everybody said in, a verdict out.

The first line that applies decides::

    1  the tool only reads                                   allow
    2  a deny rule: the user's, the trusted project's        deny
    3  "reject always" was answered in this session          deny
    4  it is about a command that was allowed before         allow
    5  mode read-only: tests that can change nothing         allow
       anything else                                         deny
    6  "allow for this session" was answered                 allow
    7  mode trusted                                          allow
    8  it would run without a sandbox                        ask
       it edits what starts programs, and no rule names it   ask
    9  the prompt allows the class                           allow
    10 an allow rule: the user's, the trusted project's      allow
    11 mode accept-edits and it is an edit                   allow
    12 anything else                                         ask

The mode is the prompt's, else the session's, else the trusted project's, else the user's. Line 2
comes first, so that nothing a project, a session or a prompt says takes a deny rule back.

What runs and reaches the network is of both classes: it is denied if either is, asked for once if
either is, and what allows commands does not allow the network; without a sandbox it reaches it.

Editors, agents and shells start programs from files of their own in a project (`STARTERS`): an
edit of one is a command in disguise, so it is asked for by itself, and an answer for the session
holds for exactly those files.

A rule that forbids is read widely: it meets a path whatever its case and anything below a folder
that it names, and a command as `command_rules` says. One that allows is read to the letter. While
a rule forbids commands, a shell text that cannot be read is allowed by an answer only.
"""

import posixpath
import shlex
import unicodedata
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from typing import Final, assert_never

import msgspec

from punie_protocol.permissions import (
    STARTS_PROGRAMS,
    UNCONFINED,
    UNREADABLE,
    Mode,
    PermissionSettings,
    PromptPermissions,
    Rule,
)
from punie_protocol.project_settings import ProjectPermissions
from punie_protocol.tool_types import Permission
from punie_workers import command_rules
from punie_workers.actions import Subject
from punie_workers.interp.globs import Globs
from punie_workers.sandbox import names

STARTERS: Final = frozenset(rule.name for rule in names.IN_ROOT)
"""Names, of folders or files, wherever they lie in a project."""
MAX_KEY: Final = 1024
"""Characters of a grant's key; a longer command is named by its hash."""


class Verdict(StrEnum):
    """What is to become of a call."""

    ALLOW = "allow"
    DENY = "deny"
    ASK = "ask"


_STRICTNESS: Final = {Verdict.ALLOW: 0, Verdict.ASK: 1, Verdict.DENY: 2}


class Decision(msgspec.Struct, frozen=True):
    """A verdict and who gave it: a rule, a mode, an answer."""

    verdict: Verdict
    reason: str


class Rights(msgspec.Struct, frozen=True, kw_only=True):
    """What everybody said. `project` is what the project's own settings say, while they are
    trusted; `grants` are the session's answers by `grant_key`, true for allowed."""

    user: PermissionSettings
    project: ProjectPermissions = ProjectPermissions()
    session_mode: Mode | None = None
    prompt: PromptPermissions = PromptPermissions()
    grants: Mapping[str, bool] = {}

    @property
    def mode(self) -> Mode:
        """The mode that counts."""
        return self.prompt.mode or self.session_mode or self.project.mode or self.user.mode


def decide(permission: Permission, tool: str, subject: Subject, rights: Rights) -> Decision:
    """Return what is to become of a call of `tool`, of class `permission`, on `subject`."""
    if permission is Permission.READ:
        return Decision(Verdict.ALLOW, "reading needs no permission")
    decisions = [_decide(call, rights) for call in _calls(permission, tool, subject)]
    return max(decisions, key=lambda decision: _STRICTNESS[decision.verdict])


def grant_key(permission: Permission, tool: str, subject: Subject) -> str:
    """Return for which calls an answer for the whole session holds: all edits, or edits of exactly
    these files if they start programs; everything on the network; one command with exactly these
    arguments in this folder; all runs of a tool. Of what runs, with and without the network or a
    sandbox apart."""
    match permission:
        case Permission.EXECUTE if subject.command and not subject.any_arguments:
            return _key(_reach(subject), f"{_folder(subject)}{shlex.join(subject.command)}")
        case Permission.EDIT if starts_programs(subject):
            return _key(str(permission), shlex.join(subject.paths))
        case Permission.EXECUTE:
            return f"{_reach(subject)}/{tool}"
        case Permission.READ | Permission.EDIT | Permission.NETWORK:
            return str(permission)
        case _:
            assert_never(permission)


def starts_programs(subject: Subject) -> bool:
    """Whether a file of the call is one from which programs are started without the user's doing,
    whatever its case."""
    parts = (part for path in subject.paths for part in posixpath.normpath(path).split("/"))
    return any(_folded(part) in STARTERS for part in parts)


def _key(kind: str, what: str) -> str:
    if len(what) <= MAX_KEY:
        return f"{kind}:{what}"
    return f"{kind}#{sha256(what.encode(errors='replace')).hexdigest()}"


def _folder(subject: Subject) -> str:
    return "" if subject.folder == "." else f"(cd {shlex.quote(subject.folder)}) "


def _reach(subject: Subject) -> str:
    if not subject.confined:
        return "unconfined"
    both = f"{Permission.EXECUTE}+{Permission.NETWORK}"
    return both if subject.network else str(Permission.EXECUTE)


class _Call(msgspec.Struct, frozen=True):
    """A call as one class sees it. As the network `only`, it is met by rules that name that."""

    permission: Permission
    tool: str
    subject: Subject
    only: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """The grants that may be about it: the call's own, then that for the command alone."""
        if self.permission is Permission.EXECUTE:
            return self._key(self.subject), self._key(_alone(self.subject))
        return (self._key(self.subject),)

    def _key(self, subject: Subject) -> str:
        return grant_key(Permission.EXECUTE if self.only else self.permission, self.tool, subject)


def _calls(permission: Permission, tool: str, subject: Subject) -> list[_Call]:
    """Return the call as each of its classes sees it."""
    calls = [_Call(permission, tool, subject)]
    if permission is Permission.EXECUTE and (subject.network or not subject.confined):
        calls.append(_Call(Permission.NETWORK, tool, subject, only=True))
    return calls


def _alone(subject: Subject) -> Subject:
    return msgspec.structs.replace(subject, network=False, confined=True)


def _decide(call: _Call, rights: Rights) -> Decision:
    asked = Decision(Verdict.ASK, _needs_more(call, rights) or f"mode {rights.mode}")
    return _denied(call, rights) or _allowed(call, rights) or asked


def _needs_more(call: _Call, rights: Rights) -> str:
    """Return why it is not enough that the call's class is allowed; empty when it is."""
    if not call.subject.confined:
        return UNCONFINED
    if _is_obscure(call, rights):
        return UNREADABLE
    special = call.permission is Permission.EDIT and starts_programs(call.subject)
    return STARTS_PROGRAMS if special else ""


def _denied(call: _Call, rights: Rights) -> Decision | None:
    for whose, rules in (("user", rights.user.deny), ("project", rights.project.deny)):
        if rule := _first(rules, call, forbids=True):
            return Decision(Verdict.DENY, f"rule deny {rule} in the {whose}'s settings")
    if any(rights.grants.get(key) is False for key in (*call.keys, str(call.permission))):
        return Decision(Verdict.DENY, "the user rejected it for the rest of the session")
    harmless = call.subject.settled or (call.subject.harmless and call.subject.confined)
    if rights.mode is Mode.READ_ONLY and not harmless:
        more = _needs_more(call, rights)
        return Decision(Verdict.DENY, f"read-only mode; {more}" if more else "read-only mode")
    return None


def _allowed(call: _Call, rights: Rights) -> Decision | None:
    if call.subject.settled:
        return Decision(Verdict.ALLOW, "it was allowed when it began")
    if rights.mode is Mode.READ_ONLY:
        return Decision(Verdict.ALLOW, "it can change nothing")
    keys = call.keys if call.subject.confined else call.keys[:1]
    if any(rights.grants.get(key) for key in keys):
        return Decision(Verdict.ALLOW, "the user allowed it for the rest of the session")
    if _is_obscure(call, rights):
        return None
    if rights.mode is Mode.TRUSTED:
        return Decision(Verdict.ALLOW, "mode trusted")
    return _allowed_in_sandbox(call, rights) if call.subject.confined else None


def _allowed_in_sandbox(call: _Call, rights: Rights) -> Decision | None:
    special = call.permission is Permission.EDIT and starts_programs(call.subject)
    if call.permission in rights.prompt.allow and not special:
        return Decision(Verdict.ALLOW, f"the prompt allows {call.permission}")
    for whose, rules in (("user", rights.user.allow), ("project", rights.project.allow)):
        rules = [rule for rule in rules if _names_starter(rule) or not special]
        if rule := _first(rules, call, forbids=False):
            return Decision(Verdict.ALLOW, f"rule allow {rule} in the {whose}'s settings")
    if rights.mode is Mode.ACCEPT_EDITS and call.permission is Permission.EDIT and not special:
        return Decision(Verdict.ALLOW, "mode accept-edits")
    return None


def _names_starter(rule: Rule) -> bool:
    """Whether a rule is about files that start programs by name, not by the way."""
    return rule.path is not None and any(name in rule.path.split("/") for name in STARTERS)


def _is_obscure(call: _Call, rights: Rights) -> bool:
    """Whether a rule forbids commands and nobody can read whether this is one of them."""
    rules = (*rights.user.deny, *rights.project.deny)
    if not any(rule.command and _is_about(rule, call) for rule in rules):
        return False
    return command_rules.is_opaque(call.subject.command)


def _first(rules: Iterable[Rule], call: _Call, *, forbids: bool) -> Rule | None:
    return next((rule for rule in rules if _matches(rule, call, forbids=forbids)), None)


def _matches(rule: Rule, call: _Call, *, forbids: bool) -> bool:
    if not _is_about(rule, call):
        return False
    if rule.command is not None and not _runs(rule.command, call.subject.command, forbids):
        return False
    if rule.path is None:
        return True
    paths = [posixpath.normpath(path) for path in call.subject.paths]
    if forbids:
        return any(_meets(rule.path, path) for path in paths)
    return bool(paths) and all(_globs(rule.path).matches(path) for path in paths)


def _is_about(rule: Rule, call: _Call) -> bool:
    if call.only:
        return rule.tool == call.permission
    return rule.tool in (None, call.tool, call.permission)


def _runs(rule: str, command: tuple[str, ...], forbids: bool) -> bool:
    return command_rules.occurs(rule, command) if forbids else command_rules.begins(rule, command)


def _meets(pattern: str, path: str) -> bool:
    """Whether `path` or a folder it lies in matches, whatever the case: on some file systems that
    is the same file."""
    parts = path.split("/")
    places = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
    exact, folded = _globs(pattern), _globs(_folded(pattern))
    return any(exact.matches(place) or folded.matches(_folded(place)) for place in places)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


@lru_cache(maxsize=4096)
def _globs(pattern: str) -> Globs:
    """Return the pattern ready; one with a slash at its end is a folder's, for what is below."""
    if pattern.endswith("/"):
        folder = pattern.rstrip("/")
        pattern = f"{folder}/**" if "/" in folder else f"**/{folder}/**"
    return Globs([pattern])
