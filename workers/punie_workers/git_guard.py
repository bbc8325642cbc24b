"""What keeps our own git calls from running anything, writing anything, or looking elsewhere.

A repository's configuration is its author's. Git obeys it in each command: it names programs to
run for a status or a diff. One table says what is switched off and why; configuration goes in
through ``GIT_CONFIG_COUNT``, which beats every file. Of the user's own configuration only the
ignore file and the trusted folders count, so that one machine's settings change no format.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from punie_workers import children


class Where(StrEnum):
    """Where a guard is put: an option before or after the command, a setting, the environment."""

    ALWAYS = "always"
    STATUS = "status"
    DIFF = "diff"
    LOG = "log"
    SETTING = "setting"
    ENVIRONMENT = "environment"


class Guard(msgspec.Struct, frozen=True):
    """One thing that is switched off. Options are written as one word, `name` and `value`."""

    where: Where
    name: str
    value: str
    why: str


_A, _S, _D, _L = Where.ALWAYS, Where.STATUS, Where.DIFF, Where.LOG
_C, _E = Where.SETTING, Where.ENVIRONMENT

GUARDS: Final = (
    Guard(_A, "--no-pager", "", "core.pager and pager.* name programs"),
    Guard(_A, "--no-optional-locks", "", "a status would write the refreshed index"),
    Guard(_A, "--literal-pathspecs", "", "a path is a path, not a pattern"),
    Guard(_S, "--ignore-submodules=", "dirty", "a git in each submodule, by its configuration"),
    Guard(_D, "--ignore-submodules=", "dirty", "the same"),
    Guard(_D, "--submodule=", "short", "diff.submodule has a git run in each submodule"),
    Guard(_D, "--no-ext-diff", "", "diff.external and diff.*.command name programs"),
    Guard(_D, "--no-textconv", "", "diff.*.textconv names a program"),
    Guard(_L, "--no-show-signature", "", "log.showSignature starts gpg.program"),
    Guard(_L, "--no-ext-diff", "", "as for a diff, should a setting add one to the log"),
    Guard(_L, "--no-textconv", "", "the same"),
    Guard(_C, "core.hooksPath", os.devnull, "hooks"),
    Guard(_C, "core.fsmonitor", "false", "names a program, or starts a daemon"),
    Guard(_C, "core.untrackedCache", "false", "is kept up in the index"),
    Guard(_C, "core.pager", "cat", "names a program"),
    Guard(_C, "core.editor", "false", "names a program"),
    Guard(_C, "core.askPass", "", "names a program"),
    Guard(_C, "core.sshCommand", "false", "names a program"),
    Guard(_C, "core.gitProxy", "", "names a program"),
    Guard(_C, "core.alternateRefsCommand", ":", "names a program"),
    Guard(_C, "credential.helper", "", "names programs; the empty one clears the list"),
    Guard(_C, "gpg.program", "false", "names a program"),
    Guard(_C, "gpg.ssh.program", "false", "names a program"),
    Guard(_C, "gpg.x509.program", "false", "names a program"),
    Guard(_C, "gpg.ssh.defaultKeyCommand", "", "names a program"),
    Guard(_C, "log.showSignature", "false", "starts gpg.program"),
    Guard(_C, "submodule.recurse", "false", "a git in each submodule, by its configuration"),
    Guard(_C, "status.submoduleSummary", "false", "the same"),
    Guard(_C, "diff.submodule", "short", "the same"),
    Guard(_C, "diff.autoRefreshIndex", "false", "a diff would write the refreshed index"),
    Guard(_C, "diff.orderFile", os.devnull, "names a file anywhere"),
    Guard(_C, "mailmap.file", os.devnull, "names a file anywhere"),
    Guard(_C, "diff.noprefix", "false", "changes the format"),
    Guard(_C, "diff.mnemonicPrefix", "false", "changes the format"),
    Guard(_C, "diff.interHunkContext", "0", "changes the format"),
    Guard(_C, "core.quotePath", "false", "names are shown as they are"),
    Guard(_C, "color.ui", "false", "changes the format"),
    Guard(_C, "protocol.allow", "never", "no transport of any kind: nothing is fetched"),
    Guard(_C, "safe.bareRepository", "explicit", "a tracked folder that looks like a repository"),
    Guard(_E, "GIT_CONFIG_GLOBAL", os.devnull, "the user's settings, and what they include"),
    Guard(_E, "GIT_CONFIG_NOSYSTEM", "1", "the machine's settings"),
    Guard(_E, "GIT_ATTR_NOSYSTEM", "1", "the machine's attributes"),
    Guard(_E, "GIT_OPTIONAL_LOCKS", "0", "a status would write the refreshed index"),
    Guard(_E, "GIT_NO_LAZY_FETCH", "1", "a partial clone fetches what is missing"),
    Guard(_E, "GIT_ALLOW_PROTOCOL", "none", "the same, for a git that knows no such variable"),
    Guard(_E, "GIT_TERMINAL_PROMPT", "0", "nobody is there to be asked"),
    Guard(_E, "GIT_PAGER", "cat", "names a program"),
    Guard(_E, "LC_ALL", "C", "what it complains about is recognised by its words"),
)
"""Beside these: filter drivers, of any name, are switched off by the names that the configuration
has (`settings`); `place` fixes the work tree against ``core.worktree``; revisions are resolved to
hashes first. ``GIT_*`` and ``SSH_*`` of the user are not in the allow-listed environment. Aliases
cannot stand for the commands we use. The price: a file that a filter rewrites (LFS) counts as
modified once its times differ from the index."""

_FILTER_OFF: Final = {"clean": "", "smudge": "", "process": "", "required": "false"}


def find(root: str) -> str:
    """Return the machine's git: the first on the absolute folders of ``PATH`` that are not in the
    project `root`; when there is none, a place where it would be."""
    real = Path(root).resolve()
    folders = [Path(name) for name in os.environ.get("PATH", os.defpath).split(os.pathsep)]
    trusted = [
        str(folder)
        for folder in folders
        if folder.is_absolute() and not folder.resolve().is_relative_to(real)
    ]
    return shutil.which("git", path=os.pathsep.join(trusted)) or "/usr/bin/git"


def options(where: Where) -> list[str]:
    """Return the guards that are options there."""
    return [guard.name + guard.value for guard in GUARDS if guard.where is where]


def place(up: str, ceiling: str) -> dict[str, str]:
    """Return the environment that fixes which repository is meant: the work tree, relative to
    where git runs, and the folder its search stops at."""
    return {
        **children.environment(),
        "LC_ALL": "C",
        "GIT_WORK_TREE": up,
        "GIT_CEILING_DIRECTORIES": ceiling,
    }


def asking(base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which the configuration is read, the user's too."""
    environment = guarded(base, [])
    del environment["GIT_CONFIG_GLOBAL"], environment["GIT_CONFIG_NOSYSTEM"]
    return environment


