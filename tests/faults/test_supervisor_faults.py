"""What happens to prompts and to the daemon when its children fail."""

import asyncio
import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import psutil
import pytest

from punie_supervisor import journal_ops
from tests.support.supervisor_rig import Client, Failed, alive, eventually, running


async def status(client: Client) -> dict[str, Any]:
    return await client.call("_punie/status")


def test_a_turn_whose_workers_are_killed_goes_on_twice_and_nothing_else_is_lost(
    punie_home: Path, tmp_path: Path
):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            await client.answer(session, "say kept")
            dying = await client.ask(session, "wait", promptId="p")
            pids: list[int] = []
            for _ in range(3):
                pid = await waiting_in(client, pids)
                pids.append(pid)
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(Failed) as failed:
                await client.result(dying)
            assert failed.value.punie["type"] == "process_lost"
            assert failed.value.punie["pid"] == pids[-1]
            assert len(set(pids)) == 3
            assert "this prompt lost 3 workers" in str(failed.value)
            assert await client.said(session, "history") == "kept"
            worker = (await status(client))["workers"][0]
            assert worker["pid"] not in pids
            assert worker["restarts"] == 3
            with pytest.raises(Failed) as again:
                await client.answer(session, "wait", promptId="p")
            assert again.value.punie == failed.value.punie

    asyncio.run(scenario())


async def waiting_in(client: Client, besides: list[int]) -> int:
    """Return the pid of the worker that says it waits, another than those in `besides`."""

    def pid(message: dict[str, Any]) -> int:
        update = message.get("params", {}).get("update", {})
        text = update.get("content", {}).get("text", "")
        return int(text.split()[-1]) if text.startswith("waiting in") else 0

    found = await client.until(lambda m: pid(m) not in (0, *besides))
    return pid(found)


def test_what_a_worker_said_before_its_death_arrives_first(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            with pytest.raises(Failed, match="SIGKILL"):
                await client.answer(session, "die")
            said = [update["update"]["content"]["text"] for update in client.updates()]
            assert said == ["last words"] * 3
            assert "error" in client.seen[-1]
            assert await client.said(session, "history") == ",".join(["before death"] * 3)

    asyncio.run(scenario())


def test_a_worker_that_leaves_in_the_middle_comes_back_when_needed(
    punie_home: Path, tmp_path: Path
):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            with pytest.raises(Failed, match="code 0"):
                await client.answer(session, "exit")
            assert await client.said(session, "say back") == "back"

    asyncio.run(scenario())


def test_garbage_ends_the_worker_it_came_from_alone(punie_home: Path, tmp_path: Path):
    async def scenario():
        a, b = tmp_path / "a", tmp_path / "b"
        a.mkdir()
        b.mkdir()
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            bad, good = [await client.session(project, "process") for project in (a, b)]
            waiting = await client.ask(good, "wait")
            await client.until(lambda m: "waiting" in json.dumps(m))
            with pytest.raises(Failed) as failed:
                await client.answer(bad, "garbage")
            assert failed.value.punie["type"] == "process_lost"
            await client.send(method="session/cancel", params={"sessionId": good})
            assert (await client.result(waiting))["stopReason"] == "cancelled"
            assert await client.said(bad, "say again") == "again"

    asyncio.run(scenario())


def test_a_hung_worker_is_killed(punie_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("punie_supervisor.keeper.PING_EVERY", 0.1)
    monkeypatch.setattr("punie_supervisor.keeper.SILENCE", 0.5)

    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            with pytest.raises(Failed, match="no answer for"):
                await client.answer(session, "hang")

    asyncio.run(scenario())


def test_the_model_host_is_restarted_with_the_model_it_had(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            await client.answer(session, "say a", model="other")
            pid = (await status(client))["model"]["pid"]
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: not alive(pid))
            assert await client.said(session, "say b") == "b"
            model = (await status(client))["model"]
            assert model["pid"] != pid
            assert (model["name"], model["state"]) == ("other", "ready")

    asyncio.run(scenario())


def test_a_model_host_that_always_crashes_is_given_up_and_the_daemon_lives(
    punie_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("punie_supervisor.restart_policy.FIRST_BACKOFF", 0.01)

    async def scenario():
        crashing = running(punie_home, model="crash")
        async with crashing as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            with pytest.raises(Failed, match="5 restarts within 180 s") as failed:
                await client.answer(session, "say a")
            assert failed.value.punie["type"] == "model_unavailable"
            model = (await status(client))["model"]
            assert (model["state"], model["pid"]) == ("failed", None)
            assert await client.said(session, "say b", model="good") == "b"

    asyncio.run(scenario())


def test_children_get_an_allow_listed_environment(
    punie_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PUNIE_HUB_TOKEN", "secret")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "secret")

    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            await client.session(tmp_path)
            report = await status(client)
            for pid in (report["model"]["pid"], report["workers"][0]["pid"]):
                environ = psutil.Process(pid).environ()
                assert "secret" not in environ.values()
                assert "PATH" in environ

    asyncio.run(scenario())


def test_a_broken_journal_refuses_prompts_and_lets_the_daemon_stop(
    punie_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def breaks(db: sqlite3.Connection, *_: object) -> None:
        db.close()

    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            waiting = await client.ask(session, "wait")
            await client.until(lambda m: "waiting" in json.dumps(m))
            monkeypatch.setattr(journal_ops, "accept_prompt", breaks)
            for _ in range(2):
                with pytest.raises(Failed, match="cannot store this"):
                    await client.answer(session, "say a")
            await client.send(method="$/cancel_request", params={"requestId": waiting})
            with pytest.raises(Failed, match="cannot store this"):
                await client.result(waiting)

    asyncio.run(scenario())
