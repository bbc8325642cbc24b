"""May a tool call happen? Pure: what it would touch and what everybody said in, a verdict out.

The first line that applies decides::

    1  the tool only reads                                   allow
    2  a deny rule: the user's, the trusted project's        deny
    3  "reject always" was answered in this session          deny
    4  mode read-only                                        deny
    5  the prompt allows the class                           allow
    6  an allow rule: the user's, the trusted project's      allow
    7  "allow for this session" was answered                 allow
    8  mode trusted; mode accept-edits and it is an edit     allow
    9  anything else                                         ask

The mode is the prompt's, else the session's, else the trusted project's, else the user's. Line 2
comes first, so that nothing a project, a session or a prompt says takes a deny rule back.

A rule that forbids is read widely: it meets a path whatever its case and anything below a folder
that it names, and a program by its name wherever it lies. One that allows is read to the letter.
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
    Mode,
    PermissionSettings,
    PromptPermissions,
    Rule,
    command_words,
)
from punie_protocol.project_settings import ProjectPermissions
from punie_protocol.tool_types import Permission
from punie_workers.actions import Subject
from punie_workers.interp.globs import Globs

MAX_KEY: Final = 1024
"""Characters of a grant's key; a longer command is named by its hash."""


class Verdict(StrEnum):
    """What is to become of a call."""

    ALLOW = "allow"
    DENY = "deny"
    ASK = "ask"


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
    call = _Call(permission, tool, subject)
    asked = Decision(Verdict.ASK, f"mode {rights.mode}")
    return _denied(call, rights) or _allowed(call, rights) or asked


def grant_key(permission: Permission, tool: str, subject: Subject) -> str:
    """Return for which calls an answer for the whole session holds: all edits, everything on the
    network, one command with exactly these arguments."""
    match permission:
        case Permission.EXECUTE if subject.command:
            command = shlex.join(subject.command)
            if len(command) <= MAX_KEY:
                return f"{permission}:{command}"
            return f"{permission}#{sha256(command.encode(errors='replace')).hexdigest()}"
        case Permission.EXECUTE:
            return f"{permission}/{tool}"
        case Permission.READ | Permission.EDIT | Permission.NETWORK:
            return str(permission)
        case _:
            assert_never(permission)


class _Call(msgspec.Struct, frozen=True):
    permission: Permission
    tool: str
    subject: Subject

    @property
    def key(self) -> str:
        return grant_key(self.permission, self.tool, self.subject)


def _denied(call: _Call, rights: Rights) -> Decision | None:
    for whose, rules in (("user", rights.user.deny), ("project", rights.project.deny)):
        if rule := _first(rules, call, forbids=True):
            return Decision(Verdict.DENY, f"rule deny {rule} in the {whose}'s settings")
    if rights.grants.get(call.key) is False:
        return Decision(Verdict.DENY, "the user rejected it for the rest of the session")
    if rights.mode is Mode.READ_ONLY:
        return Decision(Verdict.DENY, "read-only mode")
    return None


def _allowed(call: _Call, rights: Rights) -> Decision | None:
    if call.permission in rights.prompt.allow:
        return Decision(Verdict.ALLOW, f"the prompt allows {call.permission}")
    for whose, rules in (("user", rights.user.allow), ("project", rights.project.allow)):
        if rule := _first(rules, call, forbids=False):
            return Decision(Verdict.ALLOW, f"rule allow {rule} in the {whose}'s settings")
    if rights.grants.get(call.key):
        return Decision(Verdict.ALLOW, "the user allowed it for the rest of the session")
    return _allowed_by_mode(call, rights.mode)


def _allowed_by_mode(call: _Call, mode: Mode) -> Decision | None:
    match mode:
        case Mode.TRUSTED:
            return Decision(Verdict.ALLOW, "mode trusted")
        case Mode.ACCEPT_EDITS if call.permission is Permission.EDIT:
            return Decision(Verdict.ALLOW, "mode accept-edits")
        case Mode.ACCEPT_EDITS | Mode.ASK | Mode.READ_ONLY:
            return None
        case _:
            assert_never(mode)


def _first(rules: Iterable[Rule], call: _Call, *, forbids: bool) -> Rule | None:
    return next((rule for rule in rules if _matches(rule, call, forbids=forbids)), None)


def _matches(rule: Rule, call: _Call, *, forbids: bool) -> bool:
    if rule.tool not in (None, call.tool, call.permission):
        return False
    if rule.command is not None and not _runs(rule.command, call.subject.command, forbids):
        return False
    if rule.path is None:
        return True
    paths = [posixpath.normpath(path) for path in call.subject.paths]
    if forbids:
        return any(_meets(rule.path, path) for path in paths)
    return bool(paths) and all(_globs(rule.path).matches(path) for path in paths)


def _runs(prefix: str, command: tuple[str, ...], forbids: bool) -> bool:
    """Whether `command` begins with the words of `prefix`."""
    words = _words(prefix)
    start = command[: len(words)]
    if start == words:
        return True
    return forbids and bool(start) and (posixpath.basename(start[0]), *start[1:]) == words


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


@lru_cache(maxsize=4096)
def _words(command: str) -> tuple[str, ...]:
    return command_words(command)
