"""Counting a sandbox on Linux, in ``/proc``.

All its processes descend from the one that was started: an orphan in a process namespace becomes
a child of the namespace's first process.
"""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from punie_workers.sandbox import machine
from punie_workers.sandbox.guard import Census

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_SEEMING: Final = ("status", ("RssAnon:", "RssShmem:"))
_EXACT: Final = ("smaps_rollup", ("Pss_Anon:", "Pss_Shmem:"))
_MEMORY_FOLDERS: Final = ("/tmp", "/var/tmp", "/dev/shm", "/run")
"""Besides the home."""
_PER_FILE: Final = 1024
"""Bytes of the kernel's that even an empty file takes in such a folder."""
_GONE: Final = (FileNotFoundError, ProcessLookupError, PermissionError)


class Linux:
    """See `guard.Counting`."""

    def census(self, process_pid: int, *, exact: bool = False) -> Census:
        inside = list(_inside(process_pid))
        file, names = _EXACT if exact else _SEEMING
        held = sum(_fields(Path(f"/proc/{pid}/{file}"), names) for pid in inside)
        folders = _in_folders(inside[0]) if inside else 0
        return Census(len(inside), held + folders, sum(map(_cpu, inside)))

    def runs(self, process_pid: int) -> bool:
        with suppress(*_GONE):
            return _stat(process_pid)[0] not in "ZX"
        return False

    def end(self, process_pid: int) -> None:
        """With the first process of their namespace, all others end."""
        for pid in _children(process_pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _inside(process_pid: int) -> Iterator[int]:
    todo = _children(process_pid)
    while todo:
        pid = todo.pop()
        yield pid
        todo += _children(pid)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(*_GONE):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(*_GONE):
                found += map(int, (task / "children").read_text().split())
    return found


def _stat(pid: int) -> list[str]:
    """Return the fields of a process that follow its name, of which the state is the first."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _fields(path: Path, names: Iterable[str]) -> int:
    """Return the sum of fields in kilobytes of a file of ``/proc``, in bytes."""
    with suppress(*_GONE):
        lines = path.read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(tuple(names)))
    return 0


def _in_folders(pid: int) -> int:
    """Return the bytes in temporary folders of a process, which are in memory. Until the sandbox is
    set up, the folders there are the machine's."""
    used = 0
    for name in filter(None, (*_MEMORY_FOLDERS, machine.home())):
        with suppress(OSError):
            folder = f"/proc/{pid}/root{name}"
            if Path(folder).stat().st_dev == Path(name).stat().st_dev:
                continue
            found = os.statvfs(folder)
            used += (found.f_blocks - found.f_bfree) * found.f_frsize
            used += (found.f_files - found.f_ffree) * _PER_FILE
    return used


def _cpu(pid: int) -> float:
    with suppress(*_GONE):
        fields = _stat(pid)
        return sum(map(int, fields[11:15])) / _TICKS
    return 0.0
