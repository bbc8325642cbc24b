"""What projects cost in private memory, after real work, in a real daemon with real workers.

The model host is a scripted one and is never counted. A worker's own memory is counted at the two
levels; `hundred_projects_mb` counts every process below the daemon but the model host, sandboxes
of Code Mode too.
"""

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks import common
from benchmarks.daemon_client import Json, running
from benchmarks.workload import look, make_project, work

SHARING: Final = 8
"""Projects that join a shared worker; the difference is divided by them."""
ALONE: Final = 4
KNOWN: Final = 100
ACTIVE: Final = 8
_IDLE_S: Final = 10.0
"""Until a project is passive, where that is wanted."""
_MB: Final = 1e6


def measure(known: int = KNOWN) -> dict[str, Any]:
    """Return every figure of this module."""
    with tempfile.TemporaryDirectory(prefix="punie-bench-") as folder:
        home = Path(folder)
        shared = asyncio.run(interpreters(home / "i"))
        return shared | asyncio.run(processes(home / "p")) | asyncio.run(many(home / "m", known))


async def interpreters(home: Path) -> dict[str, Any]:
    """Return what one more project costs at level ``interpreter``: in a worker that has done the
    work in one project before, so that what all share is there."""
    roots = [make_project(home / f"project{n}") for n in range(SHARING + 1)]
    async with running(home / "home") as client:
        await client.warm(home)
        first = await client.session(roots[0], "interpreter")
        await client.prompt(first, work(roots[0]))
        worker = _worker(await client.status(), roots[0])
        base = private_mb(worker)
        sessions = [await client.session(root, "interpreter") for root in roots[1:]]
        idle = private_mb(worker)
        for session in sessions:
            await client.prompt(session, look())
        looked = private_mb(worker)
        grown = []
        for session, root in zip(sessions, roots[1:], strict=True):
            await client.prompt(session, work(root))
            grown.append(private_mb(worker))
        alive = _worker(await client.status(), roots[-1])
    if alive != worker:
        raise RuntimeError("the projects did not share one worker")
    return {
        "interpreter_idle_mb": round((idle - base) / SHARING, 2),
        "interpreter_looked_mb": round((looked - base) / SHARING, 2),
        "interpreter_mb": round((grown[-1] - base) / SHARING, 2),
        "samples_interpreter_mb": {"base": base, "idle": idle, "looked": looked, "worked": grown},
    }


async def processes(home: Path) -> dict[str, Any]:
    """Return what one more project costs at level ``process``: the private memory of its worker,
    and of the sandbox that it keeps ready for Code Mode apart from that."""
    roots = [make_project(home / f"project{n}") for n in range(ALONE)]
    workers: list[float] = []
    idle: list[float] = []
    helpers: list[float] = []
    async with running(home / "home") as client:
        await client.warm(home)
        for root in roots:
            session = await client.session(root, "process")
            pid = _worker(await client.status(), root)
            idle.append(private_mb(pid))
            await client.prompt(session, work(root))
            workers.append(private_mb(pid))
            helpers.append(sum(value for _, value in _below(pid)))
        status = await client.status()
        return {
            "supervisor_mb": private_mb(status["pid"]),
            "process_idle_mb": common.median(idle),
            "process_mb": common.median(workers),
            "process_sandbox_mb": common.median(helpers),
            "process_start": _starts(status),
            "samples_process_mb": {"idle": idle, "worked": workers, "sandbox": helpers},
        }


async def many(home: Path, known: int) -> dict[str, Any]:
    """Return the memory of everything with many known projects, a few of them at work."""
    idle = [
        make_project(home / f"idle{n}", small=True) for n in range(known - ACTIVE - 1)
    ]  # one is warm
    active = [make_project(home / f"active{n}") for n in range(ACTIVE)]
    async with running(home / "home", f"idle_s = {_IDLE_S}\n") as client:
        await client.warm(home)
        for root in idle:
            await client.prompt(await client.session(root, "process"), look())
        await client.until(lambda status: not status["workers"])
        sessions = [await client.session(root, "process") for root in active]
        for session, root in zip(sessions, active, strict=True):
            await client.prompt(session, work(root))
        for session in sessions:
            await client.prompt(session, look())
        status = await client.status()
        parts = _by_kind(status)
    states = [project["state"] for project in status["projects"]]
    if len(states) < known or states.count("active") != ACTIVE:
        raise RuntimeError(f"of {len(states)} projects {states.count('active')} are active")
    return {
        "hundred_projects_mb": round(sum(parts.values()), 1),
        "hundred_known": known,
        "hundred_active": ACTIVE,
        "hundred_parts_mb": {kind: round(value, 1) for kind, value in parts.items()},
    }


def _by_kind(status: Json) -> dict[str, float]:
    """Return the private memory of the daemon and all below it, by what they are."""
    workers = {worker["pid"] for worker in status["workers"]}
    host = status["model"]["pid"]
    parts = {"supervisor": private_mb(status["pid"]), "workers": 0.0}
    for process, memory in _below(status["pid"]):
        if process.pid == host:
            continue
        kind = "workers" if process.pid in workers else _name(process)
        parts[kind] = parts.get(kind, 0.0) + memory
    return parts


def _below(pid: int) -> list[tuple[psutil.Process, float]]:
    """Return every process below one, with its private memory; one that ends meanwhile has
    none."""
    found: list[tuple[psutil.Process, float]] = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, psutil.NoSuchProcess):
            found.append((process, private_mb(process.pid)))
    return found


def _name(process: psutil.Process) -> str:
    """Return what a process calls itself, without its arguments."""
    words = process.cmdline() or [process.name()]
    return Path(words[0].split()[0]).name


def _worker(status: Json, root: Path) -> int:
    """Return the pid of the worker that has a project."""
    real = str(root.resolve())
    return next(one["pid"] for one in status["workers"] if real in one["projects"])


def _starts(status: Json) -> str:
    return ",".join(sorted({str(one.get("start")) for one in status["workers"]}))


def private_mb(pid: int) -> float:
    """Return the private memory of a process, MB."""
    return round(common.private_bytes(pid) / _MB, 2)


if __name__ == "__main__":
    common.finish(measure(), as_json=False)
