"""What a session keeps and what a model is told of a project, through a real worker process."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from punie_protocol.backends import Backend
from punie_protocol.client import PromptReport
from punie_protocol.errors import ContextOverflow
from punie_protocol.messages.common import PromptStyle
from punie_protocol.messages.to_model_host import Generate, SystemMessage, UserMessage
from punie_protocol.permissions import Mode, PromptPermissions, TrustAnswer
from punie_protocol.testing.fake_client import FakeClient
from punie_protocol.testing.questions import always
from punie_protocol.testing.script import (
    Call,
    Fail,
    Reply,
    Say,
    Think,
    model_info,
    reply,
    tool_results,
)
from punie_protocol.testing.scripted_host import ScriptedHost

TOOLS = model_info(PromptStyle.TOOLS)
SETTINGS = """\
instructions = "Be brief."
[permissions]
mode = "accept-edits"
deny = [{ path = "*.lock" }]
"""
EDIT = reply(Call("write_file", {"path": "a.txt", "text": "new"}))


@asynccontextmanager
async def agent(
    folder: Path, script: Sequence[Reply] = (), style: PromptStyle = PromptStyle.TOOLS
) -> AsyncGenerator[tuple[ScriptedHost, FakeClient, Path]]:
    root, socket = folder / "first", folder / "host.sock"
    root.mkdir()
    async with (
        ScriptedHost(socket, script, model_info(style)) as host,
        FakeClient(socket) as client,
    ):
        await client.open_project(root)
        await client.new_session()
        yield host, client, root


def is_prefix(one: Generate, of: Generate) -> bool:
    """Whether what a request sends is, byte for byte, how another one begins."""
    head, whole = [*map(msgspec.json.encode, one.messages)], map(msgspec.json.encode, of.messages)
    return head == [*whole][: len(head)] and one.tools == of.tools


@pytest.mark.parametrize("style", list(PromptStyle))
def test_what_was_left_out_stays_out_in_another_worker(tmp_path: Path, style: PromptStyle) -> None:
    overflow = reply(Fail(ContextOverflow(message="too long", tokens=1400, limit=1000)))
    record = [reply(Say("They said first."))] if style is PromptStyle.TOOLS else []
    script = [reply(Say("one")), reply(Say("two")), overflow, *record, reply(Say("three"))]

    async def main() -> None:
        async with agent(tmp_path, script, style) as (host, client, _):
            for number, word in enumerate(("first", "second", "third")):
                turn = await client.prompt(word, prompt_id=f"q{number}")
            assert "earlier conversation" in turn.text("agent_thought_chunk")
            before = host.requests[-1]
            assert "first" not in [one.text for one in before.messages]
            assert any("They said first." in one.text for one in before.messages) == bool(record)
            await client.restart()
            host.script = [reply(Say("four")), reply(Say("five"))]
            for number, word in enumerate(("fourth", "fifth"), 3):
                turn = await client.prompt(word, prompt_id=f"q{number}")
                assert turn.text("agent_thought_chunk") == ""
                assert is_prefix(before, host.requests[-1])
                before = host.requests[-1]

    asyncio.run(main())


def test_the_prefix_is_the_same_for_projects_and_turns(tmp_path: Path) -> None:
    async def main() -> None:
        async with agent(tmp_path, [reply(Say("hi"))] * 4) as (host, client, root):
            (root / "AGENTS.md").write_text("Use tabs.\n")
            other = tmp_path / "second"
            other.mkdir()
            await client.open_project(other, "p2")
            await client.new_session("s2", "p2", mode=Mode.READ_ONLY)
            for number, session in enumerate(("s1", "s2", "s1", "s2")):
                await client.prompt(f"prompt {number}", session, f"q{number}")
            heads = [(msgspec.json.encode(one.messages[0]), one.tools) for one in host.requests]
            assert isinstance(host.requests[0].messages[0], SystemMessage)
            assert heads == [heads[0]] * 4
            contexts = [one.messages[1].text for one in host.requests]
            assert contexts[:2] == contexts[2:]
            assert "Use tabs." in contexts[0]
            assert "Use tabs." not in contexts[1]
            assert "second" in contexts[1]
            assert is_prefix(host.requests[0], host.requests[2])

    asyncio.run(main())


def test_agents_md_is_told_as_it_is_now(tmp_path: Path) -> None:
    async def main() -> None:
        async with agent(tmp_path, [reply(Say("hi"))] * 3) as (host, client, root):
            for number, text in enumerate(("Use tabs.", "Use spaces.", "")):
                (root / "AGENTS.md").write_text(text)
                await client.prompt("go", prompt_id=f"q{number}")
                context = host.requests[-1].messages[1]
                assert isinstance(context, UserMessage)
                assert context.text.endswith(text or "Project: first")

    asyncio.run(main())


def test_a_prompt_described_is_the_prompt_sent(tmp_path: Path) -> None:
    def texts(report: PromptReport) -> dict[str, str]:
        assert report.tokens == sum(part.tokens for part in report.parts)
        return {part.name: part.text for part in report.parts}

    async def main() -> None:
        async with agent(tmp_path, [reply(Say("hi"))]) as (host, client, root):
            (root / "AGENTS.md").write_text("Use tabs.")
            exact = await client.describe_prompt()
            assert (exact.model, exact.style, exact.exact) == ("scripted", PromptStyle.TOOLS, True)
            assert exact.tokens > 500
            await client.prompt("go")
            system, context, _ = (one.text for one in host.requests[0].messages)
            told = texts(exact)
            assert told["core"] + told["stubs"] == system
            assert told["project"] == context
            assert all(f"{tool.name}: " in told["tools"] for tool in host.requests[0].tools)
            backend = Backend(url="http://127.0.0.1:9/v1", name="coder")
            guessed = await client.describe_prompt(backend=backend)  # nobody listens there
            assert (guessed.model, guessed.exact, texts(guessed)) == ("coder", False, told)

    asyncio.run(main())


def test_a_model_that_learned_its_tools_is_told_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        script = [reply(Say("hi"))]
        async with agent(tmp_path, script, PromptStyle.LEARNED) as (host, client, root):
            (root / "AGENTS.md").write_text("Use tabs.")
            report = await client.describe_prompt()
            assert [(part.name, part.text) for part in report.parts] == [("core", "")]
            await client.prompt("go")
            assert host.requests[0].messages == [UserMessage(text="go")]

    asyncio.run(main())


def settle(root: Path, text: str) -> None:
    (root / ".punie").mkdir(exist_ok=True)
    (root / ".punie" / "config.toml").write_text(text)


def test_trusted_settings_hold_and_any_changed_byte_asks_again(tmp_path: Path) -> None:
    locked = reply(Call("write_file", {"path": "uv.lock", "text": "new"}))

    async def main() -> None:
        async with agent(tmp_path) as (host, client, root):
            settle(root, SETTINGS)
            client.policy = always(TrustAnswer.TRUST)
            host.script = [locked, EDIT, reply(Say("done"))]
            await client.prompt("go")
            assert len(client.questions) == 1, "an edit was asked for"
            assert "Be brief." in host.requests[0].messages[1].text
            denied, done = (one.text for one in tool_results(host.requests[-1]))
            assert "rule deny" in denied
            assert "error" not in done
            assert (root / "a.txt").read_text() == "new"
            assert not (root / "uv.lock").exists()
            await client.restart()
            host.script = [reply(Say("hi"))]
            await client.prompt("go", prompt_id="q2")
            assert len(client.questions) == 1, "trust is durable"
            settle(root, SETTINGS + "#")
            client.policy = always(TrustAnswer.IGNORE)
            host.script = [reply(Say("hi"))]
            await client.prompt("go", prompt_id="q3")
            assert len(client.questions) == 2
            assert "Be brief." not in host.requests[-1].messages[1].text

    asyncio.run(main())


def test_a_read_only_prompt_does_not_ask_about_settings(tmp_path: Path) -> None:
    async def main() -> None:
        async with agent(tmp_path, [EDIT, reply(Say("hi"))]) as (host, client, root):
            settle(root, SETTINGS)
            rights = PromptPermissions(mode=Mode.READ_ONLY)
            turn = await client.prompt("go", permissions=rights)
            assert client.questions == []
            assert "settings (.punie/config.toml) are ignored" in turn.text("agent_thought_chunk")
            assert "Be brief." not in host.requests[0].messages[1].text
            assert "read-only mode" in tool_results(host.requests[-1])[0].text
            assert not (root / "a.txt").exists()

    asyncio.run(main())


def test_thoughts_stream_apart_from_words_and_are_kept(tmp_path: Path) -> None:
    async def main() -> None:
        read = Call("list_files", {})
        script = [reply(Think("hm, "), Say("I look"), read), reply(Think("so"), Say("done"))]
        async with agent(tmp_path, script) as (host, client, _):
            turn = await client.prompt("go")
            kinds = ("agent_thought_chunk", "agent_message_chunk", "tool_call")
            shown = [one["sessionUpdate"] for one in turn.updates if one["sessionUpdate"] in kinds]
            assert shown == [*kinds, *kinds[:2]]
            assert turn.text("agent_thought_chunk") == "hm, so"
            asked = host.requests[-1].messages[3]
            assert msgspec.structs.asdict(asked)["thinking"] == "hm, "

    asyncio.run(main())


def test_a_program_shows_each_call_with_what_went_in_and_came_out(tmp_path: Path) -> None:
    code = (
        'print(write_file("a.txt", "new").path)\n'
        'try:\n    read_file("b")\nexcept RuntimeError:\n    print("no b")'
    )

    async def main() -> None:
        script = [reply(Call("execute_code", {"code": code})), reply(Say("done"))]
        async with agent(tmp_path, script) as (host, client, _):
            client.policy = always("allow-once")
            turn = await client.prompt("go")
            assert tool_results(host.requests[-1])[0].text == "a.txt\nno b"
            program, write, read = turn.of("tool_call")
            assert write["rawInput"] == {"path": "a.txt", "text": "new"} | write["rawInput"]
            assert read["rawInput"]["path"] == "b"
            above = [one["_meta"]["punie"].get("parent") for one in (program, write, read)]
            assert above == [None, program["toolCallId"], program["toolCallId"]]
            ended = {name: (one["status"], one["rawOutput"]) for name, _, one in turn.tools()}
            assert ended["write_file"][1]["path"] == "a.txt"
            assert ended["read_file"][0] == "failed"
            assert "not_found" in ended["read_file"][1]["error"]
            tools = {one.tool: one for one in turn.meta.tools}
            inside = tools["write_file"].duration_ms + tools["read_file"].duration_ms
            assert 0 < inside <= tools["execute_code"].duration_ms
            assert tools["write_file"].wait_ms > 0
            assert tools["execute_code"].wait_ms == tools["write_file"].wait_ms

    asyncio.run(main())
