"""`PunieModel` over a real socket, against a scripted model host."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters

from punie_protocol.errors import (
    ContextOverflow,
    InvalidRequest,
    LinkClosed,
    ModelFault,
    Overloaded,
    PunieError,
    RemoteError,
    TimedOut,
    WireError,
)
from punie_protocol.messages.common import ModelInfo, PromptStyle, Usage
from punie_protocol.messages.to_model_client import StopReason
from punie_protocol.messages.to_model_host import SystemMessage, ToolSchema, UserMessage
from punie_protocol.testing.script import (
    Call,
    Die,
    Fail,
    Reply,
    Say,
    Think,
    Wait,
    model_info,
    reply,
)
from punie_protocol.testing.scripted_host import ScriptedHost
from punie_workers.compaction import Compactor
from punie_workers.layout import Compaction
from punie_workers.model import RETRY_DELAYS, PunieModel, overhead
from punie_workers.model_client import ModelClient
from punie_workers.prompts import Instructions

PARAMETERS = ModelRequestParameters()
TOLD = Instructions("rules", (ToolSchema(name="t", description="d", parameters="{}"),), "project")
_sockets = itertools.count()


class Rig:
    """A model with its compactor, what these said and stored, and the host."""

    def __init__(self, host: ScriptedHost, client: ModelClient, info: ModelInfo) -> None:
        self.host = host
        self.notices: list[str] = []
        self.stored: list[Compaction] = []
        compactor = Compactor(None, self.notices.append, self._store)
        self.model = PunieModel(
            client,
            info,
            client_id="project",
            conversation_id="s1",
            instructions=TOLD,
            compactor=compactor,
        )

    async def _store(self, compaction: Compaction) -> None:
        self.stored.append(compaction)

    async def ask(self, messages: Sequence[ModelMessage] | None = None) -> ModelResponse:
        conversation = list(messages) if messages is not None else prompt("hello")
        return await self.model.request(conversation, None, PARAMETERS)


def prompt(text: str) -> list[ModelMessage]:
    return [ModelRequest(parts=[UserPromptPart(text)])]


def run(
    folder: Path,
    script: list[Reply],
    work: Callable[[Rig], Awaitable[None]],
    *,
    window: int = 32_768,
) -> None:
    """Do `work` with a model that plays `script`."""

    async def main() -> None:
        path = str(folder / f"model-{next(_sockets)}.sock")
        info = model_info(PromptStyle.TOOLS, window=window)
        async with ScriptedHost(path, script, info) as host:
            client = ModelClient(path)
            try:
                await work(Rig(host, client, info))
            finally:
                client.close()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    """Poll for 5 s."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it did not come to that within 5 s")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place whose socket paths are short enough wherever tests run."""
    monkeypatch.chdir(tmp_path)
    return Path()


def test_what_is_sent_and_what_comes(folder: Path) -> None:
    async def work(rig: Rig) -> None:
        answer = await rig.ask()
        assert answer.text == "fine"
        assert answer.thinking == "hm"
        assert [call.tool_name for call in answer.tool_calls] == ["search"]
        (request,) = rig.host.requests
        assert request.messages == [
            SystemMessage(text="rules"),
            UserMessage(text="project"),
            UserMessage(text="hello"),
        ]
        assert request.tools == list(TOLD.tools)
        assert overhead(TOLD) == len("rules" + "project" + "t" + "d" + "{}")

    run(folder, [reply(Think("hm"), Say("fine"), Call("search", {}))], work)


def test_each_step_is_timed_and_counted(folder: Path) -> None:
    async def work(rig: Rig) -> None:
        totals = rig.model.totals
        totals.started = time.perf_counter()
        await rig.ask()
        await rig.ask()
        first, second = totals.steps
        assert 0 <= first.start_ms <= first.start_ms + first.wall_ms <= second.start_ms + 0.01
        assert (first.queue, first.prefill, first.decode) == (1.0, 2.0, 3.0)
        assert (totals.queue, totals.prefill, totals.decode) == (2.0, 4.0, 6.0)
        assert totals.usage == first.usage + second.usage
        assert totals.stop_reason is StopReason.LENGTH
        assert totals.first_token is not None
        assert totals.first_token >= totals.started

    run(folder, [reply(Say("a")), reply(Say("b"), stop_reason=StopReason.LENGTH)], work)


def test_a_failed_step_counts_too(folder: Path) -> None:
    spent = Usage(input_tokens=70, cached_tokens=7, output_tokens=30)

    async def work(rig: Rig) -> None:
        with pytest.raises(RemoteError, match="no number"):
            await rig.ask()
        with pytest.raises(RemoteError, match="no number"):
            await rig.ask()
        assert rig.model.totals.usage == spent + spent
        assert [step.usage for step in rig.model.totals.steps] == [spent, spent]
        assert rig.model.totals.stop_reason is None

    fault = Fail(ModelFault(message="no number"), spent)
    run(folder, [reply(fault), reply(Say("half"), fault)], work)


PASSING = [Overloaded(message="full"), TimedOut(message="late", limit_s=1.0)]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_a_failure_that_may_pass_is_tried_again(folder: Path, error: WireError) -> None:
    async def work(rig: Rig) -> None:
        assert (await rig.ask()).text == "fine"
        first, second = rig.host.requests
        assert first.messages == second.messages
        assert first.request_id != second.request_id

    run(folder, [reply(Fail(error)), reply(Say("fine"))], work)


def test_it_is_not_tried_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("punie_workers.model.RETRY_DELAYS", (0.0,) * len(RETRY_DELAYS))

    async def work(rig: Rig) -> None:
        with pytest.raises(RemoteError, match="full"):
            await rig.ask()
        assert len(rig.host.requests) == 1 + len(RETRY_DELAYS)

    run(folder, [reply(Fail(PASSING[0]))] * 9, work)


def test_what_was_streamed_or_cannot_pass_is_not_tried_again(folder: Path) -> None:
    async def work(rig: Rig) -> None:
        for message in ("full", "wrong"):
            with pytest.raises(RemoteError, match=message):
                await rig.ask()
        with pytest.raises(LinkClosed):
            await rig.ask()
        assert len(rig.host.requests) == 3

    wrong = InvalidRequest(message="wrong")
    run(folder, [reply(Say("x"), Fail(PASSING[0])), reply(Fail(wrong)), reply(Die())], work)


def test_a_cancelled_wait_for_the_next_try_sends_nothing_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("punie_workers.model.RETRY_DELAYS", (60.0,))

    async def work(rig: Rig) -> None:
        asked = asyncio.ensure_future(rig.ask())
        await until(lambda: bool(rig.model.totals.steps))
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert len(rig.host.requests) == 1

    run(folder, [reply(Fail(PASSING[0]))], work)


def test_closing_an_answer_cancels_it_in_the_host(folder: Path) -> None:
    async def work(rig: Rig) -> None:
        async with rig.model.request_stream(prompt("hello"), None, PARAMETERS) as stream:
            async for _ in stream:
                break
        await until(lambda: bool(rig.host.cancelled))
        assert rig.host.cancelled == [rig.host.requests[0].request_id]

    run(folder, [reply(Say("x"), Wait(60.0))], work)


def overflow(tokens: int, limit: int) -> Fail:
    return Fail(ContextOverflow(message="too long", tokens=tokens, limit=limit))


def talk(turns: int) -> list[ModelMessage]:
    messages: list[ModelMessage] = []
    for n in range(turns):
        messages += prompt(f"p{n} " + "x" * 4000)
        messages += [
            ModelResponse(parts=[ToolCallPart("search", "{}", f"c{n}")]),
            ModelRequest(parts=[ToolReturnPart("search", "y" * 4000, f"c{n}")]),
            ModelResponse(parts=[TextPart(f"a{n}")]),
        ]
    return [*messages, *prompt("last")]


def test_a_refusal_for_length_is_answered_with_less(folder: Path) -> None:
    async def work(rig: Rig) -> None:
        assert (await rig.ask(talk(4))).text == "fine"
        refused, _, sent = rig.host.requests
        assert len(str(sent.messages)) < len(str(refused.messages)) * 0.7
        assert sent.messages[:2] == refused.messages[:2]
        assert "what was said" in str(sent.messages[2])
        assert [one.turns for one in rig.stored] == [4]
        assert any("earlier conversation summarised" in notice for notice in rig.notices)

    script = [reply(overflow(40_000, 20_000)), reply(Say("what was said")), reply(Say("fine"))]
    run(folder, script, work)


def test_a_summary_is_no_part_of_the_answer_but_of_the_bill(folder: Path) -> None:
    async def work(rig: Rig) -> None:
        answer = await rig.ask(talk(4))
        asked, _ = rig.host.requests
        assert asked.tools == []
        assert asked.sampling.max_tokens == 1000
        assert asked.conversation_id != rig.host.requests[1].conversation_id
        assert [type(message) for message in asked.messages] == [UserMessage]
        assert answer.text == "fine"
        assert len(rig.model.totals.steps) == 2
        assert rig.model.totals.stop_reason is StopReason.STOP

    script = [reply(Say("sum"), stop_reason=StopReason.LENGTH), reply(Say("fine"))]
    run(folder, script, work, window=8000)


def test_refusals_come_to_an_end(folder: Path) -> None:
    async def work(rig: Rig) -> None:
        with pytest.raises(PunieError) as raised:
            await rig.ask(talk(2))
        assert isinstance(raised.value.error, ContextOverflow)
        assert "start a new session" in raised.value.error.hint
        assert len(rig.host.requests) < 25

    run(folder, [reply(overflow(40_000, 20_000))] * 50, work)


@pytest.mark.parametrize("begun", [False, True])
def test_a_cancelled_wait_is_the_models_time(folder: Path, begun: bool) -> None:
    script = [reply(*([Say("words")] if begun else []), Wait(60))]

    async def work(rig: Rig) -> None:
        asking = asyncio.create_task(rig.ask())
        await until(lambda: bool(rig.host.requests) and (not begun or _has_token(rig)))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        (step,) = rig.model.totals.steps
        assert 0 < step.prefill <= step.wall_ms
        assert (step.decode > 0) is begun
        assert (rig.model.totals.prefill, rig.model.totals.decode) == (step.prefill, step.decode)

    run(folder, script, work)


def _has_token(rig: Rig) -> bool:
    return rig.model.totals.first_token is not None


def test_a_wait_for_the_connection_is_queueing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("punie_workers.model_client.CONNECT_TIMEOUT", 0.05)

    async def work(_: Rig) -> None:
        client = ModelClient(str(folder / "nobody.sock"))
        compactor = Compactor(None, lambda _: None, _store_nothing)
        model = PunieModel(
            client,
            model_info(PromptStyle.TOOLS),
            client_id="c",
            conversation_id="s",
            instructions=TOLD,
            compactor=compactor,
        )
        with pytest.raises(PunieError):
            await model.request(prompt("hello"), None, PARAMETERS)
        step = model.totals.steps[-1]
        assert step.queue > 0
        assert step.prefill == step.decode == 0
        client.close()

    run(folder, [], work)


async def _store_nothing(_: Compaction) -> None:
    pass
