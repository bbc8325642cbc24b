"""What a process and all that it started use now. One look, no memory of the last.

On Linux from ``/proc``, in about a millisecond a process, most of it for the kernel to add up the
private pages of a forked worker. macOS tells no CPU time of children that have ended, and only of
processes of the same user; what it does not tell counts as nothing.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_CPU_FIELDS: Final = slice(11, 15)
"""utime, stime, cutime, cstime after the name of proc_pid_stat(5)."""
_RSS, _SHARED = 1, 2
_PRIVATE: Final = ("Private_Clean", "Private_Dirty", "Private_Hugetlb")
_SHARE: Final = ("Pss_Anon", "Pss_Shmem", "SwapPss")
"""Of proc_pid_smaps(5)."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of its own, CPU seconds since the process began, with those of its ended children,
    processes, and open descriptors of the one that has most."""

    memory_bytes: int = 0
    cpu_s: float = 0.0
    processes: int = 0
    files: int = 0

    def __add__(self, other: Sample) -> Sample:
        return Sample(
            memory_bytes=self.memory_bytes + other.memory_bytes,
            cpu_s=self.cpu_s + other.cpu_s,
            processes=self.processes + other.processes,
            files=max(self.files, other.files),
        )


NOTHING: Final = Sample()


def sample(pid: int) -> Sample:
    """Return what the process and its descendants use; `NOTHING` when it is gone. Blocks.

    Of the process itself the private bytes count: the others are the fork server's. Its descendants
    share with each other what they had before they forked: that counts once.
    """
    found = NOTHING
    for member in _tree(pid) if sys.platform == "linux" else _psutil_tree(pid):
        with contextlib.suppress(OSError):  # it has just ended
            found += _one(member, shares=member != pid)
    return found


def _one(pid: int, *, shares: bool) -> Sample:
    return _linux(pid, shares=shares) if sys.platform == "linux" else _psutil(pid)


def _tree(pid: int) -> Iterator[int]:
    """Yield the process and its descendants. Each is read once."""
    found = [pid]
    for parent in found:
        yield parent
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                with contextlib.suppress(OSError):
                    found += map(int, (task / "children").read_text().split())


def _linux(pid: int, *, shares: bool) -> Sample:
    place = Path("/proc", str(pid))
    fields = (place / "stat").read_text().rpartition(")")[2].split()
    ticks = sum(map(int, fields[_CPU_FIELDS]))
    if fields[0] == "Z":  # it uses nothing but its number
        return Sample(cpu_s=ticks / _TICKS, processes=1)
    return Sample(
        memory_bytes=_memory(place, shares=shares),
        cpu_s=ticks / _TICKS,
        processes=1,
        files=_descriptors(place),
    )


def _memory(place: Path, *, shares: bool) -> int:
    """Return the private bytes, or with its part of those that it shares, but for files'; of a
    process that we may not look into, all that it does not share with files."""
    try:
        lines = (place / "smaps_rollup").read_text().splitlines()
    except PermissionError:
        words = (place / "statm").read_text().split()
        return (int(words[_RSS]) - int(words[_SHARED])) * _PAGE
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in map(_cut, lines[1:])}
    private = sum(kilobytes.get(name, 0) for name in _PRIVATE)
    part = sum(kilobytes.get(name, 0) for name in _SHARE) if shares else 0
    return max(private, part) * 1024


def _cut(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def _descriptors(place: Path) -> int:
    try:
        return len(os.listdir(place / "fd"))  # noqa: PTH208 (names alone)
    except PermissionError:
        return 0


def _psutil_tree(pid: int) -> list[int]:
    import psutil

    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    return [pid, *(child.pid for child in children)]


def _psutil(pid: int) -> Sample:
    import psutil

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return Sample(
                memory_bytes=process.memory_full_info().uss,
                cpu_s=times.user + times.system,
                processes=1,
                files=process.num_fds(),
            )
    except psutil.Error:
        return Sample(processes=1)
