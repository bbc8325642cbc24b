"""The first exchange on a link: who are you, do we speak the same.

A child or client sends its hello; the other end answers with a welcome, or refuses with a reason.
Both ends check the protocol number, and each waits `HANDSHAKE_TIMEOUT` seconds at most.
"""

import asyncio
import functools
import os
from importlib.metadata import version as _distribution_version

from punie_protocol.errors import (
    InvalidRequest,
    ProtocolError,
    PunieError,
    RemoteError,
    TimedOut,
    VersionMismatch,
)
from punie_protocol.limits import HANDSHAKE_TIMEOUT, PROTOCOL
from punie_protocol.link import FrameLink
from punie_protocol.messages import (
    to_model_client,
    to_model_host,
    to_supervisor,
    to_worker,
)
from punie_protocol.messages.common import Limits, Role


@functools.cache
def version() -> str:
    """Return Punie's version."""
    return _distribution_version("punie")


def check_protocol(theirs: int) -> None:
    """Raise `VersionMismatch` unless the peer speaks our protocol number."""
    if theirs != PROTOCOL:
        raise VersionMismatch(PROTOCOL, theirs)


def hello(role: Role) -> to_supervisor.Hello:
    """Return the hello of this process to its supervisor."""
    return to_supervisor.Hello(
        protocol=PROTOCOL,
        version=version(),
        role=role,
        pid=os.getpid(),
        limits=Limits(),
    )


async def greet_supervisor[M](
    link: FrameLink[M],
    role: Role,
    welcome: type[to_worker.Welcome | to_model_host.Welcome],
    deadline_s: float | None = HANDSHAKE_TIMEOUT,
) -> M:
    """Child's side: say hello, return the welcome; without a deadline, as long as that may take.
    Raises `PunieError`."""
    await link.send(hello(role))
    answer = await _within_deadline(link, deadline_s)
    if not isinstance(answer, welcome):
        raise _unexpected(answer)
    check_protocol(answer.protocol)
    return answer


async def accept_child(
    link: FrameLink[to_supervisor.ToSupervisor],
) -> to_supervisor.Hello:
    """Supervisor's side: return the child's checked hello; the caller sends the welcome."""
    answer = await _within_deadline(link)
    if not isinstance(answer, to_supervisor.Hello):
        raise _unexpected(answer)
    check_protocol(answer.protocol)
    return answer


async def greet_model_host(
    link: FrameLink[to_model_client.ToModelClient],
) -> to_model_client.ModelWelcome:
    """Model client's side: say hello, return the welcome. Raises `RemoteError` when refused."""
    await link.send(
        to_model_host.ClientHello(
            protocol=PROTOCOL,
            version=version(),
            role=Role.WORKER,
            pid=os.getpid(),
            limits=Limits(),
        )
    )
    answer = await _within_deadline(link)
    match answer:
        case to_model_client.ModelWelcome():
            check_protocol(answer.protocol)
            return answer
        case to_model_client.Refused(error=error):
            raise RemoteError(error)
        case _:
            raise _unexpected(answer)


async def accept_model_client(
    link: FrameLink[to_model_host.ClientToModelHost],
) -> to_model_host.ClientHello:
    """Model host's side: return the client's checked hello, or send `Refused` and raise."""
    try:
        answer = await _within_deadline(link)
        if not isinstance(answer, to_model_host.ClientHello):
            raise _unexpected(answer)
        check_protocol(answer.protocol)
    except PunieError as error:
        if not link.is_closed:
            link.send_nowait(to_model_client.Refused(error=error.error))
            link.close("handshake failed")
        raise
    return answer


async def _within_deadline[M](
    link: FrameLink[M], deadline_s: float | None = HANDSHAKE_TIMEOUT
) -> M:
    try:
        async with asyncio.timeout(deadline_s):
            return await link.receive()
    except TimeoutError:
        raise PunieError(
            TimedOut(
                message=f"{link.name} sent no handshake within {deadline_s:g} s",
                limit_s=deadline_s or 0.0,
            )
        ) from None


def _unexpected(message: object) -> ProtocolError:
    return ProtocolError(
        InvalidRequest(message=f"expected a handshake, got {type(message).__name__}")
    )
