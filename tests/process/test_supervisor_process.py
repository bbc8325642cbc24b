"""The daemon as a process: starting, refusing to start, stopping, being killed."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from punie_supervisor.paths import Paths
from tests.support.supervisor_rig import (
    Client,
    alive,
    eventually,
    paths_of,
    prompt_state,
    running,
)

ROOT = Path(__file__).parents[2]

PATIENCE = 15.0
"""A daemon ends within 5 s; a busy machine may take longer to say so, seconds."""


@contextmanager
def real_daemon(
    home: Path, *args: str
) -> Generator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """The real program with its real children; yields the line it says on its ready fd."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "punie_supervisor.main", "--ready-fd", str(write)],
        pass_fds=[write],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "PUNIE_HOME": str(home)},
        stderr=subprocess.PIPE,
        cwd=home,
    )
    os.close(write)
    try:
        with os.fdopen(read) as ready:
            yield process, json.loads(ready.readline())
    finally:
        process.terminate()
        process.communicate(timeout=6)


@contextmanager
def fake_daemon(home: Path) -> Generator[subprocess.Popen[bytes]]:
    """A daemon with fake children, listening."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.supervisor_daemon", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    assert process.stdout
    try:
        assert process.stdout.readline()
        yield process
    finally:
        process.terminate()
        process.wait(6)
        process.stdout.close()


def children_of(process: subprocess.Popen[bytes]) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


def test_it_starts_past_a_stale_socket_and_an_empty_pid_file(punie_home: Path):
    paths = paths_of(punie_home)
    paths.lock_file.touch()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(paths.socket))
    with real_daemon(punie_home) as (process, ready):
        assert ready == {"pid": process.pid}
        assert paths.lock_file.read_text().strip() == str(process.pid)
        assert paths.socket.stat().st_mode & 0o777 == 0o600
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert not paths.socket.exists()


def test_a_second_one_is_refused_and_says_who_runs(punie_home: Path):
    with real_daemon(punie_home) as (first, _), real_daemon(punie_home) as (second, ready):
        assert str(first.pid) in ready["error"]["message"]
        assert second.wait(5) == 3


def test_bad_configuration_and_a_corrupt_journal_are_said(punie_home: Path):
    paths = paths_of(punie_home)
    paths.journal.write_bytes(b"this is not a database" * 100)
    with real_daemon(punie_home) as (process, ready):
        assert str(paths.journal) in ready["error"]["message"]
        assert "move the file away" in ready["error"]["hint"]
        assert process.wait(5) == 2
    assert paths.journal.read_bytes().startswith(b"this is not")
    paths.config_dir.mkdir()
    paths.config_file.write_text("model = 3\n")
    with real_daemon(punie_home) as (process, ready):
        assert str(paths.config_file) in ready["error"]["message"]
        assert process.wait(5) == 2


def test_shutdown_by_a_client(punie_home: Path, tmp_path: Path):
    async def scenario(paths: Paths) -> None:
        async with Client.connect(paths) as client:
            await client.session(tmp_path)
            assert await client.call("_punie/shutdown") == {}

    with fake_daemon(punie_home) as process:
        asyncio.run(scenario(paths_of(punie_home)))
        assert process.wait(PATIENCE) == 0


def test_a_stuck_child_does_not_hold_up_the_stop(punie_home: Path, tmp_path: Path):
    async def scenario(paths: Paths) -> None:
        async with Client.connect(paths) as client:
            await client.ask(await client.session(tmp_path), "hang")
            await client.method("_punie/accepted")
            await client.call("_punie/shutdown")

    with fake_daemon(punie_home) as process:
        asyncio.run(scenario(paths_of(punie_home)))
        children = children_of(process)
        assert process.wait(PATIENCE) == 0
        assert not [pid for pid in children if alive(pid)]


def test_kill_9_ends_the_children_and_loses_no_accepted_prompt(punie_home: Path, tmp_path: Path):
    paths = paths_of(punie_home)

    async def before(process: subprocess.Popen[bytes]) -> str:
        async with Client.connect(paths) as client:
            session = await client.session(tmp_path)
            await client.answer(session, "say kept")
            await client.ask(session, "wait", promptId="p")
            await client.until(lambda m: "waiting" in json.dumps(m))
            for text in ("say one", "say two"):
                await client.ask(session, text, promptId=text)
                await client.until(lambda m: m.get("params", {}).get("promptId") == text)  # noqa: B023
            children = children_of(process)
            assert len(children) == 2
            process.kill()
            process.wait()
            await eventually(lambda: not [pid for pid in children if alive(pid)], within=2)
            return session

    async def after(session: str) -> None:
        async with Client.connect(paths) as client:
            again = await client.ask(session, "wait", promptId="p")
            answer = await client.until(lambda m: m.get("id") == again)
            assert answer["error"]["data"]["punie"]["type"] == "process_lost"
            for text, said in (("say one", "one"), ("say two", "two")):
                assert await client.said(session, text, promptId=text) == said
            assert await client.said(session, "history") == "kept,one,two"

    with fake_daemon(punie_home) as process:
        session = asyncio.run(before(process))
    with fake_daemon(punie_home):
        asyncio.run(after(session))


def test_a_prompt_that_waits_when_the_daemon_stops_runs_with_the_next(
    punie_home: Path, tmp_path: Path
):
    paths = paths_of(punie_home)

    async def before() -> str:
        async with running(punie_home), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            await client.ask(session, "wait")
            await client.until(lambda m: "waiting" in json.dumps(m))
            await client.ask(session, "say later", promptId="p")
            await client.until(lambda m: m.get("params", {}).get("promptId") == "p")
            return session

    async def after(session: str) -> None:
        async with running(punie_home):
            await eventually(lambda: prompt_state(paths.journal, "p") == "done")
            async with Client.connect(paths) as client:
                assert await client.said(session, "say later", promptId="p") == "later"
                assert await client.said(session, "history") == "later"

    session = asyncio.run(before())
    assert prompt_state(paths.journal, "p") == "accepted"
    asyncio.run(after(session))


def test_real_children_end_with_a_killed_daemon(punie_home: Path, tmp_path: Path):
    async def scenario(process: subprocess.Popen[bytes], paths: Paths) -> None:
        async with Client.connect(paths) as client:
            await client.session(tmp_path)
            report = await client.call("_punie/status")
            assert report["rss_bytes"] > 0
            children = children_of(process)
            assert {report["model"]["pid"], report["workers"][0]["pid"]} <= set(children)
            process.kill()
            process.wait()
            await eventually(lambda: not [pid for pid in children if alive(pid)], within=2)

    with real_daemon(punie_home) as (process, _):
        asyncio.run(scenario(process, paths_of(punie_home)))


def test_it_stays_light(punie_home: Path):
    heavy = "{'pydantic', 'pydantic_core', 'mlx', 'acp', 'rich', 'typer', 'pydantic_ai'}"
    code = f"import sys, punie_supervisor.main; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
    with real_daemon(punie_home) as (process, _):
        assert psutil.Process(process.pid).memory_full_info().uss < 45 * 1024 * 1024
