"""The lifetime lock and the log file."""

import os
from pathlib import Path

import pytest

from punie_supervisor.lock import AlreadyRunning, LifetimeLock
from punie_supervisor.logs import LineLimit, RotatingFile


def test_the_lock_is_held_once_and_names_its_holder(tmp_path: Path):
    path = tmp_path / "punie.lock"
    path.write_text("999999\n")
    lock = LifetimeLock.acquire(path)
    with pytest.raises(AlreadyRunning) as refused:
        LifetimeLock.acquire(path)
    assert refused.value.pid == os.getpid()
    lock.release()
    assert path.read_text() == ""
    LifetimeLock.acquire(path).release()


def test_a_removed_lock_file_does_not_admit_a_second_lock_to_the_old_one(tmp_path: Path):
    path = tmp_path / "punie.lock"
    first = LifetimeLock.acquire(path)
    path.unlink()
    second = LifetimeLock.acquire(path)
    with pytest.raises(AlreadyRunning):
        LifetimeLock.acquire(path)
    first.release()
    second.release()


def test_the_log_file_is_private_and_bounded(tmp_path: Path):
    (tmp_path / "log").touch(0o644)
    log = RotatingFile(tmp_path / "log", limit=1000)
    for number in range(500):
        log.write(f"line {number}\n")
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["log", "log.1"]
    assert all(file.stat().st_size <= 1000 for file in files)
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert (tmp_path / "log").read_text().endswith("line 499\n")


def test_lines_over_the_limit_are_counted_and_the_count_is_told():
    now, told = [5.0], list[int]()
    lines = LineLimit(2, told.append, clock=lambda: now[0])
    assert [lines.passes() for _ in range(5)] == [True, True, False, False, False]
    assert told == []
    now[0] = 6.0
    assert lines.passes()
    assert told == [3]
    lines.close()
    assert told == [3]
