"""Fuzzed requests at a real model host, over its own socket: all of them end with the same process
serving the next one.

``PUNIE_KILLS`` asks for the big dose, 10,000. A shot that fails is named by its seed and number:
``benchmarks.fuzz_requests.shot(seed, number)`` is the same again.
"""

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from benchmarks.engine_fuzz import Gone, Host, Peer, Tally, fire, running
from benchmarks.fuzz_requests import Act, plain, shot
from punie_protocol.errors import ContextOverflow
from punie_protocol.limits import FRAME_HEADER_SIZE, MAX_FRAME
from punie_protocol.messages.to_model_client import Failed, Finished
from tests.support.small_models import Kind, make_small_model
from tests.support.tiny_model import make_tiny_model

DOSE = 10_000 if "PUNIE_KILLS" in os.environ else 300
SEED = int(os.environ.get("PUNIE_FUZZ_SEED") or random.randrange(10**6))
ROOM = 500 * 1024 * 1024
"""Bytes by which the host may grow: 64 MB of keys and values, tokenizers, pools of both."""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host for all tests of single frames; it is the same process after each."""
    folder = tmp_path_factory.mktemp("host")
    model = make_tiny_model(folder / "model", context_window=512)
    with asyncio.Runner() as runner:
        context = running(folder, model)
        host = runner.run(context.__aenter__())
        yield host
        assert host.process.poll() is None, host.log.read_text()[-5000:]
        runner.run(context.__aexit__(None, None, None))


@pytest.mark.timeout(60 if DOSE == 300 else 900)
def test_all_are_survived(tmp_path: Path) -> None:
    _survived(make_tiny_model(tmp_path / "model", context_window=512), tmp_path, DOSE)


@pytest.mark.timeout(60 if DOSE == 300 else 900)
def test_all_are_survived_by_a_model_that_decodes_alone(tmp_path: Path) -> None:
    model = make_small_model(tmp_path / "model", Kind.GEMMA3, context_window=512)
    _survived(model, tmp_path, DOSE // 5)


def _survived(model: Path, folder: Path, dose: int) -> None:
    async def main() -> None:
        async with running(folder, model) as host:
            before = host.resident
            tally = await fire(host.socket, dose, SEED)
            await _check(host, tally, before)

    asyncio.run(main())


async def _check(host: Host, tally: Tally, before: int) -> None:
    log = host.log.read_text()
    assert not tally.faults, f"{tally.faults}\n{log[-5000:]}"
    assert not tally.internal, f"seed {SEED}: {tally.internal}\n{log[-5000:]}"
    assert tally.survived == tally.requests
    assert host.process.poll() is None
    assert await host.idle(), f"seed {SEED}: {await host.busy()} requests do not end"
    assert sum(tally.ends.values()) == tally.requests
    assert {"Finished", "InvalidRequest", "link closed"} <= {*tally.ends}  # each a fifth or more
    assert host.resident - before < ROOM, f"seed {SEED}: {before} grew to {host.resident} bytes"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("invalid UTF-8", lambda payload: payload.replace(b"hi", b"\xc3\x28")),
        ("half a surrogate", lambda payload: payload.replace(b"c7000", b"c\xed\xa0\x807")),
        ("an integer as stop word", lambda payload: _with(payload, stop=[50256])),
        ("a text as temperature", lambda payload: _with(payload, temperature="hot")),
        ("a message that is too deep", lambda payload: b"\x91" * 1_000_000),
        ("nothing", lambda payload: b""),
    ],
)
def test_a_frame_that_is_none_ends_its_link_alone(
    host: Host, name: str, damage: Callable[[bytes], bytes]
) -> None:
    """Beside a client whose request goes on."""

    async def main() -> None:
        beside = await Peer.connect(host.socket)
        other = await Peer.connect(host.socket)
        try:
            beside.send(plain(6999))
            payload = damage(plain(7000)[FRAME_HEADER_SIZE:])
            assert payload != plain(7000)[FRAME_HEADER_SIZE:], name
            other.send(len(payload).to_bytes(FRAME_HEADER_SIZE) + payload)
            with pytest.raises(Gone):
                await other.next()
            assert isinstance(await _end(beside), Finished)
        finally:
            await other.close()
            await beside.close()

    asyncio.run(main())


def test_a_prompt_of_100_mb_ends_its_link_at_its_header(host: Host) -> None:
    async def main() -> None:
        peer = await Peer.connect(host.socket)
        try:
            peer.send((100_000_000).to_bytes(FRAME_HEADER_SIZE))
            with pytest.raises(Gone):
                await peer.next()
        finally:
            await peer.close()

    asyncio.run(main())


@pytest.mark.parametrize("part", ["text", "tool"])
def test_a_frame_as_large_as_they_come_is_refused_unread(host: Host, part: str) -> None:
    """While it is, a request of somebody else is answered: it never waits for the large one."""

    async def main() -> None:
        giant, beside = await Peer.connect(host.socket), await Peer.connect(host.socket)
        huge = "x" * (MAX_FRAME - 10_000)
        request = msgspec.msgpack.decode(plain(7001)[FRAME_HEADER_SIZE:])
        if part == "text":
            request["messages"][0]["text"] = huge
        else:
            parameters = msgspec.json.encode({"title": huge}).decode()
            request["tools"] = [{"name": "t", "description": "", "parameters": parameters}]
        try:
            payload = msgspec.msgpack.encode(request)
            giant.send(len(payload).to_bytes(FRAME_HEADER_SIZE) + payload)
            beside.send(plain(7002))
            assert isinstance(await _end(beside), Finished)
            refused = await _end(giant)
            assert isinstance(refused, Failed)
            assert isinstance(refused.error, ContextOverflow)
            assert refused.error.limit == 512
        finally:
            await giant.close()
            await beside.close()

    asyncio.run(main())


def _with(payload: bytes, **sampling: object) -> bytes:
    request = msgspec.msgpack.decode(payload)
    request["sampling"] |= sampling
    return msgspec.msgpack.encode(request)


async def _end(peer: Peer) -> Finished | Failed:
    while not isinstance(message := await peer.next(), Finished | Failed):
        continue
    return message


def test_shots_are_the_same_again() -> None:
    shots = [shot(5, number) for number in range(400)]
    assert shots == [shot(5, number) for number in range(400)]
    assert {each.act for each in shots} == {*Act}
    whole = [each for each in shots if int.from_bytes(each.frame[:4]) == len(each.payload)]
    assert 0.9 < len(whole) / len(shots) < 1
    assert all(len(each.frame) > FRAME_HEADER_SIZE for each in whole)
