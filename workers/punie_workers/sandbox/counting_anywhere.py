"""Counting a sandbox where there is no ``/proc``: macOS. Works on Linux too, where it is tested.

There is no process namespace: a program that left its parent's tree is not found, and the
temporary folders are on disk.
"""

from contextlib import suppress

import psutil

from punie_workers.sandbox.guard import Census


class Anywhere:
    """See `guard.Counting`."""

    def census(self, process_pid: int, *, exact: bool = False) -> Census:
        found = Census(0, 0, 0.0)
        for process in _tree(process_pid):
            with suppress(psutil.Error):
                memory = process.memory_full_info().uss if exact else process.memory_info().rss
                times = process.cpu_times()
                ended = times.children_user + times.children_system
                cpu_s = found.cpu_s + times.user + times.system + ended
                found = Census(found.processes + 1, found.memory + memory, cpu_s)
        return found

    def runs(self, process_pid: int) -> bool:
        with suppress(psutil.Error):
            return psutil.Process(process_pid).status() != psutil.STATUS_ZOMBIE
        return False

    def end(self, process_pid: int) -> None:
        """Each is stopped before any is killed: a process that still runs would start others."""
        for act in (psutil.Process.suspend, psutil.Process.kill):
            for process in _tree(process_pid):
                with suppress(psutil.Error):
                    act(process)


def _tree(process_pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        first = psutil.Process(process_pid)
        return [first, *first.children(recursive=True)]
    return []
