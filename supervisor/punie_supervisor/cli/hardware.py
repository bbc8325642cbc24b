"""The machine in one line, for whoever compares figures."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil


def hardware() -> str:
    """Return processor, cores that may be used, memory and system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 1024**3
    system = f"{platform.system()} {platform.release()}"
    return f"{_processor()}, {cores} cores, {memory:.0f} GiB, {system}"


def _processor() -> str:
    name = _of_macos() if sys.platform == "darwin" else _of_linux()
    return name or platform.machine()


def _of_linux() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")


def _of_macos() -> str:
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except OSError, subprocess.SubprocessError:
        return ""
    return done.stdout.strip()