def guarded(base: Mapping[str, str], settings: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the environment `base` with every guard, and with further `settings`."""
    environment = {guard.name: guard.value for guard in GUARDS if guard.where is Where.ENVIRONMENT}
    every = [(guard.name, guard.value) for guard in GUARDS if guard.where is Where.SETTING]
    every += settings
    pairs = {"GIT_CONFIG_COUNT": str(len(every))}
    for number, (name, value) in enumerate(every):
        pairs |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return {**base, **environment, **pairs}


class Settings(msgspec.Struct):
    """What the configuration must be asked for, as bytes: names of any kind are in it."""

    filters: list[bytes]
    excludes: bytes | None
    safe: list[bytes]
    guarded: bool

    def pairs(self) -> list[tuple[str, str]]:
        """Return the settings that switch filters off and keep what is the user's. A filter that
        is required and has no program would be an error: none is."""
        drivers = {os.fsdecode(key.rpartition(b".")[0]) for key in self.filters}
        pairs = [
            (f"{driver}.{name}", value)
            for driver in sorted(drivers)
            for name, value in _FILTER_OFF.items()
        ]
        if self.excludes is not None:
            pairs.append(("core.excludesFile", os.fsdecode(self.excludes)))
        return pairs + [("safe.directory", os.fsdecode(folder)) for folder in self.safe]

    def files(self) -> list[str]:
        """Return the files outside the repository that those settings name."""
        return [] if self.excludes is None else [os.fsdecode(self.excludes)]
