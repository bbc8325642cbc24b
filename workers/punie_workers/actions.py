"""A tool call with effects, worked out and not yet done: what is shown, asked for, then run."""

from collections.abc import Awaitable, Callable

import msgspec

from punie_protocol.tool_types import Result


class Subject(msgspec.Struct, frozen=True):
    """What a call would touch, resolved: `paths` relative to the root, after symbolic links;
    `command` as its arguments, and the `folder` that it runs in.

    `network`: it reaches the network too. `confined`: in a sandbox, or it runs nothing; without
    one it can do what the user can. `harmless`: it runs, and can change nothing but what is
    thrown away. `settled`: it is about what was allowed before, and begins nothing.
    `any_arguments`: an answer for the session holds for the tool, whatever its arguments.
    """

    paths: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    folder: str = "."
    network: bool = False
    confined: bool = True
    harmless: bool = False
    settled: bool = False
    any_arguments: bool = False


class FileDiff(msgspec.Struct, frozen=True):
    """One file before and after; ``None`` where it does not exist."""

    path: str
    old: str | None
    new: str | None


class Action(msgspec.Struct, frozen=True):
    """`description` says what it does where `diffs` do not. `run` does it, once, and raises
    `PunieError` when it cannot: then nothing has happened, or `ToolFailed` says what has. It does
    exactly what `subject`, `diffs` and `description` say, or fails because the files changed
    meanwhile. Cancelled, it has either not begun or it ends first (within milliseconds) and then
    raises `asyncio.CancelledError`; `happened` tells which."""

    subject: Subject
    diffs: tuple[FileDiff, ...]
    run: Callable[[], Awaitable[Result]]
    happened: Callable[[], bool] = bool
    description: str = ""
