"""Who shares a worker with whom, and what becomes of them when it dies, hangs, or is idle."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from punie_protocol.isolation import WorkerLimits
from punie_supervisor.config import Config
from tests.support.supervisor_rig import DEADLINE, Client, Failed, alive, eventually, running

SHARED = "interpreter"


async def opened(stack: AsyncExitStack, home: Path, **settings: Any) -> Client:
    """Run a daemon with these settings and return a client of it."""
    config = Config(model="tiny", **settings)
    _, paths = await stack.enter_async_context(running(home, config=config))
    return await stack.enter_async_context(Client.connect(paths))


def folders(tmp_path: Path, *names: str) -> list[Path]:
    made = [tmp_path / name for name in names]
    for folder in made:
        folder.mkdir()
    return made


async def place(client: Client, session: str) -> tuple[int, str]:
    pid, level = (await client.said(session, "pid")).split()
    return int(pid), level


async def status(client: Client) -> dict[str, Any]:
    return await client.call("_punie/status")


async def project(client: Client, root: Path) -> dict[str, Any]:
    return next(p for p in (await status(client))["projects"] if p["root"] == str(root))


async def until(client: Client, holds: Callable[[dict[str, Any]], bool], root: Path) -> None:
    """Poll until the project's line in the status report is as it should be."""
    async with asyncio.timeout(DEADLINE):
        while not holds(await project(client, root)):  # noqa: ASYNC110 (it is asked over a socket)
            await asyncio.sleep(0.01)


def test_the_level_says_who_shares(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home)
            a, b, c = folders(tmp_path, "a", "b", "c")
            levels = {a: SHARED, b: SHARED, c: "process"}
            places = [
                await place(client, await client.session(root, level))
                for root, level in levels.items()
            ]
            assert places[0] == places[1]
            assert places[2][0] != places[0][0]
            assert [level for _, level in places] == list(levels.values())
            workers = {w["pid"]: w for w in (await status(client))["workers"]}
            assert workers[places[0][0]]["projects"] == [str(a), str(b)]
            assert workers[places[0][0]]["limits"] is None
            assert workers[places[2][0]]["limits"]["memory_mb"] == 4096

    asyncio.run(scenario())


def test_an_idle_project_is_passive_until_its_next_message(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home, idle_s=0.2)
            a, b = folders(tmp_path, "a", "b")
            alone, shared = await client.session(a), await client.session(b, SHARED)
            for session in (alone, shared):
                assert await client.said(session, "say hello") == "hello"
            pids = [w["pid"] for w in (await status(client))["workers"]]
            await eventually(lambda: not any(alive(pid) for pid in pids))
            report = await status(client)
            assert report["workers"] == []
            assert {p["state"] for p in report["projects"]} == {"passive"}
            for session in (alone, shared):
                assert await client.said(session, "history") == "hello"

    asyncio.run(scenario())


@pytest.mark.parametrize("busy", ["a turn", "a background command"])
def test_one_with_something_to_do_is_not_idle(punie_home: Path, tmp_path: Path, busy: str):
    async def scenario():
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home, idle_s=0.2)
            a, b = folders(tmp_path, "a", "b")
            session, other = await client.session(a), await client.session(b)
            pid, _ = await place(client, session)
            gone, _ = await place(client, other)
            if busy == "a turn":
                await client.ask(session, "wait")
            else:
                await client.answer(session, "programs 1")
            await eventually(lambda: not alive(gone))
            assert alive(pid)
            assert (await project(client, a))["state"] == "active"
            if busy == "a turn":
                await client.send(method="session/cancel", params={"sessionId": session})
            else:
                await client.answer(session, "programs 0")
            await eventually(lambda: not alive(pid))

    asyncio.run(scenario())


def test_an_idle_session_of_a_busy_project_is_closed(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home, idle_s=0.2)
            (root,) = folders(tmp_path, "a")
            busy, idle = await client.session(root), await client.session(root)
            assert await client.said(idle, "say hello") == "hello"
            await client.ask(busy, "wait")
            async with asyncio.timeout(DEADLINE):
                while idle in await client.said(await client.session(root), "sessions"):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert await client.said(idle, "history") == "hello"

    asyncio.run(scenario())


