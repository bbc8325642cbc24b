"""The public test kit's parts: script, host, journal, loopback, waits."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from punie_protocol.errors import (
    Cancelled,
    Internal,
    InvalidRequest,
    LinkClosed,
    ModelFault,
    NotFound,
    PunieError,
    TimedOut,
)
from punie_protocol.handshake import greet_model_host
from punie_protocol.link import FrameLink
from punie_protocol.messages import to_model_client as out
from punie_protocol.messages.common import Priority, Usage
from punie_protocol.messages.to_model_client import ToModelClient
from punie_protocol.messages.to_model_host import (
    AssistantMessage,
    CancelGenerate,
    CountTokens,
    Generate,
    ToolMessage,
    ToolSchema,
    UserMessage,
)
from punie_protocol.messages.to_supervisor import (
    EffectFinished,
    EffectStarted,
    StoreDelta,
    StoreGrant,
    StoreTrust,
)
from punie_protocol.messages.to_worker import Ping
from punie_protocol.permissions import Grant
from punie_protocol.testing.loopback import MODEL_CLIENT, SUPERVISOR, WORKER, loopback
from punie_protocol.testing.replies import Replies
from punie_protocol.testing.script import (
    Action,
    Call,
    Die,
    Fail,
    Reply,
    Say,
    Think,
    Wait,
    call,
    load,
    model_info,
    reply,
    say,
    told,
    tool_results,
    turn,
)
from punie_protocol.testing.scripted_host import ScriptedHost
from punie_protocol.testing.store import FakeJournal, SessionRecord
from punie_protocol.testing.waiting import until, within

ASKED = UserMessage(text="do it")
ANSWERED = AssistantMessage(text="well")
RESULT = ToolMessage(call_id="c", name="t", text="42")


def generate(*messages: UserMessage | AssistantMessage | ToolMessage, id: int = 1) -> Generate:
    return Generate(
        request_id=id,
        client_id="c",
        conversation_id="s",
        priority=Priority.INTERACTIVE,
        messages=list(messages) or [ASKED],
    )


type Client = FrameLink[ToModelClient]


def with_host(host: ScriptedHost, test: Callable[[Client], Awaitable[None]]) -> out.ModelWelcome:
    async def main() -> out.ModelWelcome:
        async with host:
            client = await FrameLink[ToModelClient].connect(host.path, MODEL_CLIENT, name="host")
            try:
                welcome = await within(greet_model_host(client), "welcome")
                await test(client)
            finally:
                client.abort("test over")
            return welcome

    return asyncio.run(main())


async def answer(client: Client, request: Generate) -> list[ToModelClient]:
    await client.send(request)
    received: list[ToModelClient] = []
    while not received or not isinstance(received[-1], out.Finished | out.Failed):
        received.append(await within(client.receive(), "answer"))
    return received


def test_a_reply_is_played_in_order(tmp_path: Path) -> None:
    script = [reply(Think("hm"), Wait(0.0), Say("one two", chunk=4), Call("t", {"n": 1}, "id"))]
    host = ScriptedHost(tmp_path / "s", script)

    async def test(client: Client) -> None:
        received = await answer(client, generate())
        assert received[:4] == [
            out.ThinkingDelta(request_id=1, text="hm"),
            out.TextDelta(request_id=1, text="one "),
            out.TextDelta(request_id=1, text="two"),
            out.ToolCall(request_id=1, call_id="id", name="t", arguments='{"n":1}'),
        ]
        end = received[4]
        assert isinstance(end, out.Finished)
        assert end.stop_reason is out.StopReason.TOOL_CALLS

    assert with_host(host, test).model == model_info()
    assert [len(request.messages) for request in host.requests] == [1]


def test_a_step_may_look_at_the_request(tmp_path: Path) -> None:
    def step(request: Generate) -> Reply:
        return say(f"{told(request)} of {len(tool_results(request))}")

    async def test(client: Client) -> None:
        first, *_ = await answer(client, generate(ASKED, ANSWERED, RESULT))
        assert first == out.TextDelta(request_id=1, text="42 of 1")

    with_host(ScriptedHost(tmp_path / "s", [step]), test)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "the script is over"),
        ([lambda request: 1 / 0], "the script failed: ZeroDivisionError"),
        ([reply(Say("x"), Fail(ModelFault(message="tired")))], "tired"),
    ],
)
def test_a_request_can_fail(tmp_path: Path, steps: list, message: str) -> None:
    async def test(client: Client) -> None:
        failed = (await answer(client, generate()))[-1]
        assert isinstance(failed, out.Failed)
        assert message in failed.error.message

    with_host(ScriptedHost(tmp_path / "s", steps), test)


def test_a_cancelled_request_ends(tmp_path: Path) -> None:
    host = ScriptedHost(tmp_path / "s", [reply(Say("x"), Wait(1000)), say("next")])

    async def test(client: Client) -> None:
        await client.send(generate())
        assert isinstance(await within(client.receive(), "text"), out.TextDelta)
        await client.send(CancelGenerate(request_id=1))
        failed = await within(client.receive(), "failure")
        assert isinstance(failed, out.Failed)
        assert isinstance(failed.error, Cancelled)
        await client.send(CancelGenerate(request_id=1))
        assert (await answer(client, generate(id=2)))[0] == out.TextDelta(request_id=2, text="next")

    with_host(host, test)
    assert host.cancelled == [1, 1]


def test_a_host_that_dies_listens_on(tmp_path: Path) -> None:
    host = ScriptedHost(tmp_path / "s", [reply(Say("x"), Die()), say("back")])

    async def test(client: Client) -> None:
        with pytest.raises(LinkClosed):
            await answer(client, generate())
        again = await FrameLink[ToModelClient].connect(host.path, MODEL_CLIENT, name="host")
        await greet_model_host(again)
        assert (await answer(again, generate()))[0] == out.TextDelta(request_id=1, text="back")
        again.abort("done")

    with_host(host, test)


def test_a_host_finds_a_place_for_its_socket(tmp_path: Path) -> None:
    host = ScriptedHost(script=[say("hi")])
    places = []

    async def test(client: Client) -> None:
        places.append(Path(host.path))
        assert (await answer(client, generate()))[0] == out.TextDelta(request_id=1, text="hi")

    with_host(host, test)
    assert not places[0].parent.exists()
    deep = ScriptedHost(tmp_path / ("x" * 120))
    with pytest.raises(PunieError, match="is too deep") as refused:
        with_host(deep, test)
    assert "leave the path out" in refused.value.error.hint


def test_tokens_are_counted(tmp_path: Path) -> None:
    tool = ToolSchema(name="t", description="d" * 20, parameters="p" * 20)
    host = ScriptedHost(tmp_path / "s")

    async def test(client: Client) -> None:
        for id, tools in enumerate(([], [tool])):
            await client.send(CountTokens(request_id=id, messages=[ASKED, RESULT], tools=tools))
        plain, more = [await within(client.receive(), "count") for _ in range(2)]
        assert isinstance(plain, out.TokenCount)
        assert isinstance(more, out.TokenCount)
        assert 0 < plain.tokens < more.tokens == plain.tokens + 10
        host.count = lambda asked: 7
        await client.send(CountTokens(request_id=9, messages=[]))
        assert await within(client.receive(), "count") == out.TokenCount(request_id=9, tokens=7)

    with_host(host, test)
    assert len(host.counts) == 3


def test_a_turn_finds_its_place_in_the_conversation() -> None:
    play = turn(call("t", n=1), say("done"))
    assert callable(play)
    assert play(generate(ASKED)) == call("t", n=1)
    assert play(generate(ANSWERED, ASKED)) == call("t", n=1)
    assert play(generate(ASKED, ANSWERED, RESULT)) == say("done")
    over = play(generate(ASKED, ANSWERED, RESULT, ANSWERED, RESULT))
    assert isinstance(over, Reply)
    assert isinstance(over.actions[0], Fail)


def test_every_action_comes_from_a_file(tmp_path: Path) -> None:
    actions: tuple[Action, ...] = (
        Say("a"),
        Think("b"),
        Call("t", {"x": [1]}),
        Wait(1.0),
        Fail(Internal(message="m"), Usage(input_tokens=1)),
        Die(),
    )
    assert {type(action) for action in actions} == set(Action.__value__.__args__)
    (tmp_path / "script").write_bytes(msgspec.json.encode([Reply(actions)]))
    assert load(tmp_path / "script") == [Reply(actions)]
    with pytest.raises(PunieError, match="is no script"):
        load(tmp_path / "nothing")


# the journal


def delta(ordinal: int, session_id: str = "s") -> StoreDelta:
    return StoreDelta(
        request_id=1, session_id=session_id, prompt_id="q", ordinal=ordinal, data=b"[]"
    )


def started(effect_id: str, ordinal: int) -> EffectStarted:
    return EffectStarted(
        request_id=1,
        session_id="s",
        prompt_id="q",
        ordinal=ordinal,
        effect_id=effect_id,
        tool="write_file",
        arguments=b"{}",
    )


def finished(effect_id: str) -> EffectFinished:
    return EffectFinished(request_id=1, session_id="s", effect_id=effect_id, ok=True, summary="+1")


@pytest.fixture
def journal() -> FakeJournal:
    journal = FakeJournal()
    journal.sessions["s"] = SessionRecord(project_id="p")
    return journal


def test_the_journal_keeps_what_the_real_one_keeps(journal: FakeJournal) -> None:
    grant = Grant(key="edit", allow=True)
    stored = [
        started("a", 0),
        delta(0),
        delta(1),
        started("b", 2),
        finished("b"),
        started("c", 2),
        StoreGrant(request_id=1, session_id="s", grant=Grant(key="edit", allow=False)),
        StoreGrant(request_id=1, session_id="s", grant=grant),
        StoreTrust(request_id=1, project_id="p", digest="d"),
    ]
    assert [journal.store(message) for message in stored] == [None] * len(stored)
    record = journal.session("s")
    assert (record.deltas, record.stored("q"), record.stored("r")) == ([b"[]"] * 2, 2, 0)
    assert [(one.effect_id, one.ok) for one in record.open_effects()] == [("b", True), ("c", None)]
    assert (record.grants, journal.trusts) == ([grant], {"p": "d"})
    assert journal.messages == stored


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (delta(1), InvalidRequest),
        (delta(0, "other"), NotFound),
        (finished("nothing"), InvalidRequest),
        (finished("over"), InvalidRequest),
        (started("twice", 0), InvalidRequest),
    ],
)
def test_the_journal_refuses_what_the_real_one_refuses(
    journal: FakeJournal, message: StoreDelta, error: type
) -> None:
    for before in (started("twice", 0), started("over", 0), finished("over")):
        assert journal.store(before) is None
    assert isinstance(journal.store(message), error)


def test_the_journal_can_be_made_to_refuse(journal: FakeJournal) -> None:
    full = Internal(message="disk full")
    journal.refuse = lambda message: full if isinstance(message, StoreDelta) else None
    assert journal.store(delta(0)) is full
    assert journal.store(started("a", 0)) is None
    assert not journal.session("s").deltas


# loopback and waits


def test_a_loopback_has_two_ends() -> None:
    async def main() -> None:
        async with loopback(SUPERVISOR, WORKER) as (supervisor, worker):
            await supervisor.send(Ping(nonce=3))
            assert await worker.receive() == Ping(nonce=3)
            await worker.send(delta(0))
            assert await supervisor.receive() == delta(0)
        assert supervisor.is_closed
        assert worker.is_closed

    asyncio.run(main())


def test_a_wait_ends_and_says_for_what() -> None:
    async def main() -> None:
        for wait in (
            within(asyncio.Event().wait(), "bus", 0.01),
            until(lambda: False, "bus", 0.01),
        ):
            with pytest.raises(PunieError, match=r"no bus within 0\.01 s") as late:
                await wait
            assert isinstance(late.value.error, TimedOut)
        await until(lambda: True)
        assert await within(asyncio.sleep(0, "here"), "bus") == "here"

    asyncio.run(main())


def test_nobody_waits_for_a_worker_that_is_gone() -> None:
    async def main() -> None:
        replies = Replies()
        with pytest.raises(LinkClosed):
            replies.expect("pong", 1)
        replies.open()
        waiting = replies.expect("pong", 1)
        unheard = replies.expect("pong", 2)
        unheard.cancel()
        assert not replies.deliver("rpc", 1, "x")
        replies.close(LinkClosed("gone"))
        with pytest.raises(LinkClosed, match="gone"):
            await waiting
        with pytest.raises(LinkClosed, match="gone"):
            replies.expect("pong", 3)
        assert not replies.deliver("pong", 1, "x")

    asyncio.run(main())
