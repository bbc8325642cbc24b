"""The status report for a person: facts, and tables of workers, projects and servers. Pure but for
a look whether the config file is there."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, assert_never

from punie_protocol import backends
from punie_protocol import client as punie
from punie_protocol.engine import DoorStatus, EngineSettings
from punie_protocol.isolation import WorkerLimits
from punie_supervisor.cli import engine_text
from punie_supervisor.cli.output import printable
from punie_supervisor.cli.tables import duration, size, table

WIDTH: Final = 80
"""Columns of a terminal; a path may need more, and a worker with all it says."""

_WORKER_HEAD: Final = ("worker", "pid", "state", "level", "start", "memory", "projects")
_PROJECT_HEAD: Final = ("level", "state", "pid", "sessions", "programs", "project")
_SERVER_HEAD: Final = ("server", "state", "pid", "error")
_INDENT: Final = "  "


def render(report: punie.StatusReport) -> str:
    """Return the whole report."""
    lines = [*_daemon(report)]
    if report.config:
        lines += places(Path(report.config), Path(report.state))
    lines += ["", *workers(report.workers), "", *projects(report.projects, report.workers)]
    if report.servers:
        lines += ["", *_servers(report.servers)]
    return "\n".join(lines) + "\n"


def places(config: Path, state: Path) -> list[str]:
    """Return the lines that say where things are."""
    missing = "" if config.exists() else " (none)"
    return [f"config   {config}{missing}", f"state    {state}"]


def workers(found: Sequence[punie.WorkerStatus]) -> Iterator[str]:
    """Yield the table of worker processes; below each what it uses of its limits, and why it takes
    no new turns."""
    if not found:
        yield "no workers"
        return
    rows = [_worker_row(worker) for worker in found]
    notes = [[*_worker_notes(worker)] for worker in found]
    yield from _with_notes(table(_WORKER_HEAD, rows, words={0, 2, 3, 4}), notes)


def projects(
    found: Sequence[punie.ProjectStatus],
    of: Iterable[punie.WorkerStatus],
    is_gone: Callable[[str], bool] = lambda _root: False,
) -> Iterator[str]:
    """Yield the table of projects, with the pid of the worker each is in; below each what is
    unusual about it. `is_gone` tells whether a root's folder is."""
    if not found:
        yield "no projects"
        return
    pids = pids_of(of)
    rows = [_project_row(project, pids) for project in found]
    gone = ["its folder is gone"]
    notes = [
        [*(gone if is_gone(project.root) else ()), *_project_notes(project)] for project in found
    ]
    yield from _with_notes(table(_PROJECT_HEAD, rows, words={0, 1, 5}), notes)


def pids_of(found: Iterable[punie.WorkerStatus]) -> dict[str, int]:
    """Return the pid of each worker that has one."""
    return {worker.id: worker.pid for worker in found if worker.pid is not None}


def usage_line(usage: punie.WorkerUsage | None, limits: WorkerLimits | None) -> str:
    """Return what is used of the limits; the limits alone before it was measured, what is used
    alone where there are none; empty where there is neither."""
    match usage, limits:
        case None, None:
            return ""
        case None, WorkerLimits():
            return (
                f"at most {limits.memory_mb} MB, {limits.cpu_s:g} s cpu, "
                f"{limits.processes} processes, {limits.files} files"
            )
        case punie.WorkerUsage(), _:
            return _used(usage, limits)
        case _:
            assert_never(usage)


def _used(usage: punie.WorkerUsage, limits: WorkerLimits | None) -> str:
    memory, cpu = f"{usage.memory_bytes / 1024**2:.0f}", f"{usage.cpu_s:.1f}"
    if limits is None:
        processes = "1 process" if usage.processes == 1 else f"{usage.processes} processes"
        files = "1 file" if usage.files == 1 else f"{usage.files} files"
        used = f"memory {memory} MB, cpu {cpu} s, {processes}, {files}"
        return f"{used} (no limits: it is shared)"
    return (
        f"memory {memory} of {limits.memory_mb} MB, cpu {cpu} of {limits.cpu_s:g} s, "
        f"{usage.processes} of {limits.processes} processes, "
        f"{usage.files} of {limits.files} files"
    )


