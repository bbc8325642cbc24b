"""The desk between clients and engine: real tokenizers in real threads; commands are caught."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from punie_model_host import desk as desks
from punie_model_host.desk import FEW, MAX_LIVE, MAX_NAME, MAX_OF_CLIENT, Desk
from punie_model_host.engine_messages import Cancel, Command, Key, Refused, Submit
from punie_model_host.facts import ModelFacts
from punie_model_host.folder import check_folder
from punie_model_host.intake import LONG
from punie_model_host.loading import build
from punie_model_host.prepare import Prepared, Reader
from punie_protocol import errors
from punie_protocol.errors import LinkClosed, PunieError
from punie_protocol.messages.common import Priority, Usage
from punie_protocol.messages.to_model_client import (
    Failed,
    Finished,
    StepTimings,
    StopReason,
    TextDelta,
    TokenCount,
    ToModelClient,
)
from punie_protocol.messages.to_model_host import CountTokens, Generate, Sampling, UserMessage
from tests.support.tiny_model import make_tiny_model

DEADLINE = 10.0


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    return build(check_folder(folder)).facts


class Client:
    """A sink that keeps what it got; closed, it refuses."""

    def __init__(self) -> None:
        self.got: list[ToModelClient] = []
        self.closed = False

    def send(self, message: ToModelClient) -> None:
        if self.closed:
            raise LinkClosed("gone")
        self.got.append(message)

    def error(self) -> errors.WireError:
        assert isinstance(self.got[-1], Failed)
        return self.got[-1].error


class Bench:
    def __init__(self, facts: ModelFacts | None) -> None:
        self.commands: list[Command] = []
        self.desk = Desk(self._post)
        self.desk.model_is(facts)
        self.client = Client()
        self.number = self.desk.enter(self.client)

    def _post(self, command: Command) -> bool:
        self.commands.append(command)
        return True

    async def until(self, done: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not done():  # noqa: ASYNC110  what is awaited comes from threads
                await asyncio.sleep(0.001)

    def submitted(self) -> list[Submit]:
        return [command for command in self.commands if isinstance(command, Submit)]


def ask(id: int, text: str = "hi", *, client: str = "c", **sampling: Any) -> Generate:
    return Generate(
        request_id=id,
        client_id=client,
        conversation_id="v",
        priority=Priority.INTERACTIVE,
        messages=[UserMessage(text=text)],
        sampling=Sampling(**sampling),
    )


def finished(id: int) -> Finished:
    timings = StepTimings(queue=0, prefill=0, decode=0)
    return Finished(request_id=id, stop_reason=StopReason.STOP, usage=Usage(), timings=timings)


def run(test: Callable[[Bench], Coroutine[Any, Any, None]], facts: ModelFacts | None) -> None:
    async def with_desk() -> None:
        bench = Bench(facts)
        try:
            await test(bench)
        finally:
            bench.desk.close()

    asyncio.run(with_desk())


def test_a_request_is_read_before_the_engine_has_it(facts: ModelFacts) -> None:
    async def test(bench: Bench) -> None:
        bench.desk.submit(bench.number, ask(1, "hello", max_tokens=5))
        await bench.until(bench.submitted)
        (submit,) = bench.submitted()
        assert submit.prepared is not None
        assert (submit.prepared.max_tokens, submit.prepared.folder) == (5, str(facts.path))
        assert len(submit.prepared.tokens) > 5
        bench.desk.deliver(submit.key, TextDelta(request_id=1, text="x"))
        bench.desk.deliver(submit.key, finished(1))
        bench.desk.deliver(submit.key, TextDelta(request_id=1, text="late"))
        assert [type(message) for message in bench.client.got] == [TextDelta, Finished]
        assert bench.desk.live == 0

    run(test, facts)


def test_without_a_model_the_engine_says_why(facts: ModelFacts) -> None:
    async def test(bench: Bench) -> None:
        bench.desk.submit(bench.number, ask(1))
        (submit,) = bench.submitted()
        assert submit.prepared is None

    run(test, None)


def test_a_bad_request_never_reaches_the_engine(facts: ModelFacts) -> None:
    async def test(bench: Bench) -> None:
        bench.desk.submit(bench.number, ask(1, top_p=7.0))
        await bench.until(lambda: bench.client.got)
        assert isinstance(bench.client.error(), errors.InvalidRequest)
        assert bench.commands == [Refused("c", "invalid_request")]
        assert bench.desk.live == 0

    run(test, facts)


def test_a_prompt_of_many_megabytes_is_refused_without_a_tokenizer(
    facts: ModelFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_tokenizer(*_: object) -> None:
        raise AssertionError("it was rendered")

    async def test(bench: Bench) -> None:
        bench.desk.submit(bench.number, ask(1, "x" * 100_000_000))
        await bench.until(lambda: bench.client.got)
        error = bench.client.error()
        assert isinstance(error, errors.ContextOverflow)
        assert error.limit == facts.profile.context_window < error.tokens
        assert "100000000 characters" in error.message

    monkeypatch.setattr("punie_model_host.prepare.render", no_tokenizer)
    run(test, facts)


def test_a_cancel_while_it_is_read_ends_it_once(facts: ModelFacts) -> None:
    async def test(bench: Bench) -> None:
        bench.desk.submit(bench.number, ask(1))
        bench.desk.cancel(bench.number, 1)
        assert isinstance(bench.client.error(), errors.Cancelled)
        bench.desk.submit(bench.number, ask(1, max_tokens=7))  # the id is free again
        await bench.until(bench.submitted)
        (submit,) = bench.submitted()
        assert submit.prepared is not None
        assert submit.prepared.max_tokens == 7
        assert len(bench.client.got) == 1

    run(test, facts)


def test_a_cancel_is_told_to_the_engine_once(facts: ModelFacts) -> None:
    async def test(bench: Bench) -> None:
        bench.desk.submit(bench.number, ask(1))
        for _ in range(3):
            bench.desk.cancel(bench.number, 1)
        bench.desk.cancel(bench.number, 9)
        bench.desk.leave(bench.number)
        assert [c for c in bench.commands if isinstance(c, Cancel)] == [Cancel(Key(1, 1))]
        bench.desk.deliver(Key(1, 1), finished(1))  # of a client that is gone
        assert bench.desk.live == 0

    run(test, None)


def test_who_leaves_takes_its_requests_along(facts: ModelFacts) -> None:
    async def test(bench: Bench) -> None:
        other = bench.desk.enter(Client())
        for number, id in ((bench.number, 1), (bench.number, 2), (other, 1)):
            bench.desk.submit(number, ask(id))
        bench.desk.leave(bench.number)
        cancelled = [c.key for c in bench.commands if isinstance(c, Cancel)]
        assert cancelled == [Key(bench.number, 1), Key(bench.number, 2)]

    run(test, None)


def test_the_limits_are_named_and_hold(facts: ModelFacts) -> None:
    async def test(bench: Bench) -> None:
        for id in range(MAX_OF_CLIENT + 1):
            bench.desk.submit(bench.number, ask(id))
        assert isinstance(bench.client.error(), errors.Overloaded)
        assert str(MAX_OF_CLIENT) in bench.client.error().message
        for id in range(MAX_OF_CLIENT, MAX_LIVE + 1):
            bench.desk.submit(bench.number, ask(id, client=f"c{id}"))
        assert str(MAX_LIVE) in bench.client.error().message
        assert bench.desk.live == MAX_LIVE
        bench.desk.submit(bench.number, ask(9999, client="x" * (MAX_NAME + 1)))
        assert isinstance(bench.client.error(), errors.InvalidRequest)
        with pytest.raises(PunieError, match="in use"):
            bench.desk.submit(bench.number, ask(0))
        bench.desk.cancel_all()
        bench.desk.submit(bench.number, ask(99_999))
        assert isinstance(bench.client.error(), errors.ModelUnavailable)

    run(test, None)


def test_a_sink_that_is_closed_harms_nobody(facts: ModelFacts) -> None:
    async def test(bench: Bench) -> None:
        bench.desk.submit(bench.number, ask(1))
        bench.client.closed = True
        bench.desk.deliver(Key(1, 1), TextDelta(request_id=1, text="x"))
        bench.desk.deliver(Key(1, 1), finished(1))
        assert bench.desk.live == 0

    run(test, None)


def test_a_short_conversation_does_not_wait_for_a_long_one(
    facts: ModelFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(bench: Bench) -> None:
        bench.desk.submit(bench.number, ask(1, "x" * LONG))
        bench.desk.submit(bench.number, ask(2))
        await bench.until(bench.submitted)
        assert bench.submitted()[0].key.request_id == 2

    monkeypatch.setattr("punie_model_host.prepare.Reader._check_size", lambda *_: None)
    run(test, facts)


def test_who_asks_and_cancels_leaves_nothing_to_read(facts: ModelFacts) -> None:
    async def test(bench: Bench) -> None:
        read: list[str] = []

        def slow(reader: Reader, request: Generate) -> Prepared:
            read.append(request.client_id)
            return prepare(reader, request)

        prepare = Reader.prepare
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Reader, "prepare", slow)
            for id in range(100):
                bench.desk.submit(bench.number, ask(id, client="greedy"))
                bench.desk.cancel(bench.number, id)
            bench.desk.submit(bench.number, ask(1000, client="other"))
            await bench.until(bench.submitted)
        assert read.count("greedy") <= 1
        assert bench.desk.live == 1

    run(test, facts)


def test_clients_take_turns_to_be_read(facts: ModelFacts) -> None:
    async def test(bench: Bench) -> None:
        for id in range(50):
            bench.desk.submit(bench.number, ask(id, client="greedy"))
        bench.desk.submit(bench.number, ask(1000, client="other"))
        await bench.until(lambda: len(bench.submitted()) == 51)
        order = [submit.request.client_id for submit in bench.submitted()]
        assert order.index("other") <= 2

    run(test, facts)


def test_who_comes_by_http_leaves_room_for_projects(facts: ModelFacts) -> None:
    async def test(bench: Bench) -> None:
        http = Client()
        number = bench.desk.enter(http, FEW)
        for id in range(FEW + 1):
            bench.desk.submit(number, ask(id, client=f"http:{id}"))
        assert isinstance(http.error(), errors.Overloaded)
        bench.desk.submit(bench.number, ask(1))
        assert bench.desk.live == FEW + 1
        bench.desk.leave(number)
        bench.desk.cancel(bench.number, 1)
        assert bench.desk.live == 0

    run(test, facts)


def test_counts_are_answered_and_bounded(facts: ModelFacts) -> None:
    async def test(bench: Bench) -> None:
        for id in range(40):
            bench.desk.count(
                bench.number, CountTokens(request_id=id, messages=[UserMessage(text="hi")])
            )
        await bench.until(lambda: len(bench.client.got) == 40)
        counts = [message for message in bench.client.got if isinstance(message, TokenCount)]
        assert len(counts) == 32
        assert len({count.tokens for count in counts}) == 1
        assert bench.desk.quiet_s == 0.0

    run(test, facts)


def test_quiet_is_of_requests_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(desks.time, "monotonic", lambda: now)
    bench = Bench(None)
    now = 200.0
    assert bench.desk.quiet_s == 0.0
    bench.desk.submit(bench.number, ask(1))
    now = 230.0
    assert bench.desk.quiet_s == 30.0
    bench.desk.deliver(Key(1, 1), TextDelta(request_id=1, text="x"))
    assert bench.desk.quiet_s == 0.0
