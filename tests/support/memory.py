"""What memory a process has for itself."""

from pathlib import Path

import psutil

ROLLUP = Path("/proc/self/smaps_rollup")


def private_bytes() -> int:
    """Return the private bytes of this process."""
    if not ROLLUP.exists():
        return psutil.Process().memory_full_info().uss
    lines = ROLLUP.read_text().splitlines()[1:]
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
