"""Status and projects as a person reads them."""

from typing import Any

from punie_protocol import client as punie
from punie_protocol.client import (
    ModelStatus,
    ProjectState,
    ProjectStatus,
    StatusReport,
    WorkerStart,
    WorkerState,
    WorkerStatus,
    WorkerUsage,
)
from punie_protocol.engine import DoorStatus
from punie_protocol.isolation import WorkerLimits
from punie_protocol.messages.common import HalfStatus, Isolation
from punie_supervisor.cli.projects import _moved
from punie_supervisor.cli.status_text import WIDTH, projects, render, usage_line, workers

USAGE = WorkerUsage(memory_bytes=31 * 1024**2, cpu_s=0.42, processes=1, files=20)


def worker(**fields: Any) -> WorkerStatus:
    given: dict[str, Any] = {
        "id": "worker-0123456789abcdef",
        "pid": 1234567,
        "state": WorkerState.READY,
        "rss_bytes": 42_000_000,
        "restarts": 0,
        "projects": ["/home/ada/shop"],
        "start": WorkerStart.FORK,
        "limits": WorkerLimits(),
        "usage": USAGE,
    }
    return WorkerStatus(**given | fields)


def project(root: str = "/home/ada/shop", **fields: Any) -> ProjectStatus:
    given: dict[str, Any] = {
        "root": root,
        "isolation": Isolation.PROCESS,
        "state": ProjectState.ACTIVE,
        "sessions": 2,
        "last_session": None,
        "worker": "worker-0123456789abcdef",
    }
    return ProjectStatus(**given | fields)


def status_of_door(door: DoorStatus | None) -> str:
    model = ModelStatus(
        name="embedded", folder="/m", state="ready", pid=7, rss_bytes=300_000_000, door=door
    )
    return render(report(model=model))


def test_the_door_is_said_when_somebody_wants_it() -> None:
    assert "door" not in status_of_door(None)
    file = "/s/openai-key"
    there = status_of_door(DoorStatus(url="http://127.0.0.1:80/v1", key_file=file))
    assert "door     http://127.0.0.1:80/v1, its key in /s/openai-key" in there.splitlines()
    fault = status_of_door(DoorStatus(key_file=file, error="port 80 is taken"))
    assert "door     closed: port 80 is taken" in fault.splitlines()
    gone = status_of_door(DoorStatus(key_file=file))
    assert "door     closed: the model host does not run" in gone.splitlines()


def report(**fields: Any) -> StatusReport:
    model = ModelStatus(name="embedded", folder="/m", state="ready", pid=7, rss_bytes=300_000_000)
    given: dict[str, Any] = {
        "version": "0.1.0",
        "protocol": 3,
        "pid": 6,
        "uptime_s": 62.0,
        "rss_bytes": 40_000_000,
        "socket": "/s",
        "home": "/h",
        "model": model,
        "workers": [],
        "projects": [],
    }
    return StatusReport(**given | fields)


def test_usage_is_shown_against_its_limits() -> None:
    line = "memory 31 of 4096 MB, cpu 0.4 of 3600 s, 1 of 512 processes, 20 of 4096 files"
    assert usage_line(USAGE, WorkerLimits()) == line
    assert f"  {line}" in list(workers([worker()]))


def test_limits_are_shown_before_they_were_measured_against() -> None:
    line = "at most 4096 MB, 3600 s cpu, 512 processes, 4096 files"
    assert usage_line(None, WorkerLimits()) == line


def test_a_worker_that_does_not_run_uses_nothing() -> None:
    lost = worker(pid=None, state=WorkerState.FAILED, restarts=5)
    [_, row, note] = workers([lost])
    assert row.split() == [lost.id, "-", "failed", "process", "fork", "-", "1"]
    assert note == "  started again 5 times"


def test_a_shared_worker_promises_no_limits() -> None:
    shared = worker(id="shared-1", isolation=Isolation.INTERPRETER, limits=None, usage=None)
    [_, row] = workers([shared])
    used = workers([worker(isolation=Isolation.INTERPRETER, limits=None)])
    assert "  memory 31 MB, cpu 0.4 s, 1 process, 20 files (no limits: it is shared)" in used
    assert row.split() == ["shared-1", "1234567", "ready", "interpreter", "fork", "42", "MB", "1"]


def test_why_a_worker_takes_no_turns() -> None:
    lines = list(workers([worker(draining="an interpreter of it does not answer", restarts=2)]))
    assert "  takes no new turns: an interpreter of it does not answer" in lines
    assert "  started again 2 times" in lines


def test_the_notes_of_one_row_stand_below_it() -> None:
    confined = "the shared worker died while it was in a call"
    lines = list(
        projects(
            [
                project("/a", confined=confined, isolation=Isolation.INTERPRETER),
                project("/b", unconfined=True, programs=3, worker="gone"),
                project("/c", state=ProjectState.PASSIVE, worker=None),
            ],
            [worker()],
        )
    )
    assert lines == [
        "level        state        pid  sessions  programs  project",
        "interpreter  active   1234567         2         -  /a",
        f"  runs alone: {confined}",
        "process      active         -         2         3  /b",
        "  its commands may run without a sandbox",
        "process      passive        -         2         -  /c",
    ]


def test_interpreters_that_were_given_up_are_told() -> None:
    half = HalfStatus(
        project_id="p", calls=9, failed=1, busy_ms=1, longest_ms=1, waiting=0, replaced=2
    )
    lines = list(projects([project(half=half)], []))
    assert "  its interpreter did not answer in time and was replaced 2 times" in lines


def test_it_fits_a_terminal() -> None:
    long = "its interpreter did not answer for 30 seconds, and neither did the one after it " * 3
    text = render(
        report(
            workers=[worker(draining=long, restarts=1), worker(isolation=Isolation.INTERPRETER)],
            projects=[project(confined=long), project(isolation=Isolation.INTERPRETER)],
        )
    )
    assert max(map(len, text.splitlines())) <= WIDTH


def test_nothing_of_a_path_steers_the_terminal() -> None:
    evil = "/p\x1b[2J"
    text = render(report(projects=[project(evil, confined=evil)], workers=[worker(draining=evil)]))
    assert "\x1b" not in text


def test_a_new_daemon() -> None:
    lines = render(report()).splitlines()
    assert lines[0] == "daemon   pid 6, up 1 min 2 s, 40 MB, version 0.1.0"
    assert lines[1] == "model    embedded, ready, pid 7, 300 MB"
    assert lines[2:] == ["", "no workers", "", "no projects"]


def test_a_move_says_before_and_after() -> None:
    moved = punie.IsolateReport(
        root="/p", isolation=Isolation.INTERPRETER, before=Isolation.PROCESS
    )
    assert _moved(moved) == ["/p: process → interpreter"]


def test_a_move_to_where_it_is() -> None:
    same = punie.IsolateReport(
        root="/p", isolation=Isolation.INTERPRETER, before=Isolation.INTERPRETER, confined="it died"
    )
    assert _moved(same) == [
        "/p: interpreter, as it was",
        "  that it ran alone is forgotten: it died",
    ]


def test_a_folder_that_is_gone_is_marked() -> None:
    found = [project("/here"), project("/gone")]
    [_, here, gone, note] = projects(found, [], is_gone="/gone".__eq__)
    assert here.endswith("/here")
    assert gone.endswith("/gone")
    assert note == "  its folder is gone"


def test_one_is_no_plural() -> None:
    one = WorkerUsage(memory_bytes=1024**2, cpu_s=1.0, processes=1, files=1)
    assert usage_line(one, None).startswith("memory 1 MB, cpu 1.0 s, 1 process, 1 file (")
