"""What is already done: stamps, atomic writes, the lock between two runs."""

from __future__ import annotations

import fcntl
import hashlib
import json
import platform
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Generator, Mapping

from bootstrap_lib import report, shell
from bootstrap_lib.layout import Layout


def fingerprint(layout: Layout) -> str:
    """A hash that changes when a set-up made before must not be trusted any more."""
    digest = hashlib.sha256()
    digest.update((f"{layout.root}\0{platform.machine()}\0").encode())
    for path in layout.inputs:
        digest.update((f"{path.name}\0").encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def is_ready(layout: Layout) -> bool:
    """Whether the last run ended well, for these inputs, and its result still works."""
    if read_record(layout.stamp) != {"fingerprint": fingerprint(layout)}:
        return False
    if not layout.venv_marker.is_file() or not _named_are_there(layout):
        return False
    try:
        shell.run([layout.venv_python, "-I", "-S", "-c", "pass"], timeout_s=10)
    except shell.CommandFailed:
        return False
    return True


def _named_are_there(layout: Layout) -> bool:
    """Whether the files exist that the machine was found to have; it may do without."""
    return all(_names_a_file(path) for path in (layout.openblas_path, layout.bubblewrap_path))


def _names_a_file(path: Path) -> bool:
    try:
        return Path(path.read_text(encoding="utf-8").strip()).is_file()
    except FileNotFoundError:
        return True


def read_record(path: Path) -> dict[str, str]:
    """The record a file holds; empty when it is missing or torn."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_record(path: Path, record: Mapping[str, str]) -> None:
    """Replace a record in one step; a reader sees the old one or the new one, never half."""
    write_text(path, json.dumps(record, indent=1, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def fresh_folder(path: Path) -> Path:
    """An empty folder in place of whatever was there."""
    remove(path)
    path.mkdir(parents=True)
    return path


def remove(path: Path) -> None:
    """Delete a file, a link or a tree; nothing there is fine."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def swap_in(part: Path, final: Path) -> None:
    """Put a finished folder in its place; programs that run from the old one keep their files."""
    old = final.with_name(final.name + ".old")
    remove(old)
    if final.exists() or final.is_symlink():
        final.rename(old)
    part.rename(final)
    remove(old)


@contextmanager
def only_one(layout: Layout) -> Generator[None, None, None]:
    """Wait until no other run, nor a child one left behind, is at work in this checkout."""
    layout.tools.mkdir(exist_ok=True)
    with layout.lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report.note("another run is at work in this checkout, waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        shell.inherited.append(handle.fileno())
        try:
            yield
        finally:
            shell.inherited.remove(handle.fileno())
