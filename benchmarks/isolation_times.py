"""How soon a project answers: passive, killed, beside one that hangs; and a worker from nothing.

In a real daemon with real workers; the model is a scripted one and takes no time. Times are the
client's, but for a killed worker's: when the supervisor noticed and had another is in its log. A
sample waits some seconds for a moment in which the machine has a core free.
"""

import asyncio
import contextlib
import os
import re
import signal
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks import common
from benchmarks.daemon_client import PATIENCE, Client, Json, running
from benchmarks.hanging_fork_server import DEADLINE, HANGING
from benchmarks.workload import look, make_project
from punie_protocol.handshake import version
from punie_protocol.limits import PROTOCOL
from punie_protocol.messages.common import Isolation, Limits
from punie_protocol.messages.to_supervisor import Hello, ProjectReady, Ready
from punie_protocol.messages.to_worker import OpenProject, Welcome
from punie_protocol.permissions import PermissionSettings
from punie_supervisor.child import Child
from punie_supervisor.child_spec import ChildSpec, Programs, Restart

_IDLE_S: Final = 0.5
"""Until a project is passive; the daemon looks every second."""
_SETTLED_S: Final = 0.3
"""For what has become passive to be gone: a project is passive for minutes, not for an instant."""
_QUIET: Final = 50.0
"""Percent of all cores that may be busy when a sample begins."""
_PATIENCE_S: Final = 1.0
"""How long a sample waits for such a moment; then it is taken in any case."""
_FOREVER: Final = [[("wait", {"seconds": 600})]]