def test_a_project_with_background_commands_does_not_move(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home)
            session = await client.session(tmp_path)
            await client.answer(session, "programs 2")
            with pytest.raises(Failed, match="has 2 background commands at isolation level"):
                await client.call("_punie/isolate", cwd=str(tmp_path), isolation=SHARED)
            await client.answer(session, "programs 0")
            await client.call("_punie/isolate", cwd=str(tmp_path), isolation=SHARED)
            assert (await place(client, session))[1] == SHARED

    asyncio.run(scenario())


def test_a_neighbour_stays_when_one_of_a_shared_worker_is_idle(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home, idle_s=0.2)
            a, b = folders(tmp_path, "a", "b")
            session, other = await client.session(a, SHARED), await client.session(b, SHARED)
            assert await place(client, session) == await place(client, other)
            await client.ask(session, "wait")
            await until(client, lambda found: found["state"] == "passive", b)
            assert (await project(client, a))["state"] == "active"
            assert (await place(client, other))[1] == SHARED

    asyncio.run(scenario())


def test_who_was_at_work_when_a_shared_worker_died_runs_alone(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home)
            a, b, c = folders(tmp_path, "a", "b", "c")
            guilty, other, third = [await client.session(root, SHARED) for root in (a, b, c)]
            first, _ = await place(client, other)
            waiting = await client.ask(third, "wait")
            await client.until(lambda m: f"waiting in {first}" in json.dumps(m))
            pid, level = (await client.said(guilty, "crash")).split()
            assert level == "process"
            neighbour, shared = await place(client, other)
            assert (shared, neighbour == int(pid), neighbour == first) == (SHARED, False, False)
            await client.until(lambda m: f"waiting in {neighbour}" in json.dumps(m))
            await client.send(method="session/cancel", params={"sessionId": third})
            assert (await client.result(waiting))["stopReason"] == "cancelled"
            found = await project(client, a)
            assert found["isolation"] == SHARED
            assert f"(pid {first}) ended: it was ended by SIGKILL" in found["confined"]
            assert (await project(client, b))["confined"] == ""

    asyncio.run(scenario())


def test_who_was_at_work_is_remembered_until_the_user_moves_it(punie_home: Path, tmp_path: Path):
    (root,) = folders(tmp_path, "a")

    async def crash():
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home)
            session = await client.session(root, SHARED)
            await client.answer(session, "crash")
            return session

    async def later(session: str):
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home)
            assert (await place(client, session))[1] == "process"
            again = await client.session(root, SHARED)  # an editor's wish is not the user's word
            assert (await place(client, again))[1] == "process"
            report = await client.call("_punie/isolate", cwd=str(root), isolation=SHARED)
            assert (report["before"], report["isolation"]) == (SHARED, SHARED)
            assert "ended by SIGKILL" in report["confined"]
            assert (await place(client, session))[1] == SHARED
            assert (await project(client, root))["confined"] == ""

    session = asyncio.run(crash())
    asyncio.run(later(session))


def test_a_killed_shared_worker_with_nobody_at_work_confines_nobody(
    punie_home: Path, tmp_path: Path
):
    async def scenario():
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home)
            a, b = folders(tmp_path, "a", "b")
            sessions = [await client.session(root, SHARED) for root in (a, b)]
            assert await client.said(sessions[0], "die 1")
            assert await place(client, sessions[0]) == await place(client, sessions[1])
            assert [p["confined"] for p in (await status(client))["projects"]] == ["", ""]

    asyncio.run(scenario())


def test_a_shared_worker_whose_tools_hang_drains(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home)
            a, b, c = folders(tmp_path, "a", "b", "c")
            hung, busy, other = [await client.session(root, SHARED) for root in (a, b, c)]
            old, _ = await place(client, other)
            waiting = await client.ask(busy, "wait")
            await client.until(lambda m: f"waiting in {old}" in json.dumps(m))
            assert (await client.said(hung, "hung")).split() == [str(old), SHARED]
            new, level = await place(client, other)
            assert (new != old, level) == (True, SHARED)
            alone, level = await place(client, hung)
            assert (alone in (old, new), level) == (False, "process")
            workers = {w["pid"]: w for w in (await status(client))["workers"]}
            assert "search of" in workers[old]["draining"]
            assert workers[new]["draining"] == ""
            assert alive(old)  # its turn goes on
            await client.send(method="session/cancel", params={"sessionId": busy})
            assert (await client.result(waiting))["stopReason"] == "cancelled"
            await eventually(lambda: not alive(old))
            assert (await place(client, busy))[0] == new

    asyncio.run(scenario())


