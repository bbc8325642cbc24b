"""The public test kit's client, with a real worker and with bad ones."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from punie_protocol import limits
from punie_protocol.errors import Denied, Internal, LinkClosed, PunieError, RemoteError
from punie_protocol.limits import PROTOCOL
from punie_protocol.messages.to_supervisor import ProjectFailed, ProjectReady, StoreDelta
from punie_protocol.permissions import Answer, Mode, PermissionSettings, PromptPermissions, Rule
from punie_protocol.testing.fake_client import FakeClient
from punie_protocol.testing.questions import always
from punie_protocol.testing.script import Reply, Say, call, reply, say, turn
from punie_protocol.testing.scripted_host import ScriptedHost

WRITE = call("write_file", path="a.txt", text="new\n")


@asynccontextmanager
async def case(
    folder: Path, *script: Reply, **options: Any
) -> AsyncGenerator[tuple[ScriptedHost, FakeClient]]:
    mode = options.pop("mode", None)
    otherwise = options.pop("otherwise", reply())
    (folder / "project").mkdir(exist_ok=True)
    async with (
        ScriptedHost(script=script, otherwise=otherwise) as host,
        FakeClient(host.path, **options) as client,
    ):
        assert isinstance(await client.open_project(folder / "project"), ProjectReady)
        await client.new_session(mode=mode)
        yield host, client


def test_questions_are_answered_one_by_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with case(tmp_path, WRITE, WRITE, say("done")) as (_, client):
            running = await client.start_prompt("go")
            question = await client.question()
            assert question.is_open
            assert question.options == list(Answer)
            assert question.call["kind"] == "edit"
            assert not (tmp_path / "project" / "a.txt").exists()
            await client.answer(question, Answer.REJECT_ONCE)
            await client.answer(await client.question(), Answer.ALLOW_ONCE)
            assert (await client.turn(running)).text() == "done"
        assert [one.answered for one in client.questions] == ["reject-once", "allow-once"]

    asyncio.run(main())
    assert (tmp_path / "project" / "a.txt").read_text() == "new\n"


def test_what_is_granted_for_the_session_outlives_the_worker(tmp_path: Path) -> None:
    async def main() -> None:
        policy = always(Answer.ALLOW_FOR_SESSION)
        async with case(tmp_path, WRITE, say("one"), policy=policy) as (host, client):
            await client.prompt("go")
            record = client.journal.session("s1")
            assert [grant.allow for grant in record.grants] == [True]
            await client.kill()
            await client.restart()
            host.script = [call("write_file", path="b.txt", text="x"), say("two")]
            assert (await client.prompt("again", prompt_id="q2")).text() == "two"
        assert len(client.questions) == 1

    asyncio.run(main())


def test_modes_rules_and_prompts_decide_too(tmp_path: Path) -> None:
    rules = PermissionSettings(deny=[Rule(path="*.lock")])
    lock = call("write_file", path="x.lock", text="x")

    async def main() -> None:
        async with case(tmp_path, permissions=rules, mode=Mode.READ_ONLY) as (host, client):
            for mode, script, there in (
                (None, WRITE, False),
                (Mode.ACCEPT_EDITS, lock, False),
                (None, WRITE, True),
            ):
                if mode is not None:
                    await client.set_mode(mode)
                host.script = [script, say("done")]
                await client.prompt("go", prompt_id=os.urandom(4).hex())
                assert (tmp_path / "project" / "a.txt").exists() is there
            host.script = [call("delete_file", path="a.txt"), say("done")]
            only_read = PromptPermissions(mode=Mode.READ_ONLY)
            await client.prompt("go", prompt_id="last", permissions=only_read)
        assert not client.questions

    asyncio.run(main())
    assert [path.name for path in (tmp_path / "project").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("message", range(1, 8))
def test_a_turn_goes_on_after_a_crash_at_any_message(tmp_path: Path, message: int) -> None:
    play = turn(WRITE, say("done"))

    async def main() -> None:
        async with case(tmp_path, otherwise=play, mode=Mode.TRUSTED) as (_, client):
            client.kill_at(message)
            answer = await client.start_prompt("go")
            await client.lost()
            if answer.exception() is None:
                with pytest.raises(PunieError, match="no prompt without a response"):
                    await client.resume()
                return
            assert isinstance(answer.exception(), LinkClosed)
            with pytest.raises(LinkClosed):
                await client.ping()
            pid = client.pid
            await client.restart()
            assert client.pid != pid
            assert (await client.resume()).stop_reason == "end_turn"
            assert len(client.journal.session("s1").effects) <= 1
            again = await client.prompt("more", prompt_id="q2")
            assert again.text() == "done"

    asyncio.run(main())


def test_what_is_not_stored_ends_the_turn(tmp_path: Path) -> None:
    full = Internal(message="disk full")

    async def main() -> None:
        async with case(tmp_path, say("hi")) as (_, client):
            client.journal.refuse = lambda one: full if isinstance(one, StoreDelta) else None
            answer = await client.prompt("go")
            assert answer.wire_error.message == "disk full"
            with pytest.raises(RemoteError, match="disk full"):
                _ = answer.stop_reason
            assert not client.journal.session("s1").deltas

    asyncio.run(main())


def test_a_long_conversation_comes_back_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("punie_protocol.testing.fake_supervisor._CHUNK", 10)

    async def main() -> None:
        async with case(tmp_path, say("one"), say("two")) as (host, client):
            await client.prompt("first")
            await client.prompt("second", prompt_id="q2")
            await client.restart()
            host.script = [say("three")]
            assert (await client.prompt("third", prompt_id="q3")).text() == "three"
            texts = [message.text for message in host.requests[-1].messages]
            assert texts == ["first", "one", "second", "two", "third"]

    asyncio.run(main())


def test_the_prompt_is_described(tmp_path: Path) -> None:
    async def main() -> None:
        async with case(tmp_path) as (_, client):
            report = await client.describe_prompt()
            assert report.model == "scripted"
            with pytest.raises(RemoteError):
                await client.describe_prompt("nowhere")
            await client.trust_project("digest")
            await client.restart()
            assert client.journal.trusts == {"p1": "digest"}

    asyncio.run(main())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with case(tmp_path) as (_, client):
            failed = await client.open_project(tmp_path / "nowhere", "p2")
            assert isinstance(failed, ProjectFailed)
            assert not isinstance(failed.error, Denied)

    asyncio.run(main())


def test_a_wait_for_a_slow_model_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        slow = reply(Say("never ending " * 100, delay=0.05))
        async with case(tmp_path, slow) as (_, client):
            running = await client.start_prompt("go")
            with pytest.raises(PunieError, match=r"no change that was waited for within 0\.1 s"):
                await client.until(lambda: False, within=0.1)
            await client.cancel()
            assert (await client.turn(running)).stop_reason == "cancelled"

    asyncio.run(main())


HELLO = f"""
import os, socket, struct, sys, time, msgspec
link = socket.socket(fileno=int(sys.argv[1]))
def send(message):
    body = msgspec.msgpack.encode(message)
    link.sendall(struct.pack('>I', len(body)) + body)
