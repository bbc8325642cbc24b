"""Both ends of a link in one process: test either end of the wire by playing the other."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from punie_protocol.codec import MessageDecoder
from punie_protocol.link import FrameLink
from punie_protocol.messages.to_model_client import ToModelClient
from punie_protocol.messages.to_model_host import ClientToModelHost, ControlToModelHost
from punie_protocol.messages.to_supervisor import ToSupervisor
from punie_protocol.messages.to_worker import ToWorker

SUPERVISOR = MessageDecoder[ToSupervisor]("supervisor", ToSupervisor)
WORKER = MessageDecoder[ToWorker]("worker", ToWorker)
MODEL_HOST = MessageDecoder[ControlToModelHost]("model host", ControlToModelHost)
MODEL_SERVER = MessageDecoder[ClientToModelHost]("model host", ClientToModelHost)
MODEL_CLIENT = MessageDecoder[ToModelClient]("model client", ToModelClient)


@asynccontextmanager
async def loopback[A, B](
    left: MessageDecoder[A], right: MessageDecoder[B]
) -> AsyncGenerator[tuple[FrameLink[A], FrameLink[B]]]:
    """Yield two connected links over a socket pair; `left` and `right` decode what the first and
    the second receive: ``loopback(SUPERVISOR, WORKER)``. Both are closed at the end."""
    one, two = socket.socketpair()
    first = await FrameLink[A].over(one, left, name=right.receiver)
    second = await FrameLink[B].over(two, right, name=left.receiver)
    try:
        yield first, second
    finally:
        first.abort("the loopback is over")
        second.abort("the loopback is over")
        await asyncio.sleep(0)  # the transports close in the next step of the loop
