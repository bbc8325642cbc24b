"""A tool call with effects, worked out and not yet done: what is shown, asked for, then run."""

from collections.abc import Awaitable, Callable

import msgspec

from punie_protocol.tool_types import Result


class Subject(msgspec.Struct, frozen=True):
    """What a call would touch, resolved: `paths` relative to the root, after symbolic links;
    `command` as its arguments."""

    paths: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


class FileDiff(msgspec.Struct, frozen=True):
    """One file before and after; ``None`` where it does not exist."""

    path: str
    old: str | None
    new: str | None


class Action(msgspec.Struct, frozen=True):
    """`run` does it, once, and raises `PunieError` when it cannot: then nothing has happened, or
    `ToolFailed` says what has. It does exactly what `subject` and `diffs` say, or fails because
    the files changed meanwhile. Cancelled, it has either not begun or it ends first (within
    milliseconds) and then raises `asyncio.CancelledError`; `happened` tells which."""

    subject: Subject
    diffs: tuple[FileDiff, ...]
    run: Callable[[], Awaitable[Result]]
    happened: Callable[[], bool] = bool
