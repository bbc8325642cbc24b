"""What a program in a sandbox may see and use, and what every sandbox offers.

A `Confinement` says what is wanted, a `Sandbox` turns it into words to start. Nothing here is of
one operating system.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import msgspec

from punie_protocol.errors import Denied, PunieError, ToolFailed
from punie_protocol.isolation import SandboxSettings

KIND = "sandbox"
"""The stable word of `ToolFailed` when a sandbox could not be made."""


class ProgramLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What each program may use: `memory` bytes it may allocate, `cpu_s` CPU seconds, `files`
    descriptors, `file_size` bytes of one file. `processes` is all of the sandbox together; the
    kernel does not hold root to it, a `guard.Guard` does, as to CPU seconds of all `together_s`.
    Never more than this process may."""

    memory: int = 4 * 1024**3
    cpu_s: int = 3600
    processes: int = 512
    files: int = 4096
    file_size: int = 4 * 1024**3
    together_s: int | None = None


class Confinement(msgspec.Struct, frozen=True, kw_only=True):
    """What one program may see. `root` is the project's folder, an absolute real path, seen at its
    own path, or ``None``: no project at all. Without `writable` it is read-only. `settings` are
    the user's; `read` are further paths to show; `hidden` are never shown, whatever else says so.
    `limits` hold for each program in it. `bare` is for a program that came with Punie: it starts
    faster, sees nothing of ``/etc`` nor of the user's ``PATH``, and its limits are its caller's to
    set. A `lasting` program runs beside what the user does: repositories' own folders are
    read-only as a whole."""

    root: str | None
    writable: bool = True
    network: bool = False
    settings: SandboxSettings = SandboxSettings()
    hidden: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    limits: ProgramLimits = ProgramLimits()
    bare: bool = False
    lasting: bool = False


def _nothing() -> None:
    return None


class Confined(msgspec.Struct, frozen=True):
    """A command to start once: its words, its whole environment (variables may be added), and the
    descriptors that it must inherit under their own numbers. Nothing else may be inherited but
    0, 1 and 2. ``argv[0]`` is the absolute path of a program. `replaced` returns the first
    protected path that is no longer what was protected, since somebody outside put another in its
    place; it is asked inside the context, by any thread."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    pass_fds: tuple[int, ...]
    replaced: Callable[[], str | None] = _nothing


class Sandbox(ABC):
    """A way to confine programs on this machine. Holds nothing open between two `enter`."""

    name: str
    """``bubblewrap`` or ``sandbox-exec``."""
    path: str
    """The absolute path of its program."""
    version: str
    """What it says it is, or empty."""

    @abstractmethod
    def enter(
        self, wanted: Confinement, command: Sequence[str], *, cwd: str
    ) -> AbstractContextManager[Confined]:
        """Yield what to start so that `command` runs in the folder `cwd` (absolute, real) under
        `wanted`. Inside the context it may be started, once, by a thread that lives as long as the
        program: it ends with the thread. Leaving ends whatever still runs in it, and gives back
        what was made for it: descriptors, placeholders of protected paths. Both wait for some
        milliseconds.
        Raises `PunieError`: `Denied` for what cannot be confined safely, `ToolFailed`."""


def refused(message: str, hint: str) -> PunieError:
    """Return the error for what would not be safe."""
    return PunieError(Denied(message=message, hint=hint))


def broken(message: str, hint: str = "") -> PunieError:
    """Return the error for a sandbox that cannot be made or ended."""
    return PunieError(ToolFailed(kind=KIND, message=message, hint=hint))
