"""The timings of turns, out of a daemon's journal."""

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from punie_protocol.client import PerfReport, ResultMeta
from punie_protocol.limits import MAX_CLIENT_MESSAGE, MAX_TURN_CALLS
from punie_protocol.messages.common import Isolation, Outcome, Timings, ToolTiming, Usage
from punie_supervisor.perf import MAX_BYTES
from tests.support.supervisor_rig import Client, Failed, running

CALL = ToolTiming(
    id="call-1",
    tool="read_file",
    start_ms=1,
    duration_ms=2,
    outcome=Outcome.OK,
    isolation=Isolation.PROCESS,
)


def meta(id: str, calls: int = 1) -> ResultMeta:
    return ResultMeta(
        prompt_id=id,
        model="m",
        isolation=Isolation.PROCESS,
        usage=Usage(),
        timings_ms=Timings(total=5),
        tool_count=calls,
        tools=[CALL] * calls,
    )


async def perf(client: Client, **query: Any) -> list[dict[str, Any]]:
    return (await client.call("_punie/perf", **query))["turns"]


def store(journal: Path, session: str, count: int, calls: int) -> None:
    """Write turns that ended, of a later time each, with `calls` tool calls."""
    with closing(sqlite3.connect(journal)) as db, db:
        for n in range(count):
            body = {"stopReason": "end_turn", "_meta": {"punie": meta(f"p{n}", calls)}}
            db.execute(
                "INSERT INTO prompts (id, session_id, ordinal, state, body, stop_reason, response,"
                " accepted_at, title) VALUES (?, ?, ?, 'done', x'', 'end_turn', ?, ?, 't')",
                (f"p{n}", session, 1000 + n, msgspec.json.encode(body), time.time() + n),
            )


def test_turns_are_reported_newest_first(punie_home: Path, tmp_path: Path):
    async def scenario():
        a, b = tmp_path / "a", tmp_path / "b"
        a.mkdir(), b.mkdir()
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            one, two = await client.session(a), await client.session(b)
            await client.answer(one, "say first\nline", promptId="1")
            await client.answer(two, "say second", promptId="2")
            good, bad = meta("3"), meta("4")
            await client.answer(one, "timed " + msgspec.json.encode(good).decode(), promptId="3")
            text = "fails " + msgspec.json.encode(bad).decode()
            with pytest.raises(Failed, match="it failed"):
                await client.answer(one, text, promptId="4")
            running_on = await client.ask(two, "wait", promptId="5")
            await client.until(lambda m: "waiting" in json.dumps(m))
            turns = await perf(client)
            assert [turn["prompt_id"] for turn in turns] == ["4", "3", "2", "1"]
            assert [turn["state"] for turn in turns] == ["failed", "done", "done", "done"]
            assert turns[3]["title"] == "say first"
            assert turns[3]["root"] == str(a)
            assert turns[3]["meta"] is None  # the fake's answer has no timings
            found = msgspec.convert({"turns": turns}, PerfReport).turns
            assert [found[1].meta, found[0].meta] == [good, bad]
            assert found[0].started_at > found[1].started_at > time.time() - 60
            of_two = await perf(client, sessionId=two)
            assert [turn["prompt_id"] for turn in of_two] == ["2"]
            of_a = await perf(client, cwd=str(a), turns=2)
            assert [turn["prompt_id"] for turn in of_a] == ["4", "3"]
            assert await perf(client, cwd=str(tmp_path)) == []
            await client.send(method="session/cancel", params={"sessionId": two})
            await client.result(running_on)
            assert (await perf(client))[0]["stop_reason"] == "cancelled"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("query", "match"),
    [
        ({"turns": 0}, "not in 1 to 1000"),
        ({"turns": 1001}, "not in 1 to 1000"),
        ({"turns": "x"}, "turns"),
        ({"sessionId": "nobody"}, "no session nobody"),
        ({"cwd": "relative"}, "not an absolute path"),
    ],
)
def test_a_faulty_query_is_refused(punie_home: Path, query: dict[str, Any], match: str):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            with pytest.raises(Failed, match=match):
                await perf(client, **query)

    asyncio.run(scenario())


def test_a_report_leaves_out_the_oldest_turns_to_fit(punie_home: Path, tmp_path: Path):
    async def scenario():
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            await asyncio.to_thread(store, paths.journal, session, 200, MAX_TURN_CALLS)
            turns = await perf(client, turns=1000)
            assert 20 < len(turns) < 200
            assert [turn["prompt_id"] for turn in turns] == [
                f"p{199 - n}" for n in range(len(turns))
            ]
            one = len(json.dumps(turns[0], separators=(",", ":")))
            assert MAX_BYTES * 0.9 < one * len(turns) < MAX_BYTES < MAX_CLIENT_MESSAGE

    asyncio.run(scenario())