def test_a_worker_of_one_project_whose_tools_hang_is_replaced(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home)
            session = await client.session(tmp_path)
            old = int((await client.said(session, "hung")).split()[0])
            new, _ = await place(client, session)
            assert new != old
            await eventually(lambda: not alive(old))
            assert (await project(client, tmp_path))["confined"] == ""

    asyncio.run(scenario())


def test_a_shared_worker_that_is_given_up_lets_nobody_wait(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home)
            a, b = folders(tmp_path, "a", "b")
            bad, good = await client.session(a, SHARED), await client.session(b, SHARED)
            for _ in range(3):
                with pytest.raises(Failed, match="lost 3 workers"):
                    await client.answer(bad, "die 9")
            pid, level = await place(client, good)
            assert level in ("process", SHARED)
            assert alive(pid)

    asyncio.run(scenario())


def test_a_worker_over_its_limit_is_ended_and_not_tried_again(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with AsyncExitStack() as stack:
            limits = WorkerLimits(memory_mb=256)
            client = await opened(stack, punie_home, limits=limits)
            (root,) = folders(tmp_path, "a")
            session = await client.session(root)
            with pytest.raises(Failed, match=r"over limits\.memory_mb = 256") as failed:
                await client.answer(session, "eat 300")
            assert "raise that limit" in failed.value.punie["hint"]
            assert failed.value.punie["limit"]
            assert (await place(client, session))[1] == "process"

    asyncio.run(scenario())


def test_what_a_worker_uses_is_in_the_status(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home)
            await place(client, await client.session(tmp_path))  # the first turn has it looked at
            async with asyncio.timeout(DEADLINE):
                while (worker := (await status(client))["workers"][0])["usage"] is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            used = worker["usage"]
            assert used["processes"] == 1
            assert 1_000_000 < used["memory_bytes"] < 200_000_000
            assert used["files"] > 2
            assert worker["limits"]["processes"] == 512

    asyncio.run(scenario())


def test_moving_leaves_nothing_behind(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home)
            session = await client.session(tmp_path)
            old, _ = await place(client, session)
            report = await client.call("_punie/isolate", cwd=str(tmp_path), isolation=SHARED)
            assert (report["before"], report["isolation"]) == ("process", SHARED)
            new, level = await place(client, session)
            assert (new != old, level) == (True, SHARED)
            await eventually(lambda: not alive(old))
            await client.call("_punie/isolate", cwd=str(tmp_path), isolation="process")
            assert (await place(client, session))[1] == "process"
            await eventually(lambda: not alive(new))

    asyncio.run(scenario())


def test_that_commands_may_run_without_a_sandbox_is_kept(punie_home: Path, tmp_path: Path):
    async def scenario(unconfined: bool):
        async with AsyncExitStack() as stack:
            client = await opened(stack, punie_home)
            await client.session(tmp_path)
            assert (await project(client, tmp_path))["unconfined"] is unconfined
            await client.call("_punie/unconfined", cwd=str(tmp_path), unconfined=not unconfined)

    asyncio.run(scenario(False))
    asyncio.run(scenario(True))
    asyncio.run(scenario(False))


def test_breadcrumb_files_do_not_stay(punie_home: Path, tmp_path: Path):
    run = punie_home / "run"

    async def scenario():
        async with AsyncExitStack() as stack:
            (run / "crumbs-1").touch()
            client = await opened(stack, punie_home)
            session = await client.session(tmp_path)
            pid, _ = await place(client, session)
            assert [file.name for file in run.glob("crumbs-*")] == [f"crumbs-{pid}"]
            os.kill(pid, signal.SIGKILL)
            assert (await place(client, session))[0] != pid
            assert len(list(run.glob("crumbs-*"))) == 1

    run.mkdir(parents=True)
    asyncio.run(scenario())
    assert list(run.glob("crumbs-*")) == []