def _daemon(report: punie.StatusReport) -> Iterator[str]:
    model = report.model
    process = f", pid {model.pid}, {size(model.rss_bytes)}" if model.pid else ""
    facts = f"pid {report.pid}, up {duration(report.uptime_s)}, {size(report.rss_bytes)}"
    yield f"daemon   {facts}, version {report.version}"
    yield f"model    {printable(model.name)}, {_model_state(report)}{process}"
    if model.error is not None:
        yield f"         {printable(model.error.message)}"
    for n, line in enumerate(_engine(model)):
        yield f"{'' if n else 'engine':9}{line}"
    if model.door is not None:
        yield f"door     {_door(model.door)}"


def _engine(model: punie.ModelStatus) -> Iterator[str]:
    """Yield what the engine does, and how it drafts if somebody chose that."""
    yield from engine_text.lines(model.engine)
    if model.settings is not None:
        chosen = engine_text.drafting(model.settings)
        if chosen != engine_text.drafting(EngineSettings()):
            yield chosen


def _door(door: DoorStatus) -> str:
    """Return where other programs find the model, or why they do not."""
    if not door.url:
        return f"closed: {printable(door.error) or 'the model host does not run'}"
    return f"{door.url}, its key in {printable(door.key_file)}"


def _model_state(report: punie.StatusReport) -> str:
    """Return the state of the default model; of a server's, that of its server."""
    if report.model.state != "server":
        return report.model.state
    url = backends.parse(report.model.name)[0]
    states = [s.state for s in report.servers if backends.parse(s.url)[0] == url]
    return f"a server ({states[0]})" if states else f"a server ({punie.ServerState.EXTERNAL})"


def _worker_row(worker: punie.WorkerStatus) -> tuple[str, ...]:
    return (
        worker.id,
        str(worker.pid or "-"),
        worker.state,
        worker.isolation,
        worker.start or "-",
        size(worker.rss_bytes) if worker.pid else "-",
        str(len(worker.projects)),
    )


def _worker_notes(worker: punie.WorkerStatus) -> Iterator[str]:
    if worker.pid is not None and (line := usage_line(worker.usage, worker.limits)):
        yield line
    if worker.restarts:
        yield f"started again {worker.restarts} times" if worker.restarts > 1 else "started again"
    if worker.draining:
        yield f"takes no new turns: {worker.draining}"


def _project_row(project: punie.ProjectStatus, pids: Mapping[str, int]) -> tuple[str, ...]:
    pid = pids.get(project.worker) if project.worker is not None else None
    return (
        project.isolation,
        project.state,
        str(pid or "-"),
        str(project.sessions),
        str(project.programs or "-"),
        printable(project.root),
    )


def _project_notes(project: punie.ProjectStatus) -> Iterator[str]:
    if project.confined:
        yield f"runs alone: {project.confined}"
    if project.unconfined:
        yield "its commands may run without a sandbox"
    if project.half is not None and project.half.replaced:
        times = "once" if project.half.replaced == 1 else f"{project.half.replaced} times"
        yield f"its interpreter did not answer in time and was replaced {times}"


def _servers(found: Sequence[punie.ServerStatus]) -> Iterator[str]:
    rows = [
        (s.url, s.state, str(s.pid or "-"), printable(s.error.message) if s.error else "")
        for s in found
    ]
    yield from table(_SERVER_HEAD, rows, words={0, 1, 3})


def _with_notes(lines: Iterable[str], notes: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield a table with the notes of each row below it, wrapped."""
    head, *rows = lines
    yield head
    for row, own in zip(rows, notes, strict=True):
        yield row
        for note in own:
            yield from _wrapped(printable(note))


def _wrapped(note: str) -> list[str]:
    return textwrap.wrap(
        note,
        WIDTH,
        initial_indent=_INDENT,
        subsequent_indent=_INDENT * 2,
        break_long_words=False,
        break_on_hyphens=False,
    )
