"""`FrameLink` and the handshake, over real socket pairs."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from punie_protocol import handshake
from punie_protocol.codec import MessageDecoder, encode_frame
from punie_protocol.errors import (
    FrameInvalid,
    FrameTooLarge,
    FrameTruncated,
    LinkClosed,
    RemoteError,
    VersionMismatch,
)
from punie_protocol.limits import MAX_QUEUED_FRAMES, PROTOCOL
from punie_protocol.link import FrameLink
from punie_protocol.messages import to_model_client, to_model_host, to_supervisor, to_worker
from punie_protocol.messages.common import Limits, Role
from punie_protocol.permissions import PermissionSettings

SUPERVISOR = MessageDecoder[to_supervisor.ToSupervisor]("supervisor", to_supervisor.ToSupervisor)
WORKER = MessageDecoder[to_worker.ToWorker]("worker", to_worker.ToWorker)
HOST = MessageDecoder[to_model_host.ClientToModelHost]("host", to_model_host.ClientToModelHost)
CLIENT = MessageDecoder[to_model_client.ToModelClient]("client", to_model_client.ToModelClient)


@asynccontextmanager
async def pair(left, right) -> AsyncGenerator:
    """Two linked ends; the decoders are those of the left and the right end."""
    a, b = socket.socketpair()
    one = await FrameLink.over(a, left, name="right")
    two = await FrameLink.over(b, right, name="left")
    try:
        yield one, two
    finally:
        one.abort("test over")
        two.abort("test over")
        await asyncio.sleep(0)


@asynccontextmanager
async def raw_peer(decoder) -> AsyncGenerator:
    """A link whose peer is a bare socket."""
    a, b = socket.socketpair()
    link = await FrameLink.over(a, decoder, name="peer")
    with b:
        yield link, b
        link.abort("test over")
        await asyncio.sleep(0)


def test_messages_arrive_in_order() -> None:
    async def main() -> list[int]:
        async with pair(SUPERVISOR, WORKER) as (one, two):
            for nonce in range(1000):
                await one.send(to_worker.Ping(nonce=nonce))
            one.close()
            return [message.nonce async for message in two]

    assert asyncio.run(main()) == list(range(1000))


def test_a_slow_reader_slows_its_sender_and_loses_nothing() -> None:
    count = 3 * MAX_QUEUED_FRAMES
    body = b"x" * 4096

    async def main() -> int:
        async with pair(SUPERVISOR, WORKER) as (one, two):
            sending = asyncio.create_task(send_all(one, count, body))
            await asyncio.sleep(0.2)
            assert not sending.done()
            received = 0
            while received < count:
                message = await two.receive()
                assert message.session_id == str(received)
                received += 1
            await sending
            return received

    assert asyncio.run(main()) == count


def send_without_waiting(link: FrameLink, count: int) -> None:
    for _ in range(count):
        link.send_nowait(to_worker.ClientMessage(session_id="s", body=b"x" * 1_000_000))


async def send_all(link: FrameLink, count: int, body: bytes) -> None:
    for index in range(count):
        await link.send(to_worker.ClientMessage(session_id=str(index), body=body))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\xff\xff\xff\xff", FrameTooLarge),
        (b"\x00\x00\x00\x02hi", FrameInvalid),
        (b"\x00\x00\x00\x09hi", FrameTruncated),
    ],
)
def test_a_broken_peer_is_one_error_and_the_end(data: bytes, error: type[Exception]) -> None:
    async def main() -> None:
        async with raw_peer(WORKER) as (link, sock):
            sock.sendall(bytes(encode_frame(to_worker.Ping(nonce=1))) + data)
            sock.shutdown(socket.SHUT_WR)
            assert await link.receive() == to_worker.Ping(nonce=1)
            with pytest.raises(error):
                await link.receive()
            with pytest.raises(LinkClosed):
                await link.receive()
            with pytest.raises(LinkClosed):
                await link.send(to_supervisor.Ready())

    asyncio.run(main())


def test_a_reader_that_takes_nothing_is_dropped_and_memory_stays_bounded() -> None:
    async def main() -> None:
        async with raw_peer(SUPERVISOR) as (link, _):
            with pytest.raises(LinkClosed, match="too slow"):
                send_without_waiting(link, 1000)
            assert link.is_closed

    asyncio.run(main())


def test_child_and_supervisor_greet() -> None:
    async def main() -> None:
        async with pair(SUPERVISOR, WORKER) as (supervisor, worker):
            greeting = asyncio.create_task(
                handshake.greet_supervisor(worker, Role.WORKER, to_worker.Welcome)
            )
            hello = await handshake.accept_child(supervisor)
            assert (hello.role, hello.protocol) == (Role.WORKER, PROTOCOL)
            welcome = to_worker.Welcome(
                protocol=PROTOCOL,
                version="0",
                limits=Limits(),
                model_socket="/m",
                permissions=PermissionSettings(),
            )
            await supervisor.send(welcome)
            assert await greeting == welcome

    asyncio.run(main())


def test_another_protocol_number_is_refused_with_what_to_do() -> None:
    async def main() -> None:
        async with pair(HOST, CLIENT) as (host, client):
            await client.send(
                to_model_host.ClientHello(
                    protocol=PROTOCOL + 1, version="9", role=Role.WORKER, pid=1, limits=Limits()
                )
            )
            with pytest.raises(VersionMismatch):
                await handshake.accept_model_client(host)
            refused = await client.receive()
            assert refused.error.hint == "run: punie restart"
            with pytest.raises(LinkClosed):
                await client.receive()

    asyncio.run(main())


def test_a_refused_client_gets_the_hosts_reason() -> None:
    async def main() -> None:
        async with pair(HOST, CLIENT) as (host, client):
            greeting = asyncio.create_task(handshake.greet_model_host(client))
            await host.receive()
            error = VersionMismatch(PROTOCOL, 9).error
            await host.send(to_model_client.Refused(error=error))
            with pytest.raises(RemoteError, match="protocol 9 met protocol"):
                await greeting

    asyncio.run(main())
