"""Breadcrumbs: a file that a worker process maps, one byte a project half. It survives the worker
and tells who was inside a call of its tools when that ended."""

import contextlib
import os
from pathlib import Path

from punie_protocol.limits import MAX_HALVES

_PREFIX = "crumbs-"


def make(folder: Path, pid: int) -> Path:
    """Make the file for the worker `pid`, 0600. Raises `OSError`."""
    file = folder / f"{_PREFIX}{pid}"
    with contextlib.suppress(FileNotFoundError):
        file.unlink()  # an earlier process of that pid, under a daemon that was killed
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.truncate(fd, MAX_HALVES)
    finally:
        os.close(fd)
    return file


def take(folder: Path, pid: int) -> bytes:
    """Return what the ended worker `pid` left, and remove the file; nothing when there is none."""
    file = folder / f"{_PREFIX}{pid}"
    try:
        return file.read_bytes()
    except OSError:
        return b""
    finally:
        with contextlib.suppress(OSError):
            file.unlink()


def suspects(crumbs: bytes, slots: dict[str, int]) -> list[str]:
    """Return the projects that were inside a call; `slots` says where each has its byte. Pure."""
    return [project for project, slot in slots.items() if crumbs[slot : slot + 1] == b"\1"]


def clear(folder: Path) -> None:
    """Remove what an earlier daemon left."""
    for file in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            file.unlink()
