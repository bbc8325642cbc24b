"""A model host of two ranks under the real ``mlx.launch``, over the loopback interface: what one
host says that has the whole model, they say."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from openai import BadRequestError

from punie_protocol.codec import MessageDecoder
from punie_protocol.errors import Cancelled, LinkClosed
from punie_protocol.handshake import greet_model_host
from punie_protocol.link import FrameLink
from punie_protocol.messages.common import Priority
from punie_protocol.messages.to_model_client import Failed, Finished, TextDelta, ToModelClient
from punie_protocol.messages.to_model_host import (
    CancelGenerate,
    Generate,
    LoadModel,
    Sampling,
    UserMessage,
)
from punie_protocol.messages.to_supervisor import Load, ModelState
from tests.support.http_client import HttpConnection, request
from tests.support.rank_hosts import (
    DEADLINE,
    KEY,
    Hosts,
    alone,
    free_ports,
    launched,
)
from tests.support.served_host import ServedHost, served
from tests.support.small_models import Kind, make_small_model
from tests.support.tiny_model import make_tiny_model

pytestmark = pytest.mark.timeout(120)

WORDS = "the tide came in over the sand and took the marks away "
PROMPTS = [WORDS[n:] * (n + 1) for n in range(4)]
LONG = WORDS * 12
TOKENS = 12
DIVIDED = {"tensor": Kind.QWEN3, "pipeline": Kind.QWEN3_MOE}


def dosed[T](cases: list[T]) -> list[T]:
    """Return the first case, a pair of hosts is dear; all of them where ``PUNIE_KILLS`` asks for
    the big dose."""
    return cases if "PUNIE_KILLS" in os.environ else cases[:1]


_decoder: MessageDecoder[ToModelClient] = MessageDecoder("client", ToModelClient)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in (*DIVIDED.values(), Kind.GEMMA3):
        make_small_model(folder / kind.value, kind)
    return folder


# what they say


async def said(hosts: Hosts, text: str, **wishes: float) -> tuple[str, int]:
    """Return an answer through the HTTP door, and how much of its prompt was cached."""
    async with hosts.client() as client:
        answer = await client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": text}],
            extra_body={"max_tokens": TOKENS} | wishes,
        )
    assert answer.usage is not None
    details = answer.usage.prompt_tokens_details
    content = answer.choices[0].message.content
    assert content is not None
    return content, (details.cached_tokens or 0) if details else 0


async def together(hosts: Hosts, prompts: Sequence[str], **wishes: float) -> list[str]:
    """Return answers that are computed beside one another."""
    answers = await asyncio.gather(*(said(hosts, prompt, **wishes) for prompt in prompts))
    return [text for text, _cached in answers]


async def everything(hosts: Hosts) -> dict[str, list[str]]:
    """Greedy and drawn answers, together and alone, and again from what is cached."""
    results = {
        "greedy": await together(hosts, PROMPTS, temperature=0),
        "drawn": await together(hosts, PROMPTS, temperature=0.8, seed=5, top_p=0.95),
        "penalized": await together(hosts, PROMPTS[:1], temperature=0, frequency_penalty=0.7),
    }
    first, _ = await said(hosts, LONG, temperature=0.5, seed=1)
    again, cached = await said(hosts, LONG, temperature=0.5, seed=1)
    assert cached > len(LONG) // 2
    assert again == first
    return results | {"cached": [again]}


def ask(request_id: int, text: str, tokens: int, temperature: float = 0.0) -> Generate:
    return Generate(
        request_id=request_id,
        client_id="c",
        conversation_id="v",
        priority=Priority.INTERACTIVE,
        messages=[UserMessage(text=text)],
        sampling=Sampling(temperature=temperature, max_tokens=tokens),
    )


async def over_the_socket(hosts: Hosts) -> str:
    """Cancel a request while it is answered; return the answer of another beside it."""
    link = await FrameLink.connect(str(hosts.socket), _decoder, name="host")
    try:
        await greet_model_host(link)
        await link.send(ask(1, LONG, 1500))
        await link.send(ask(2, PROMPTS[1], TOKENS))
        ends: dict[int, Finished | Failed] = {}
        text, cancelled = "", False
        while len(ends) < 2:
            match await link.receive():
                case TextDelta(request_id=1) if not cancelled:
                    cancelled = True
                    await link.send(CancelGenerate(request_id=1))
                case TextDelta(request_id=2, text=more):
                    text += more
                case Finished(request_id=id) | Failed(request_id=id) as end:
                    ends[id] = end
                case _:
                    continue
        assert isinstance(ends[1], Failed)
        assert isinstance(ends[1].error, Cancelled)
        assert isinstance(ends[2], Finished)
        return text
    finally:
        link.close()


@pytest.mark.parametrize("how", DIVIDED)
def test_ranks_say_what_one_says(models: Path, tmp_path: Path, how: str):
    model = models / DIVIDED[how].value

    async def talk(hosts: Hosts) -> tuple[dict[str, list[str]], str]:
        hosts.until("door-open")
        async with asyncio.timeout(DEADLINE):
            return await everything(hosts), await over_the_socket(hosts)

    with alone(tmp_path / "one", model) as one:
        whole = asyncio.run(talk(one))
    with launched(tmp_path / "two", model, "--sharding", how) as two:
        assert asyncio.run(talk(two)) == whole
        assert two.log.read_text().count(f"divided how={how}") == 2
        end = signal.SIGTERM if how == "tensor" else signal.SIGINT
        two.ranks()[0].send_signal(end)
        assert two.ended() == 0
        assert "rank-ended rank=1" in two.log.read_text()


def test_drafts_are_shown_to_all_ranks(tmp_path: Path):
    words = ["tick", " tock", " tack"]
    model = make_tiny_model(tmp_path / "endless", says=words, loop=True, context_window=4096)

    async def test(hosts: Hosts) -> None:
        text, _cached = await said(hosts, "hi", temperature=0, max_tokens=60)
        assert text == "".join(words) * 20
        async with asyncio.timeout(DEADLINE):
            while not await accepted(hosts):
                pass

    with launched(tmp_path / "two", model) as hosts:
        hosts.until("door-open")
        asyncio.run(test(hosts))


async def accepted(hosts: Hosts) -> bool:
    """Return whether the metrics count drafts that were right, after a moment."""
    await asyncio.sleep(0.02)
    name = b'punie_engine_draft_accepted_tokens_total{source="ngram"}'
    async with HttpConnection.to(hosts.port) as connection:
        await connection.send(request(hosts.port, KEY, "GET", "/metrics"))
        lines = (await connection.response()).body.splitlines()
    return any(line.startswith(name) and not line.endswith(b" 0.0") for line in lines)


def test_ranks_read_alike_what_came_before_the_model(models: Path, tmp_path: Path):
    """Rank 0 draws the seed that nobody gave."""

    async def test(hosts: Hosts) -> None:
        link = await FrameLink.connect(str(hosts.socket), _decoder, name="host")
        try:
            assert await greet_model_host(link)
            await link.send(ask(1, PROMPTS[0], TOKENS, temperature=0.9))
            async with asyncio.timeout(DEADLINE):
                while not isinstance(message := await link.receive(), Finished):
                    assert not isinstance(message, Failed)
        finally:
            link.close()

    with launched(tmp_path / "two", models / Kind.QWEN3.value) as hosts:
        hosts.until_there()
        asyncio.run(test(hosts))


def ring(folder: Path) -> dict[str, str]:
    """Return the environment of ranks that somebody starts one by one."""
    first = free_ports(2)
    file = folder / "ring.json"
    file.write_text(json.dumps([[f"127.0.0.1:{first}"], [f"127.0.0.1:{first + 1}"]]))
    return {"MLX_HOSTFILE": str(file)}


def test_a_supervisor_may_lead_ranks_from_model_to_model(models: Path, tmp_path: Path):
    environment = ring(tmp_path)

    async def answer(host: ServedHost) -> str | None:
        async with host.client() as client:
            answer = await client.chat.completions.create(
                model="default",
                messages=[{"role": "user", "content": WORDS}],
                extra_body={"max_tokens": TOKENS, "temperature": 0},
            )
        return answer.choices[0].message.content

    async def load(host: ServedHost, model: str) -> ModelState:
        await host.control.send(LoadModel(request_id=9, model=model))
        return await host.loaded()

    async def test(*, ranks: bool) -> list[str | None]:
        more = environment | {"MLX_RANK": "0"} if ranks else {}
        async with served(models, tmp_path, Kind.QWEN3, more) as host, asyncio.timeout(DEADLINE):
            texts = [await answer(host)]
            assert (await load(host, Kind.QWEN3_MOE)).state is Load.READY
            texts.append(await answer(host))
            assert (await load(host, "nowhere")).state is Load.FAILED
            divided = (await load(host, Kind.GEMMA3)).state
            assert divided is (Load.FAILED if ranks else Load.READY)
            assert (await load(host, Kind.QWEN3)).state is Load.READY
            texts.append(await answer(host))
            assert await host.stop() == 0
        return texts

    whole = asyncio.run(test(ranks=False))
    assert whole[0] == whole[2] != whole[1]
    follows = environment | {"MLX_RANK": "1"}
    options = "--models-dir", str(models)
    with alone(tmp_path / "other", models, *options, environment=follows) as other:
        assert asyncio.run(test(ranks=True)) == whole
        assert other.ended() == 0


# how they end


@pytest.fixture
def hosts(models: Path, tmp_path: Path) -> Iterator[Hosts]:
    """Two ranks that are ready."""
    with launched(tmp_path / "two", models / Kind.QWEN3.value) as hosts:
        hosts.until("door-open")
        yield hosts


def test_numbers_that_only_json_has_end_no_rank_and_the_launchers_end_both(hosts: Hosts):
    """A tool whose schema has one is refused, a seed counts modulo 2**64."""
    tool = {"name": "t", "parameters": {"properties": {"n": {"maximum": 2**70}}}}

    async def test() -> None:
        asked = said(hosts, WORDS, temperature=0.8, seed=2**70 + 5)
        same = said(hosts, WORDS, temperature=0.8, seed=5)
        assert (await asked)[0] == (await same)[0]
        async with hosts.client() as client:
            with pytest.raises(BadRequestError, match="64 bits"):
                await client.chat.completions.create(
                    model="default",
                    messages=[{"role": "user", "content": WORDS}],
                    extra_body={"tools": [{"type": "function", "function": tool}]},
                )
        await said(hosts, WORDS, temperature=0)

    asyncio.run(test())
    ends_with_its_launcher(hosts)


def ends_with_its_launcher(hosts: Hosts) -> None:
    ranks = hosts.ranks()
    hosts.process.kill()
    hosts.ended()
    gone, alive = psutil.wait_procs(ranks.values(), DEADLINE)
    assert len(gone) == 2
    assert not alive


@pytest.mark.parametrize(("killed", "line"), dosed([(1, "rank-lost rank=1"), (0, "leader-lost")]))
def test_when_one_rank_is_killed_all_end(hosts: Hosts, killed: int, line: str):
    ranks = hosts.ranks()
    ranks[killed].kill()
    hosts.ended()
    assert not any(psutil.pid_exists(rank.pid) for rank in ranks.values())
    assert line in hosts.log.read_text()


@pytest.mark.parametrize(
    ("how", "line"),
    dosed(
        [
            ("strays", "ranks-differ rank=1"),
            ("fails", "a forward failed on rank 1: MemoryError: no room for this forward"),
        ]
    ),
)
def test_nobody_gets_an_answer_that_ranks_do_not_agree_on(
    models: Path, tmp_path: Path, how: str, line: str
):
    program = ("-m", "tests.support.straying_rank", how)
    with launched(tmp_path / "two", models / Kind.QWEN3.value, program=program) as hosts:
        hosts.until("door-open")
        assert asyncio.run(heard(hosts)) == ""
        hosts.ended()
        assert line in hosts.log.read_text()


async def heard(hosts: Hosts) -> str:
    """Return what is answered before the connection is lost."""
    text = ""
    link = await FrameLink.connect(str(hosts.socket), _decoder, name="host")
    try:
        await greet_model_host(link)
        await link.send(ask(1, "hi", TOKENS))
        while True:
            match await link.receive():
                case TextDelta(text=more):
                    text += more
                case Finished() as end:
                    pytest.fail(f"{end}")
                case _:
                    continue
    except LinkClosed:
        return text
    finally:
        link.close()


@pytest.mark.parametrize("end", dosed([signal.SIGTERM, signal.SIGINT]))
def test_a_rank_that_nobody_joins_can_be_ended(models: Path, tmp_path: Path, end: signal.Signals):
    environment = ring(tmp_path) | {"MLX_RANK": "0"}
    with alone(tmp_path / "one", models / Kind.QWEN3.value, environment=environment) as hosts:
        hosts.until("joining")
        hosts.process.send_signal(end)
        assert hosts.ended() == -end


def test_a_model_that_cannot_be_divided_is_refused_by_all(models: Path, tmp_path: Path):
    with launched(tmp_path / "two", models / Kind.GEMMA3.value) as hosts:
        hosts.ended()
        log = hosts.log.read_text()
    assert "cannot be divided among 2 ranks" in log
    assert "not-ready" in log
