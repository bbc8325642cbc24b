"""What the doctor makes of what it finds."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from punie_protocol.client import (
    ModelStatus,
    ProjectState,
    ProjectStatus,
    WorkerStart,
    WorkerState,
    WorkerStatus,
)
from punie_protocol.errors import ModelLoadFailed
from punie_protocol.isolation import WorkerLimits
from punie_protocol.messages.common import Isolation
from punie_supervisor.cli import checks
from punie_supervisor.cli.checks import BlasAnswer, Check, Folder, Level, SandboxAnswer

P = Path("/home/ada/punie/state")
LIMITS = WorkerLimits()


def folder(**facts: Any) -> Check:
    given: dict[str, Any] = {"is_folder": True, "ours": True, "writable": True, "mode": 0o40700}
    return checks.folder("state", Folder(path=P, **given | facts), private=True)


def worker(state: WorkerState, start: WorkerStart | None = WorkerStart.FORK) -> WorkerStatus:
    return WorkerStatus(
        id="worker-1", pid=1, state=state, rss_bytes=1, restarts=0, projects=[], start=start
    )


def model(**fields: Any) -> ModelStatus:
    given: dict[str, Any] = {
        "name": "m",
        "folder": "/m",
        "state": "ready",
        "pid": 1,
        "rss_bytes": 1,
    }
    return ModelStatus(**given | fields)


READY, FAILED = WorkerState.READY, WorkerState.FAILED
LOAD = ModelLoadFailed(message="no weights", hint="get them", folder="/m", file="w")


@pytest.mark.parametrize(
    ("check", "level", "text"),
    [
        (checks.platform("linux", "aarch64"), Level.OK, "linux on aarch64"),
        (checks.platform("darwin", "arm64"), Level.OK, "darwin on arm64"),
        (checks.platform("darwin", "x86_64"), Level.WARN, "darwin on x86_64"),
        (checks.platform("win32", "AMD64"), Level.FAIL, "win32 on AMD64"),
        (checks.python((3, 14, 2), interpreters=True, gil=True), Level.OK, "3.14.2"),
        (checks.python((3, 13, 9), interpreters=True, gil=True), Level.FAIL, "3.14 is needed"),
        (checks.python((3, 14, 0), interpreters=False, gil=True), Level.FAIL, "PEP 734"),
        (checks.python((3, 15, 0), interpreters=True, gil=False), Level.WARN, "free-threaded"),
        (checks.sandbox(SandboxAnswer(True, "bubblewrap", "0.9", "/b")), Level.OK, "bubblewrap 0."),
        (checks.sandbox(SandboxAnswer(False, reason="no")), Level.FAIL, "none: no"),
        (checks.blas(BlasAnswer("/l")), Level.OK, "/l"),
        (checks.blas(BlasAnswer()), Level.WARN, "none"),
        (checks.blas(BlasAnswer("/l", "bad ELF")), Level.WARN, "/l does not load: bad ELF"),
        (checks.program("rg", P, 0, "ripgrep 14.1\nfeatures\n"), Level.OK, "ripgrep 14.1"),
        (checks.program("rg", P, 127, ""), Level.FAIL, "exit code 127"),
        (folder(), Level.OK, str(P)),
        (folder(mode=None), Level.OK, "not made yet"),
        (folder(mode=None, writable=False), Level.FAIL, "cannot be made"),
        (folder(is_folder=False, mode=stat.S_IFREG), Level.FAIL, "is no folder"),
        (folder(ours=False), Level.FAIL, "another user"),
        (folder(writable=False), Level.FAIL, "cannot be written"),
        (folder(mode=0o40750), Level.WARN, "mode 0750"),
        (checks.disk(P, checks.SMALL_DISK), Level.OK, "GB free"),
        (checks.disk(P, checks.SMALL_DISK - 1), Level.WARN, "GB free"),
        (checks.disk(P, checks.MIN_DISK - 1), Level.FAIL, "GB free"),
        (checks.config(P, None, keys=False), Level.OK, "the defaults hold"),
        (checks.config(P, 0o644, keys=False), Level.OK, str(P)),
        (checks.config(P, 0o644, keys=True), Level.WARN, "others may read it"),
        (checks.config(P, 0o600, keys=True), Level.OK, str(P)),
        (checks.open_files(-1, -1, LIMITS), Level.OK, "any number of"),
        (checks.open_files(256, 4096, LIMITS), Level.WARN, "256 open files"),
        (checks.open_files(1024, 2048, LIMITS), Level.WARN, "should have 4096"),
        (checks.open_files(1024, 4096, LIMITS), Level.OK, "1024 open files"),
        (checks.processes(LIMITS.processes - 1, LIMITS), Level.WARN, "fewer"),
        (checks.processes(LIMITS.processes, LIMITS), Level.OK, "512 processes"),
        (checks.processes(-1, LIMITS), Level.OK, "any number of"),
        (checks.watches(8192, 128), Level.WARN, "8192"),
        (checks.watches(524_288, 32), Level.WARN, "32 watchers"),
        (checks.watches(524_288, 128), Level.OK, "524288"),
        (checks.versions("0.1.0", "0.1.0"), Level.OK, "runs, version 0.1.0"),
        (checks.versions("0.1.0", "0.2.0"), Level.WARN, "this is 0.2.0"),
        (checks.model(model()), Level.OK, "m, ready"),
        (checks.model(model(state="failed", error=LOAD)), Level.FAIL, "no weights"),
        (checks.workers([], "linux"), Level.OK, "none runs now"),
        (checks.workers([worker(READY)] * 2, "linux"), Level.OK, "2 by fork"),
        (checks.workers([worker(READY, WorkerStart.SPARE)], "darwin"), Level.OK, "1 by spare"),
        (checks.workers([worker(READY, None)], "linux"), Level.OK, "1 by unknown"),
        (checks.workers([worker(READY, WorkerStart.SPAWN)], "linux"), Level.WARN, "1 of 1"),
        (checks.workers([worker(FAILED)], "linux"), Level.FAIL, "worker-1"),
    ],
)
def test_each_fact_has_its_meaning(check: Check, level: Level, text: str) -> None:
    assert check.level is level
    assert text in check.text
    assert bool(check.hint) or level is Level.OK or check.name == "sandbox"


@pytest.mark.parametrize(
    ("check", "hint"),
    [
        (checks.sandbox(SandboxAnswer(False, reason="no", hint="get it")), "get it"),
        (checks.model(model(error=LOAD)), "get them"),
        (checks.workers([worker(READY, WorkerStart.SPAWN)], "linux"), "fork server"),
        (checks.workers([worker(READY, WorkerStart.SPAWN)], "darwin"), "spares"),
        (checks.watches(1, 128), "max_user_watches"),
        (checks.watches(524_288, 1), "max_user_instances"),
    ],
)
def test_it_is_said_what_to_do(check: Check, hint: str) -> None:
    assert hint in check.hint


LONG = "one two three four five six seven eight nine ten " * 4


def test_all_lines_fit_and_hints_stand_below() -> None:
    found = [checks.warn("python", LONG, LONG), checks.ok("socket", "/s"), *MAKERS]
    for _, text in checks.render(found):
        lines = text.splitlines()
        assert max(map(len, lines)) <= checks.WIDTH
        assert all(line.startswith(" " * 17) for line in lines[1:])
    [(level, text), *_] = checks.render([checks.fail("a", "broken", "mend it")])
    assert (level, text) == (Level.FAIL, f"fail  a          broken\n{' ' * 17}mend it")


MAKERS: list[Check] = [make("name", "text", "hint") for make in (checks.warn, checks.fail)]


@pytest.mark.parametrize(
    ("found", "summary", "well"),
    [
        ([checks.ok("a", "b")], "all is well", True),
        ([MAKERS[0], MAKERS[0]], "0 failed, 2 warnings", True),
        ([MAKERS[0], MAKERS[1]], "1 failed, 1 warning", False),
    ],
)
def test_the_outcome(found: list[Check], summary: str, well: bool) -> None:
    assert checks.summary(found) == summary
    assert checks.is_well(found) is well


def test_projects_whose_commands_need_no_sandbox_are_named() -> None:
    first, second = (
        ProjectStatus(
            root=root,
            isolation=Isolation.PROCESS,
            state=ProjectState.PASSIVE,
            sessions=0,
            last_session=None,
            unconfined=root == "/b",
        )
        for root in ("/a", "/b")
    )
    assert checks.unconfined([first]) == []
    [check] = checks.unconfined([first, second])
    assert (check.level, check.text.rpartition(" ")[2]) == (Level.WARN, "/b")


def test_what_is_well_needs_no_hint() -> None:
    makers: list[Callable[[], Check]] = [folder, lambda: checks.watches(524_288, 128)]
    assert all(make().hint == "" for make in makers)


def test_places_of_the_sandbox_that_are_not_there_are_named() -> None:
    assert checks.places([]) == []
    [check] = checks.places(["/no/such", "~/nor/this"])
    assert check.level is Level.WARN
    assert "/no/such, ~/nor/this" in check.text
