"""How a process of Code Mode is started: by a script of ours, in the operating system's sandbox.

Monty is a sandbox of its own: no files, no network, no commands. This is the layer round it, for
the day it has a hole: no project and no home to see, nowhere to write, no network, no ``/proc``,
process numbers of its own, limits on memory, CPU time and processes, and the end when the worker
ends. A machine without such a sandbox runs Monty alone, one layer less, and says so once in the
log.
"""

import logging
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from punie_workers.code_limits import Limits
from punie_workers.programs import bundled
from punie_workers.sandbox import available, bubblewrap, machine
from punie_workers.sandbox.available import Missing
from punie_workers.sandbox.bubblewrap import Bubblewrap
from punie_workers.sandbox.confinement import Confinement, ProgramLimits
from punie_workers.sandbox.view import Kind, Mount

CHECK_S: Final = 10.0
"""Seconds that the type checker may take beside the program."""
INSIDE: Final = "/monty"
"""What the program is called in the sandbox: not by the path of this installation."""

_MB: Final = 1024 * 1024
_CHECKER_MEMORY: Final = 512 * _MB
_EXECUTABLE: Final = 0x10
"""``MFD_EXEC``, from Linux 6.3 on."""
_log = logging.getLogger(__name__)


@contextmanager
def launcher(limits: Limits) -> Generator[str]:
    """Yield the path of a program that starts Monty, any number of times while the context is
    open; it hands its arguments, input and output on. Blocks for some ms at first. Raises
    `PunieError` when the sandbox cannot be made."""
    monty = bundled("monty")
    with ExitStack() as stack:
        match available.find():
            case Missing(reason=reason):
                _warn(reason)
                yield monty
            case Bubblewrap() as found:
                yield stack.enter_context(_script(alone(found, monty, _of_program(limits))))
            case found:
                wanted = Confinement(root=None, read=(monty,), limits=_of_program(limits))
                confined = stack.enter_context(found.enter(wanted, [monty], cwd="/"))
                yield stack.enter_context(_script(confined.argv))


def alone(sandbox: Bubblewrap, program: str, limits: ProgramLimits) -> tuple[str, ...]:
    """Return the words that start `program` with nothing but the system's libraries, read-only:
    less than any program of a project sees, and started in half the time. As often as wanted."""
    mounts = [
        Mount(Kind.LINK if one.link else Kind.READ, one.path, one.source)
        for one in machine.system(network=False, bare=True)
    ]
    mounts += [Mount(Kind.DEVICES, "/dev"), Mount(Kind.READ, INSIDE, os.path.realpath(program))]
    mounts += [Mount(Kind.CLOSE, "/dev"), Mount(Kind.CLOSE, "/")]
    return sandbox.alone(mounts, [*bubblewrap.limited(limits), INSIDE])


def _of_program(limits: Limits) -> ProgramLimits:
    """Return what the kernel holds the process to: above Monty's own limits, which it is told of
    in words, and only reached past them."""
    return ProgramLimits(
        memory=2 * limits.memory + _CHECKER_MEMORY,
        cpu_s=math.ceil(limits.time_s + 2 * CHECK_S),
        processes=64,
        files=64,
        file_size=0,
    )


@contextmanager
def _script(words: Sequence[str]) -> Generator[str]:
    text = f'#!/bin/sh\n{_EXPENDABLE}exec {shlex.join(words)} "$@"\n'
    with _in_memory(text) if sys.platform == "linux" else _in_folder(text) as path:
        yield path


_EXPENDABLE: Final = "echo 1000 >/proc/self/oom_score_adj\n" if sys.platform == "linux" else ""
"""When memory runs short, it is this that the kernel ends, not Punie."""


@contextmanager
def _in_memory(text: str) -> Generator[str]:
    """A file without a name: nobody else can change it, nothing is left of it however the worker
    ends, and a ``/tmp`` where no program may be started does not matter."""
    fd = _written(text)
    try:
        yield f"/proc/{os.getpid()}/fd/{fd}"
    finally:
        os.close(fd)


def _written(text: str) -> int:
    """Return a descriptor for reading: what is open for writing cannot be started."""
    try:
        fd = os.memfd_create("code-mode", os.MFD_CLOEXEC | _EXECUTABLE)
    except OSError:
        fd = os.memfd_create("code-mode", os.MFD_CLOEXEC)
    try:
        os.write(fd, text.encode())
        os.fchmod(fd, 0o500)
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


@contextmanager
def _in_folder(text: str) -> Generator[str]:
    with tempfile.TemporaryDirectory(prefix="punie-") as folder:
        path = Path(folder) / "monty"
        path.write_text(text)
        path.chmod(0o500)
        yield str(path)


@cache
def _warn(reason: str) -> None:
    _log.warning("Code Mode runs without the operating system's sandbox round it: %s", reason)
