"""Conversations of a real worker: summed up and kept, prompts in a row, settings that fail."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from punie_protocol.messages.common import PromptStyle, Usage
from punie_protocol.messages.to_model_host import Generate
from punie_protocol.project_settings import settings_digest
from punie_protocol.testing.fake_client import FakeClient
from punie_protocol.testing.questions import always
from punie_protocol.testing.script import Call, Reply, Say, Wait, model_info, reply, told
from punie_protocol.testing.scripted_host import ScriptedHost

EDIT = Call("edit_file", {"path": "a.py", "old_text": "one", "new_text": "uno"})


def summary(_: Generate) -> Reply:
    """What the model answers to a request that the script has nothing for."""
    return reply(Say("SUMMARY of it"))


@asynccontextmanager
async def agent(
    folder: Path, window: int = 32_768
) -> AsyncGenerator[tuple[ScriptedHost, FakeClient, Path]]:
    root = folder / "project"
    root.mkdir()
    (root / "a.py").write_text("one\n")
    socket = folder / "host.sock"
    info = model_info(PromptStyle.TOOLS, window=window)
    async with (
        ScriptedHost(socket, [], info, otherwise=summary) as host,
        FakeClient(socket) as client,
    ):
        await client.open_project(root)
        yield host, client, root


def write_settings(root: Path, text: str) -> str:
    """Write the project's own settings; return their digest."""
    (root / ".punie").mkdir(exist_ok=True)
    (root / ".punie" / "config.toml").write_text(text)
    return settings_digest({".punie/config.toml": text.encode()})


def notices(client: FakeClient) -> str:
    """Return what the session was told besides answers."""
    return "".join(
        one["content"]["text"]
        for one in client.updates["s1"]
        if one["sessionUpdate"] == "agent_thought_chunk"
    )


def test_older_turns_are_summed_up_by_the_model_and_the_summary_is_kept(tmp_path: Path) -> None:
    async def main() -> None:
        async with agent(tmp_path, window=4096) as (host, client, _):
            await client.new_session()
            for number in range(6):
                text = f"answer {number} " + "word " * 500
                usage = Usage(input_tokens=200 + 640 * number, output_tokens=630)
                host.script = [Reply((Say(text, chunk=4000),), usage=usage)]
                await client.prompt(f"question {number}", prompt_id=f"q{number}")
            assert "earlier conversation summarised" in notices(client)
            await client.restart()
            host.script = [reply(Say("fine"))]
            await client.prompt("last", prompt_id="last")
            sent = "".join(message.text for message in host.requests[-1].messages)
            assert "SUMMARY of it" in sent
            assert "question 0" not in sent
            assert "question 5" in sent

    asyncio.run(main())


def test_prompts_wait_in_the_order_they_came(tmp_path: Path) -> None:
    async def main() -> None:
        async with agent(tmp_path) as (host, client, _):
            await client.new_session()
            host.script = [
                reply(Wait(0.3), Say("first")),
                reply(Say("second")),
                reply(Say("third")),
            ]
            answers = [
                await client.start_prompt(f"prompt {n}", prompt_id=f"q{n}") for n in range(3)
            ]
            turns = [await client.turn(answer) for answer in answers]
            assert [turn.stop_reason for turn in turns] == ["end_turn"] * 3
            assert [told(request) for request in host.requests] == [f"prompt {n}" for n in range(3)]
            assert turns[-1].text() == "firstsecondthird"

    asyncio.run(main())


def test_trusted_settings_that_are_wrong_stop_the_turn(tmp_path: Path) -> None:
    async def main() -> None:
        async with agent(tmp_path) as (host, client, root):
            digest = write_settings(root, "[permissions]\nmodus = 1\n")
            await client.trust_project(digest)
            await client.new_session()
            host.script = [reply(Say("hi"))]
            turn = await client.prompt("go")
            assert ".punie/config.toml" in turn.wire_error.message
            assert "modus" in turn.wire_error.message
            assert not host.requests

    asyncio.run(main())


def test_trusted_settings_that_are_gone_are_missed_aloud(tmp_path: Path) -> None:
    async def main() -> None:
        async with agent(tmp_path) as (host, client, root):
            rule = '[permissions]\nallow = [{ tool = "edit" }]\n'
            await client.trust_project(write_settings(root, rule))
            await client.new_session()
            host.script = [reply(EDIT), reply(Say("done"))]
            await client.prompt("go")
            assert not client.questions
            (root / ".punie" / "config.toml").unlink()
            client.policy = always("reject-once")
            host.script = [reply(EDIT), reply(Say("done"))]
            await client.prompt("again", prompt_id="q2")
            assert "which you trusted, are gone" in notices(client)

    asyncio.run(main())
