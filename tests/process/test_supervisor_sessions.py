"""Modes, grants, trust, what a worker is opened and resumed with: a fake one says what it got."""

import asyncio
import json
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from punie_protocol.permissions import Mode, PermissionSettings, Rule
from punie_supervisor.config import Config
from tests.support.supervisor_rig import (
    Client,
    Failed,
    alive,
    eventually,
    prompt_state,
    running,
)


async def state(client: Client, session: str, **punie: Any) -> dict[str, Any]:
    """Return what the session's worker knows."""
    return json.loads(await client.said(session, "state", **punie))


async def pid_of_the_worker(client: Client) -> int:
    return (await client.call("_punie/status"))["workers"][0]["pid"]


async def kill_the_worker(client: Client) -> None:
    pid = await pid_of_the_worker(client)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not alive(pid))


async def new_session(client: Client, cwd: Path, **punie: Any) -> str:
    made = await client.call("session/new", cwd=str(cwd), mcpServers=[], _meta={"punie": punie})
    return made["sessionId"]


async def set_mode(client: Client, session: str, mode: str) -> Any:
    return await client.call("session/set_mode", sessionId=session, modeId=mode)


def test_the_users_permissions_reach_the_worker(punie_home: Path, tmp_path: Path):
    settings = PermissionSettings(mode=Mode.ACCEPT_EDITS, deny=[Rule(tool="run_command")])

    async def scenario():
        config = Config(model="tiny", permissions=settings)
        async with (
            running(punie_home, config=config) as (_, paths),
            Client.connect(paths) as client,
        ):
            known = await state(client, await client.session(tmp_path))
            assert known["permissions"]["mode"] == "accept-edits"
            assert known["permissions"]["deny"][0]["tool"] == "run_command"
            assert (known["mode"], known["grants"], known["trusted"]) == (None, [], "")

    asyncio.run(scenario())


def test_a_question_waits_as_long_as_the_config_says(punie_home: Path, tmp_path: Path):
    async def scenario():
        config = Config(model="tiny", permissions=PermissionSettings(wait_s=0.2))
        async with running(punie_home, config=config) as (_, paths):
            async with Client.connect(paths) as client:
                session = await client.session(tmp_path)
                await client.ask(session, "ask", promptId="p")
                await client.method("session/request_permission")
            async with Client.connect(paths) as late:
                await eventually(lambda: prompt_state(paths.journal, "p") == "done")
                said = json.loads(await late.said(session, "ask", promptId="p"))
                assert said["error"]["data"]["punie"]["type"] == "timed_out"

    asyncio.run(scenario())


def test_modes_are_kept_and_told(punie_home: Path, tmp_path: Path):
    async def scenario() -> str:
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await new_session(client, tmp_path, mode="read-only")
            assert (await state(client, session))["mode"] == "read-only"
            assert await set_mode(client, session, "trusted") == {}
            assert (await state(client, session))["mode"] == "trusted"
            with pytest.raises(Failed, match="read-only, ask, accept-edits, trusted") as failed:
                await set_mode(client, session, "fly")
            assert failed.value.punie["type"] == "invalid_request"
            with pytest.raises(Failed, match="no session nobody"):
                await set_mode(client, "nobody", "ask")
            with pytest.raises(Failed, match="mode"):
                await new_session(client, tmp_path, mode="fly")
            await kill_the_worker(client)
            assert (await state(client, session))["mode"] == "trusted"
            return session

    async def later(session: str) -> None:
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            await set_mode(client, session, "ask")
            assert (await client.call("_punie/status"))["workers"] == []
            assert (await state(client, session))["mode"] == "ask"

    asyncio.run(later(asyncio.run(scenario())))


def test_grants_hold_for_their_session_over_a_restart(punie_home: Path, tmp_path: Path):
    async def scenario() -> tuple[str, str]:
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session, other = [await client.session(tmp_path) for _ in range(2)]
            assert await client.said(session, "grant yes") == "None"
            await kill_the_worker(client)
            assert (await state(client, session))["grants"] == [{"key": "edit", "allow": True}]
            assert await client.said(session, "grant no") == "None"
            return session, other

    async def later(session: str, other: str) -> None:
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            assert (await state(client, session))["grants"] == [{"key": "edit", "allow": False}]
            assert (await state(client, other))["grants"] == []

    asyncio.run(later(*asyncio.run(scenario())))