def measure(samples: int) -> dict[str, Any]:
    """Return every figure of this module; raw samples in ``samples_*``."""
    with tempfile.TemporaryDirectory(prefix="punie-bench-") as folder:
        home = Path(folder)
        raw: dict[str, list[float]] = {}
        for level in Isolation:
            raw |= asyncio.run(activation(home / level.value, level, samples))
        raw |= asyncio.run(kills(home / "kills", samples))
        raw["quarantine_ms"] = asyncio.run(quarantine(home / "hung", max(3, samples // 2)))
        raw["spawn_ms"] = [asyncio.run(spawn(home / f"spawn{n}")) for n in range(samples // 2)]
    figures = {name: common.median(values) for name, values in raw.items()}
    return figures | {"samples_times_ms": {name: common.rounded(raw[name]) for name in raw}}


# passive → open → first tool answer


async def activation(home: Path, level: Isolation, samples: int) -> dict[str, list[float]]:
    """Return milliseconds from a prompt of a passive project until its turn begins, with the
    project open in a worker (``activate``), and until the answer of its first tool (``passive``);
    for comparison the latter of the same prompt right afterwards (``active``). At level
    ``interpreter`` the worker runs already, for another project."""
    root, other = make_project(home / "one", small=True), make_project(home / "two", small=True)
    names = [f"{kind}_{level.value}_ms" for kind in ("activate", "passive", "active")]
    raw: dict[str, list[float]] = {name: [] for name in names}
    async with running(home / "home", f"idle_s = {_IDLE_S}\n") as client:
        await client.warm(home)
        busy: asyncio.Task[Json] | None = None
        if level is Isolation.INTERPRETER:
            neighbour = await client.session(other, level)
            busy = asyncio.create_task(client.prompt(neighbour, _FOREVER))
        session = await client.session(root, level)
        await first_answer(client, session)
        for _ in range(samples):
            await client.until(lambda status: _state(status, root) == "passive")
            await asyncio.sleep(_SETTLED_S)
            await quiet()
            begun, passive = await first_answer(client, session)
            _, active = await first_answer(client, session)
            for name, value in zip(names, (begun, passive, active), strict=True):
                raw[name].append(value)
        if busy is not None:
            busy.cancel()
    return raw


async def first_answer(client: Client, session: str) -> tuple[float, float]:
    """Return the milliseconds from a prompt to the begin of its turn, as the turn's own timings
    say, and to its tool's answer; the turn is over then."""
    answered: list[float] = []

    def watch(params: Json) -> None:
        update = params["update"]
        if params["sessionId"] == session and update.get("status") == "completed":
            answered.append(time.perf_counter())

    client.watch = watch
    start = time.perf_counter()
    meta = await client.prompt(session, look())
    return meta["timingsMs"]["queue"], (answered[0] - start) * 1000


async def quiet() -> None:
    """Wait for a moment in which others leave a core free."""
    psutil.cpu_percent()
    ends = time.monotonic() + _PATIENCE_S
    while time.monotonic() < ends:
        await asyncio.sleep(0.05)
        if psutil.cpu_percent() <= _QUIET:
            return


def _state(status: Json, root: Path) -> str:
    return next(one["state"] for one in status["projects"] if one["root"] == str(root.resolve()))


# killed


async def kills(home: Path, samples: int) -> dict[str, list[float]]:
    """Return milliseconds from a SIGKILL to a worker until the supervisor's log says that it died,
    and until it says that the next one is ready. A turn is under way: somebody wants it back. Each
    is killed once: one that dies again is made to wait."""
    roots = [make_project(home / f"project{n}", small=True) for n in range(samples)]
    raw: dict[str, list[float]] = {"kill_noticed_ms": [], "worker_replaced_ms": []}
    async with running(home / "home") as client:
        await client.warm(home)
        sessions = [await client.session(root, "process") for root in roots]
        turns = [asyncio.create_task(client.prompt(one, _FOREVER)) for one in sessions]
        log = Log(home / "home" / "daemon.log")
        await asyncio.sleep(0.5)  # every turn is well under way
        for root in roots:
            pid = worker_of(await client.status(), root)
            assert pid is not None
            await quiet()
            killed = time.time()
            os.kill(pid, signal.SIGKILL)
            died = await log.until(rf"event=child\.died .*pid={pid}\b")
            name = re.search(r"child=(\S+)", died[1])
            assert name is not None
            ready = await log.until(rf"event=child\.ready child={name[1]} ", after=died[0])
            raw["kill_noticed_ms"].append((died[0] - killed) * 1000)
            raw["worker_replaced_ms"].append((ready[0] - killed) * 1000)
        for turn in turns:
            turn.cancel()
    return raw


def worker_of(status: Json, root: Path) -> int | None:
    """Return the pid of the worker in which a project is, if it is in one."""
    real = str(root.resolve())
    id = next(one["worker"] for one in status["projects"] if one["root"] == real)
    return next((one["pid"] for one in status["workers"] if one["id"] == id), None)


class Log:
    """The daemon's log, read as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def until(self, pattern: str, after: float = 0.0) -> tuple[float, str]:
        """Return the time and the text of the first line after a time that matches."""
        async with asyncio.timeout(30.0):
            while True:
                for line in self._path.read_text().splitlines():
                    if re.search(pattern, line) and (at := _time_of(line)) > after:
                        return at, line
                await asyncio.sleep(0.02)


def _time_of(line: str) -> float:
    stamp = re.match(r"timestamp=(\S+)", line)
    return datetime.fromisoformat(stamp[1]).timestamp() if stamp else 0.0


# hung


async def quarantine(home: Path, samples: int) -> list[float]:
    """Return milliseconds from the deadline of a call that hangs until a neighbour in the same
    worker, which prompts all the time, is answered in another process. Each time it is another
    project that hangs: one that did is alone from then on."""
    root = make_project(home / "neighbour", small=True)
    hanging = [make_project(home / f"hung{n}", small=True) for n in range(samples)]
    raw: list[float] = []
    async with running(home / "home", "", "--hang") as client:
        await client.warm(home)
        session = await client.session(root, "interpreter")
        for hung in hanging:
            (hung / HANGING).write_text("")
            bad = await client.session(hung, "interpreter")
            await first_answer(client, session)
            before = worker_of(await client.status(), root)
            await quiet()
            due = asyncio.create_task(_due(client, bad))
            async with asyncio.timeout(PATIENCE):
                while worker_of(await client.status(), root) in (before, None):
                    answered = await _served(client, session)
            raw.append((answered - await due) * 1000)
    return raw


async def _served(client: Client, session: str) -> float:
    await client.prompt(session, look())
    return time.perf_counter()


async def _due(client: Client, session: str) -> float:
    """Have the half of a project hang; return when the call's deadline was, after the turn."""
    begun: list[float] = []

    def watch(params: Json) -> None:
        if params["sessionId"] == session and params["update"].get("toolCallId"):
            begun.append(time.perf_counter())

    client.watch = watch
    with contextlib.suppress(RuntimeError):  # the call fails, that is the point
        await client.prompt(session, [[("read_file", {"path": HANGING})]])
    return begun[0] + DEADLINE


# from nothing


async def spawn(home: Path) -> float:
    """Return the milliseconds from the start of a worker without a fork server until a project is
    open in it."""
    root = make_project(home / "project", small=True)
    spec = ChildSpec(
        id="worker",
        command=Programs().worker,
        environment={"PATH": os.environ["PATH"], "HOME": str(home)},
        restart=Restart.TEMPORARY,
    )
    start = time.perf_counter()
    child = await Child.spawn(spec)
    try:
        async with asyncio.timeout(30.0):
            await _opened(child, root)
        return (time.perf_counter() - start) * 1000
    finally:
        child.kill("measured")
        await child.finish()


async def _opened(child: Child, root: Path) -> None:
    async for message in child.link:
        match message:
            case Hello():
                child.link.send_nowait(_welcome(root.parent))
            case Ready():
                child.link.send_nowait(_open(root))
            case ProjectReady():
                return
            case _:
                raise RuntimeError(f"the worker said {message}")
    raise RuntimeError("the worker ended")


def _welcome(home: Path) -> Welcome:
    return Welcome(
        protocol=PROTOCOL,
        version=version(),
        limits=Limits(),
        model_socket=str(home / "nobody.sock"),
        permissions=PermissionSettings(),
    )


def _open(root: Path) -> OpenProject:
    return OpenProject(
        project_id="p",
        root=str(root.resolve()),
        isolation=Isolation.PROCESS,
        client_id="p",
        trusted="",
    )


if __name__ == "__main__":
    common.finish(measure(common.arguments(__doc__, samples=10).samples), as_json=False)
