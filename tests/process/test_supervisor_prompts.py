"""Prompts through a whole daemon, with fake children in processes of their own."""

import asyncio
import json
import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from punie_protocol.limits import MAX_CLIENT_MESSAGE
from tests.support.supervisor_rig import (
    DEADLINE,
    Client,
    Failed,
    eventually,
    prompt_state,
    running,
)


def test_a_prompt_is_accepted_updated_and_answered_in_order(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            about = await client.call("initialize", protocolVersion=1)
            assert about["agentInfo"]["name"] == "punie"
            session = await client.session(tmp_path)
            assert await client.said(session, "say hello") == "hello"
            kinds = [m.get("method", m.get("result")) for m in client.seen]
            first = kinds.index("_punie/accepted")
            assert kinds[first + 1 :][-3:-1] == ["session/update", "session/update"]
            assert isinstance(kinds[-1], dict)
            metas = [update["_meta"] for update in client.updates()]
            assert metas == [
                {"punie": {"tool": "kept", "seq": seq}, "other": 1.5} for seq in (1, 2)
            ]
            assert await client.said(session, "history") == "hello"

    asyncio.run(scenario())


def test_what_was_answered_is_in_the_journal(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            await client.answer(session, "say hello\nworld", promptId="p1")
            assert await client.said(session, "effect") == "None None"
            return paths.journal, session

    journal, session = asyncio.run(scenario())
    assert journal.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(journal) as db:
        prompt = db.execute("SELECT state, stop_reason, response FROM prompts WHERE id = 'p1'")
        state, reason, response = prompt.fetchone()
        assert (state, reason) == ("done", "end_turn")
        assert json.loads(response)["stopReason"] == "end_turn"
        assert db.execute("SELECT data FROM deltas").fetchall() == [(b"hello\nworld",)]
        assert db.execute("SELECT seq FROM updates ORDER BY seq").fetchall() == [(1,), (2,)]
        assert db.execute("SELECT tool, ok, summary FROM effects").fetchall() == [
            ("write_file", 1, "written")
        ]
        assert db.execute("SELECT id, title FROM sessions").fetchall() == [(session, "say hello")]
    db.close()


def test_two_clients_see_one_session(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with (
            running(punie_home) as (_, paths),
            Client.connect(paths) as one,
            Client.connect(paths) as two,
        ):
            session = await one.session(tmp_path)
            await two.answer(session, "say first")
            await one.answer(session, "say second")
            await eventually(lambda: len(two.updates()) == 4)
            assert [u["_meta"]["punie"]["seq"] for u in two.updates()] == [1, 2, 3, 4]
            assert one.updates() == two.updates()

    asyncio.run(scenario())


def test_a_prompt_id_runs_once(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with (
            running(punie_home) as (_, paths),
            Client.connect(paths) as one,
            Client.connect(paths) as two,
        ):
            session = await one.session(tmp_path)
            first = await one.ask(session, "wait", promptId="p")
            await one.method("session/update")
            again = await two.ask(session, "wait", promptId="p")
            await two.method("_punie/accepted")
            await one.send(method="session/cancel", params={"sessionId": session})
            answers = [await one.result(first), await two.result(again)]
            answers.append(await two.answer(session, "wait", promptId="p"))
            assert answers[0]["stopReason"] == "cancelled"
            assert answers[0] == answers[1] == answers[2]
            other = await one.session(tmp_path)
            with pytest.raises(Failed, match="another session"):
                await one.answer(other, "wait", promptId="p")

    asyncio.run(scenario())


def test_a_turn_outlives_its_client(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as watcher:
            async with Client.connect(paths) as client:
                session = await client.session(tmp_path)
                await client.ask(session, "ask", promptId="p")
                await client.method("session/request_permission")
            # it waits for an answer, with nobody there; whoever comes is asked
            joined = await watcher.ask(session, "ask", promptId="p")
            question = await watcher.method("session/request_permission")
            await watcher.send(id=question["id"], result={"outcome": "yes"})
            answer = (await watcher.result(joined))["_meta"]["punie"]["said"]
            assert json.loads(answer)["result"] == {"outcome": "yes"}

    asyncio.run(scenario())


def test_the_first_answer_to_a_question_wins(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with (
            running(punie_home) as (_, paths),
            Client.connect(paths) as one,
            Client.connect(paths) as two,
        ):
            session = await one.session(tmp_path)
            await two.answer(session, "history")
            asked = await one.ask(session, "ask")
            question = await two.method("session/request_permission")
            assert (await one.method("session/request_permission"))["id"] == question["id"]
            await two.send(id=question["id"], result={"outcome": "two"})
            said = json.loads((await one.result(asked))["_meta"]["punie"]["said"])
            assert said["result"] == {"outcome": "two"}
            cancelled = await one.method("$/cancel_request")
            assert cancelled["params"] == {"requestId": question["id"]}
            assert not [m for m in two.seen if m.get("method") == "$/cancel_request"]

    asyncio.run(scenario())


def test_a_question_nobody_answers_is_rejected(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home, question_timeout=0.2) as (_, paths):
            async with Client.connect(paths) as client:
                session = await client.session(tmp_path)
                await client.ask(session, "ask", promptId="p")
                await client.method("session/request_permission")
            async with Client.connect(paths) as late:
                await eventually(lambda: prompt_state(paths.journal, "p") == "done")
                said = json.loads(await late.said(session, "ask", promptId="p"))
                assert said["error"]["data"]["punie"]["type"] == "timed_out"

    asyncio.run(scenario())


def test_cancel_while_the_model_loads(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home, model="slow") as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            first = await client.ask(session, "say one")
            queued = await client.ask(session, "say two")
            progress = await client.method("_punie/progress")
            assert progress["params"]["sessionId"] == session
            await client.send(method="$/cancel_request", params={"requestId": queued})
            assert (await client.result(queued))["stopReason"] == "cancelled"
            await client.send(method="session/cancel", params={"sessionId": session})
            cancelled = await client.result(first)
            assert cancelled["stopReason"] == "cancelled"
            assert cancelled["_meta"]["punie"]["timingsMs"]["queue"] > 0
            assert await client.said(session, "say three") == "three"
            assert await client.said(session, "history") == "three"

    asyncio.run(scenario())


def test_models_are_switched_by_name_and_a_bad_one_leaves_the_old(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home, model="slow") as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            assert await client.said(session, "say a", model="slow") == "a"
            loading = (await client.method("_punie/progress"))["params"]
            texts = [
                m["params"]["text"] for m in client.seen if m.get("method") == "_punie/progress"
            ]
            assert any(
                text.startswith("loading model slow ") and "/10.0 MB" in text for text in texts
            )
            assert loading["sessionId"] == session
            await client.answer(session, "say b", model="other")
            assert (await client.call("_punie/status"))["model"]["name"] == "other"
            with pytest.raises(Failed, match="half copied") as failed:
                await client.answer(session, "say c", model="bad")
            assert failed.value.punie["type"] == "model_load_failed"
            before = len(client.seen)
            await client.answer(session, "say d", model="/models/other")
            await client.answer(session, "say e")
            assert not [m for m in client.seen[before:] if m.get("method") == "_punie/progress"]
            model = (await client.call("_punie/status"))["model"]
            assert (model["name"], model["state"]) == ("other", "ready")

    asyncio.run(scenario())


def test_a_model_that_does_not_load_at_start(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home, model="bad") as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            with pytest.raises(Failed, match="half copied"):
                await client.answer(session, "say a")
            status = (await client.call("_punie/status"))["model"]
            assert (status["state"], status["error"]["type"]) == ("failed", "model_load_failed")
            assert await client.said(session, "say b", model="good") == "b"

    asyncio.run(scenario())


def test_the_engine_of_a_host_is_known_until_it_is_gone(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:

            async def settled(holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
                async with asyncio.timeout(DEADLINE):
                    while True:
                        if holds(model := (await client.call("_punie/status"))["model"]):
                            return model
                        await asyncio.sleep(0.01)

            session = await client.session(tmp_path)
            await client.answer(session, "say a")
            before = await settled(lambda model: model["state"] == "ready")
            assert before["engine"] is None
            await client.answer(session, "say b", model="other")
            told = await settled(lambda model: model["engine"] is not None)
            assert told["engine"]["steps"] == 1
            os.kill(told["pid"], signal.SIGKILL)
            after = await settled(
                lambda model: model["state"] == "ready" and model["pid"] not in (None, told["pid"])
            )
            assert after["engine"] is None

    asyncio.run(scenario())


def test_isolation_levels_place_and_move_projects(punie_home: Path, tmp_path: Path):
    async def scenario():
        a, b = tmp_path / "a", tmp_path / "b"
        a.mkdir(), b.mkdir()
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            one, two = [await client.session(project, "process") for project in (a, b)]
            pids = {(await client.answer(s, "say x"))["_meta"]["punie"]["pid"] for s in (one, two)}
            assert len(pids) == 2
            busy = await client.ask(one, "wait")
            await client.until(lambda m: "waiting" in json.dumps(m))
            with pytest.raises(Failed, match="under way"):
                await client.session(a, "interpreter")
            await client.send(method="session/cancel", params={"sessionId": one})
            await client.result(busy)
            for project in (a, b):
                await client.session(project, "interpreter")
            moved = [await client.answer(s, "history") for s in (one, two)]
            assert [answer["_meta"]["punie"]["said"] for answer in moved] == ["x", "x"]
            assert len({answer["_meta"]["punie"]["pid"] for answer in moved}) == 1
            status = await client.call("_punie/status")
            assert [sorted(w["projects"]) for w in status["workers"]] == [[str(a), str(b)]]
            assert [p["isolation"] for p in status["projects"]] == ["interpreter"] * 2
            assert [p["state"] for p in status["projects"]] == ["active"] * 2

    asyncio.run(scenario())


def test_sessions_are_listed_newest_first_in_pages(punie_home: Path, tmp_path: Path):
    async def scenario():
        other = tmp_path / "other"
        other.mkdir()
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            made = [await client.session(tmp_path) for _ in range(101)]
            await client.session(other)
            await client.answer(made[0], "say " + "t" * 100)
            first = await client.call("session/list", cwd=str(tmp_path))
            rest = await client.call("session/list", cwd=str(tmp_path), cursor=first["nextCursor"])
            ids = [s["sessionId"] for s in first["sessions"] + rest["sessions"]]
            assert ids == [made[0], *reversed(made[1:])]
            assert first["sessions"][0]["title"] == "say " + "t" * 76
            assert first["sessions"][0]["updatedAt"].endswith("Z")
            assert "nextCursor" not in rest

    asyncio.run(scenario())


def test_faulty_requests_get_errors_that_say_what(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            with pytest.raises(Failed, match="no session nobody"):
                await client.answer("nobody", "hello")
            with pytest.raises(Failed, match="does not exist") as missing:
                await client.session(tmp_path / "missing")
            assert missing.value.punie["type"] == "not_found"
            with pytest.raises(Failed, match="not an absolute path"):
                await client.session(Path("relative"))
            with pytest.raises(Failed) as unknown:
                await client.call("session/fly")
            assert unknown.value.error["code"] == -32601
            await client.socket.send("[]")
            await client.socket.send("{nonsense")
            broken = await client.until(lambda m: m.get("error", {}).get("code") == -32700)
            assert broken["id"] is None
            await client.until(lambda m: m.get("error", {}).get("code") == -32600)
            assert await client.said(await client.session(tmp_path), "say on") == "on"

    asyncio.run(scenario())


def test_a_message_over_the_limit_ends_its_connection_alone(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            async with Client.connect(paths) as big:
                await big.socket.send("x" * (MAX_CLIENT_MESSAGE + 1))
                async with asyncio.timeout(DEADLINE):
                    await big.socket.wait_closed()
                assert big.socket.close_code == 1009
                assert str(MAX_CLIENT_MESSAGE) in str(big.socket.close_reason)
            assert await client.said(session, "say " + "y" * 1_000_000) == "y" * 1_000_000

    asyncio.run(scenario())


def test_a_client_that_does_not_read_is_dropped_and_the_others_go_on(
    punie_home: Path, tmp_path: Path
):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            async with Client.connect(paths) as deaf:
                await deaf.answer(session, "history")
                deaf.socket.transport.pause_reading()
                await client.answer(session, "flood 300")
                assert len(client.updates()) == 300
                deaf.socket.transport.resume_reading()
                async with asyncio.timeout(DEADLINE):
                    await deaf.socket.wait_closed()
            assert await client.said(session, "say on") == "on"

    asyncio.run(scenario())


def test_a_cancel_right_behind_its_prompt_reaches_it(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            prompt = {"sessionId": session, "prompt": [{"type": "text", "text": "wait"}]}
            by_session = {"method": "session/cancel", "params": {"sessionId": session}}
            for id in range(6):
                by_request = {"method": "$/cancel_request", "params": {"requestId": id}}
                cancel = by_session if id % 2 else by_request
                client.together(
                    {"id": id, "method": "session/prompt", "params": prompt},
                    cancel,
                )
                assert (await client.result(id))["stopReason"] == "cancelled"
            assert not client.updates()

    asyncio.run(scenario())


def test_cancelling_a_request_leaves_the_other_prompts_of_its_session(
    punie_home: Path, tmp_path: Path
):
    async def scenario():
        async with (
            running(punie_home) as (_, paths),
            Client.connect(paths) as one,
            Client.connect(paths) as two,
        ):
            session = await one.session(tmp_path)
            first = await one.ask(session, "wait")
            await one.method("session/update")
            second = await two.ask(session, "say second", promptId="second")
            await two.method("_punie/accepted")
            await one.send(method="$/cancel_request", params={"requestId": first})
            assert (await one.result(first))["stopReason"] == "cancelled"
            assert (await two.result(second))["stopReason"] == "end_turn"

    asyncio.run(scenario())


def test_a_switch_waits_for_the_turns_under_way_and_holds_back_later_ones(
    punie_home: Path, tmp_path: Path
):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            folders = [tmp_path / name for name in "abc"]
            for folder in folders:
                folder.mkdir()
            busy, switching, later = [await client.session(folder) for folder in folders]

            async def waits(session: str) -> None:
                await client.until(
                    lambda m: (
                        m.get("params", {}).get("sessionId") == session
                        and m["params"].get("text") == "waiting for 1 turn on model tiny"
                    )
                )

            first = await client.ask(busy, "wait")
            await client.method("session/update")
            cancelled = await client.ask(switching, "say no", model="other")
            await waits(switching)
            behind = await client.ask(later, "say behind")
            await waits(later)
            await client.send(method="$/cancel_request", params={"requestId": cancelled})
            assert (await client.result(cancelled))["stopReason"] == "cancelled"
            assert (await client.result(behind))["stopReason"] == "end_turn"
            client.seen.clear()
            switch = await client.ask(switching, "say yes", model="other")
            await waits(switching)
            behind = await client.ask(later, "say behind")
            await waits(later)
            assert (await client.call("_punie/status"))["model"]["name"] == "tiny"
            await client.send(method="$/cancel_request", params={"requestId": first})
            assert (await client.result(first))["stopReason"] == "cancelled"
            assert (await client.result(switch))["stopReason"] == "end_turn"
            assert (await client.result(behind))["stopReason"] == "end_turn"
            assert (await client.call("_punie/status"))["model"]["name"] == "other"

    asyncio.run(scenario())


def test_a_name_is_not_taken_for_a_loaded_folder_that_ends_in_it(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            await client.answer(session, "say a", model="/elsewhere/qwen")
            assert (await client.call("_punie/status"))["model"]["folder"] == "/elsewhere/qwen"
            await client.answer(session, "say b", model="qwen")
            assert (await client.call("_punie/status"))["model"]["folder"] == "/models/qwen"

    asyncio.run(scenario())


def test_a_conversation_longer_than_a_frame_is_opened_whole(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            await client.answer(session, "fill 20 1000000")
            await client.answer(session, "fill 2 9000000")
            with pytest.raises(Failed, match="SIGKILL"):
                await client.answer(session, "die")
            weight = 20 * 1_000_000 + 2 * 9_000_000 + 3 * len("before death")
            assert await client.said(session, "weigh") == f"25 {weight}"

    asyncio.run(scenario())


@pytest.mark.parametrize("cwd", ["/a\0b", "relative", ""])
def test_a_list_for_what_is_no_path_is_refused(punie_home: Path, cwd: str):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            with pytest.raises(Failed, match="not an absolute path") as failed:
                await client.call("session/list", cwd=cwd)
            assert failed.value.punie["type"] == "invalid_request"

    asyncio.run(scenario())


def test_a_client_that_talks_nonsense_does_not_fill_the_log(punie_home: Path):
    async def scenario():
        async with running(punie_home) as (_, paths):
            with structlog.testing.capture_logs() as lines:
                async with Client.connect(paths) as client:
                    for _ in range(1000):
                        await client.send(method="session/fly")
                    await client.call("_punie/status")
                await eventually(lambda: [one for one in lines if "count" in one])
        said = [line for line in lines if line["event"] == "message.ignored"]
        more = [line["count"] for line in lines if line["event"] == "messages.ignored"]
        assert len(said) + sum(more) == 1000
        assert len(said) <= 10 * (len(more) + 1)

    asyncio.run(scenario())