limits = dict(max_frame={limits.MAX_FRAME}, max_queued_frames={limits.MAX_QUEUED_FRAMES})
hello = dict(type='hello', protocol={PROTOCOL}, version='0', role='worker', pid=os.getpid(),
             limits=limits)
"""
READY = f"{HELLO}\nsend(hello); link.recv(9999); send(dict(type='ready')); link.recv(9999)\n"
"""A worker that starts, and gets a ping."""


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("", "link closed"),
        (f"{HELLO}\nsend(hello)", "link closed"),
        (f"{HELLO}\nsend(hello | dict(protocol=0)); time.sleep(60)", "protocol 0 met protocol"),
        (f"{HELLO}\nsend(hello); send(hello); time.sleep(60)", "expected Ready, got Hello"),
        (f"{HELLO}\nlink.sendall(b'\\xff' * 9); time.sleep(60)", "over the limit"),
    ],
)
def test_a_worker_that_does_not_start(tmp_path: Path, program: str, message: str) -> None:
    async def main() -> None:
        client = FakeClient("nowhere", command=lambda fd: [sys.executable, "-c", program, str(fd)])
        with pytest.raises(PunieError, match=message):
            await client.__aenter__()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("send(hello); time.sleep(60)", "the worker sent Hello after its start"),
        ("link.sendall(b'\\xff' * 9); time.sleep(60)", "over the limit"),
        ("pass", "is gone"),
        (
            """send(dict(type='agent_message', session_id='s',
                body=b'{"jsonrpc":"2.0","id":1,"method":"fs/read"}')); time.sleep(60)""",
            "the agent asked for fs/read",
        ),
    ],
)
def test_a_worker_that_breaks_the_protocol(tmp_path: Path, program: str, message: str) -> None:
    async def main() -> None:
        source = f"{READY}\n{program}"
        command = [sys.executable, "-c", source]
        async with FakeClient("nowhere", command=lambda fd: [*command, str(fd)]) as client:
            with pytest.raises(PunieError, match=message):
                await client.ping()
            client.worker.kill()

    asyncio.run(main())


def test_a_worker_that_says_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("punie_protocol.handshake.HANDSHAKE_TIMEOUT", 0.2)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]

    async def main() -> None:
        with pytest.raises(PunieError, match="no handshake within"):
            await FakeClient("nowhere", command=lambda fd: command).__aenter__()

    asyncio.run(main())


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(FileNotFoundError):
            await FakeClient("nowhere", command=lambda fd: ["/no/such/program"]).__aenter__()

    asyncio.run(main())