def test_trust_stored_by_a_worker_is_there_for_the_next(punie_home: Path, tmp_path: Path):
    async def scenario() -> str:
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            assert await client.said(session, "trust abc") == "None"
            await kill_the_worker(client)
            assert (await state(client, session))["trusted"] == "abc"
            return session

    async def later(session: str) -> None:
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            assert (await state(client, session))["trusted"] == "abc"

    asyncio.run(later(asyncio.run(scenario())))


def test_a_lost_worker_is_replaced_and_the_turn_goes_on(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            await client.answer(session, "say kept")
            await client.answer(session, "grant yes")
            known = json.loads(await client.said(session, "die 2", promptId="p"))
            assert known["meta"]["resume"] == {"attempt": 2, "stored": 2}
            assert known["meta"]["promptId"] == "p"
            assert known["meta"]["queueMs"] >= 0
            assert known["history"] == ["kept", "before death", "before death"]
            assert known["grants"] == [{"key": "edit", "allow": True}]
            said = [
                m["params"]["text"] for m in client.seen if m.get("method") == "_punie/progress"
            ]
            assert sum("going on in another" in text for text in said) == 2
            assert "resume" not in (await state(client, session))["meta"]

    asyncio.run(scenario())


def test_an_effect_without_an_end_is_shown_when_the_turn_goes_on(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            known = json.loads(await client.said(session, "interrupted"))
            assert known["effects"] == [["e2", "write_file", None, ""]]
            assert known["meta"]["resume"] == {"attempt": 1, "stored": 0}
            await client.answer(session, "say over")
            await kill_the_worker(client)
            assert (await state(client, session))["effects"] == []

    asyncio.run(scenario())


def test_effects_survive_the_daemon(punie_home: Path, tmp_path: Path):
    async def scenario() -> str:
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            await client.answer(session, "effect")
            await client.answer(session, "interrupted")
            return session

    async def later(session: str) -> None:
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            known = (await state(client, session))["effects"]
            assert known == [
                ["e1", "write_file", True, "written"],
                ["e2", "write_file", None, ""],
            ]

    asyncio.run(later(asyncio.run(scenario())))


def test_a_cancelled_turn_does_not_go_on(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            hanging = await client.ask(session, "hang", promptId="p")
            await client.method("_punie/accepted")
            pid = await pid_of_the_worker(client)
            await eventually(lambda: blocks(pid))
            await client.send(method="session/cancel", params={"sessionId": session})
            await client.call("_punie/status")
            os.kill(pid, signal.SIGKILL)
            assert (await client.result(hanging))["stopReason"] == "cancelled"
            assert await client.said(session, "say next") == "next"

    asyncio.run(scenario())


def blocks(pid: int) -> bool:
    """Whether the fake worker has reached ``hang``: it ignores SIGTERM then."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    ignored = next(line.split()[1] for line in lines if line.startswith("SigIgn:"))
    return bool(int(ignored, 16) & 1 << signal.SIGTERM - 1)


def test_a_turn_can_be_cancelled_while_its_worker_comes_back(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            dying = await client.ask(session, "die 99")
            await client.until(lambda m: "going on in another (2" in json.dumps(m))
            await client.send(method="session/cancel", params={"sessionId": session})
            assert (await client.result(dying))["stopReason"] == "cancelled"
            assert await client.said(session, "say next") == "next"

    asyncio.run(scenario())


def test_the_daemon_can_stop_while_a_turn_is_to_go_on(punie_home: Path, tmp_path: Path):
    async def scenario() -> Path:
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            await client.ask(session, "die 99", promptId="p")
            await client.until(lambda m: "going on in another (2" in json.dumps(m))
            return paths.journal

    assert prompt_state(asyncio.run(scenario()), "p") == "interrupted"


def test_what_only_the_supervisor_may_say_is_dropped_from_a_prompt(
    punie_home: Path, tmp_path: Path
):
    smuggled = {
        "backend": {"url": "http://evil", "key": "client-secret"},
        "resume": {"attempt": 9, "stored": 9},
        "queueMs": -5.0,
    }

    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            allow = {"mode": "trusted"}
            known = await state(client, session, **smuggled, permissions=allow, promptId="p")
            meta = known["meta"]
            assert not {"backend", "resume"} & set(meta)
            assert meta["queueMs"] >= 0
            assert meta["permissions"] == allow
            return paths.journal

    journal = asyncio.run(scenario())
    with closing(sqlite3.connect(journal)) as db:
        (body,) = db.execute("SELECT body FROM prompts").fetchone()
    assert b"client-secret" not in body


async def trust(client: Client, cwd: Path, **params: Any) -> dict[str, Any]:
    return await client.call("_punie/trust", cwd=str(cwd), **params)


def test_trust_is_bound_to_the_projects_own_settings(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            nothing = await trust(client, tmp_path)
            assert nothing == {"root": str(tmp_path), "files": [], "digest": "", "trusted": False}
            (tmp_path / ".punie").mkdir()
            (tmp_path / ".punie/config.toml").write_text('instructions = "be brief"\n')
            (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
            report = await trust(client, tmp_path)
            assert (report["files"], report["trusted"]) == ([".punie/config.toml"], True)
            assert (await state(client, session))["trusted"] == report["digest"] != ""
            await kill_the_worker(client)
            assert (await state(client, session))["trusted"] == report["digest"]
            (tmp_path / ".punie/config.toml").write_text('instructions = "be long"\n')
            other = await trust(client, tmp_path)
            assert other["digest"] != report["digest"]
            assert (await state(client, session))["trusted"] == other["digest"]
            gone = await trust(client, tmp_path, trusted=False)
            assert (gone["digest"], gone["trusted"]) == (other["digest"], False)
            assert (await state(client, session))["trusted"] == ""

    asyncio.run(scenario())


def test_settings_that_are_wrong_are_not_trusted(punie_home: Path, tmp_path: Path):
    folder, pyproject = tmp_path / ".punie", tmp_path / "pyproject.toml"
    folder.mkdir()

    async def refused(client: Client) -> Failed:
        with pytest.raises(Failed) as failed:
            await trust(client, tmp_path)
        return failed.value

    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            pyproject.write_text("[tool.punie]\nflavour = 1\n")
            wrong = await refused(client)
            assert "pyproject.toml" in str(wrong)
            assert "flavour" in str(wrong)
            assert (await trust(client, tmp_path, trusted=False))["trusted"] is False
            pyproject.unlink()
            (folder / "config.toml").write_bytes(b"#" * (1024 * 1024 + 1))
            assert (await refused(client)).punie["type"] == "too_large"
            (folder / "config.toml").unlink()
            (folder / "config.toml").symlink_to("/etc/passwd")
            linked = await refused(client)
            assert linked.punie["type"] == "denied"
            assert ".punie/config.toml cannot be read: a symbolic link" in str(linked)
            (folder / "config.toml").unlink()
            os.mkfifo(folder / "config.toml")
            assert "is not a plain file" in str(await refused(client))
            (folder / "config.toml").unlink()
            folder.rmdir()
            folder.symlink_to("/etc")
            assert "a symbolic link" in str(await refused(client))
            with pytest.raises(Failed, match="does not exist"):
                await trust(client, tmp_path / "missing")

    asyncio.run(scenario())


def test_the_worker_describes_the_prompt(punie_home: Path, tmp_path: Path):
    async def describe(client: Client, **params: Any) -> dict[str, Any]:
        return await client.call("_punie/prompt", cwd=str(tmp_path), **params)

    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            report = await describe(client)
            assert report["parts"] == [{"name": "core", "text": str(tmp_path), "tokens": 1}]
            assert report["model"] == "ours"
            assert (await describe(client, model="http://127.0.0.1:9"))["model"].startswith("http")
            assert (await describe(client, model="other"))["model"] == "ours"
            assert (await client.call("_punie/status"))["model"]["name"] == "other"
            with pytest.raises(Failed, match="SIGKILL") as lost:
                await describe(client, model="http://127.0.0.1:9#die")
            assert lost.value.punie["type"] == "process_lost"
            with pytest.raises(Failed, match="does not exist"):
                await client.call("_punie/prompt", cwd=str(tmp_path / "missing"))
            session = await client.session(tmp_path)
            assert await client.said(session, "say a", model="back") == "a"  # nothing is held

    asyncio.run(scenario())
