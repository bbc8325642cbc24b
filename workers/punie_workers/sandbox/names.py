"""The names that a program may not change in a writable project: one list for every sandbox."""

from enum import StrEnum
from typing import Final, NamedTuple


class Absent(StrEnum):
    """What stands for a protected name that does not exist: an empty folder, an empty file, a file
    that names the folder it is in, nothing."""

    FOLDER = "folder"
    FILE = "file"
    NOTHING = "nothing"
    HERE = "here"


class Rule(NamedTuple):
    """A protected name, from the root or from the folder of a repository."""

    name: str
    absent: Absent


IN_ROOT: Final = (
    Rule(".punie", Absent.FOLDER),
    Rule(".vscode", Absent.FOLDER),
    Rule(".idea", Absent.FOLDER),
    Rule(".zed", Absent.FOLDER),
    Rule(".cursor", Absent.FOLDER),
    Rule(".claude", Absent.FOLDER),
    Rule(".devcontainer", Absent.NOTHING),
    Rule(".husky", Absent.NOTHING),
    Rule(".githooks", Absent.NOTHING),
    Rule(".envrc", Absent.NOTHING),
    Rule(".mcp.json", Absent.NOTHING),
    Rule(".codex", Absent.NOTHING),
    Rule(".gemini", Absent.NOTHING),
    Rule(".windsurf", Absent.NOTHING),
    Rule(".kiro", Absent.NOTHING),
)
"""What makes a program start without the user's doing: Punie's own settings, tasks and servers of
editors and agents, hooks kept beside the code, the shell's settings for a folder. Those that get no
placeholder are asked about by their programs when they are new. What a user starts, as a Makefile,
tests or the project's environment, is not among them."""

IN_REPOSITORY: Final = (
    Rule("hooks", Absent.FOLDER),
    Rule("config", Absent.FILE),
    Rule("config.worktree", Absent.FILE),
    Rule("info/attributes", Absent.FILE),
    Rule("worktrees", Absent.NOTHING),
    Rule("commondir", Absent.HERE),
)
"""Hooks and configuration; attributes put filters to use; ``worktrees`` and ``commondir`` lead git
to other configuration: an empty ``commondir`` would break git, one that says where it is changes
nothing."""
