"""Our frames between a supervisor's child and the supervisor's end of its link.

``python -m benchmarks.actor_ours NAME CALLS BATCH``. ``punie`` is a child that answers a client's
message with an agent's of the same bytes; ``punie-worker`` is a real worker, pinged, with all that
lives in one. Both are started as the supervisor starts its children.
"""

import asyncio
import itertools
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.actor_calls import PAYLOAD, Amount, Samples, arguments, awaiting, tell
from punie_protocol.codec import MessageDecoder
from punie_protocol.handshake import accept_child, version
from punie_protocol.limits import PROTOCOL
from punie_protocol.link import FrameLink
from punie_protocol.messages.common import Limits, Message
from punie_protocol.messages.to_supervisor import AgentMessage, Pong, Ready, ToSupervisor
from punie_protocol.messages.to_worker import ClientMessage, Ping, ToWorker, Welcome
from punie_protocol.permissions import PermissionSettings
from punie_supervisor.child import Child
from punie_supervisor.child_spec import ChildSpec, Programs, Restart

_CHILD: Final = "--control-fd"
_SESSION: Final = "session"
_ROOT: Final = Path(__file__).resolve().parent.parent


async def measure(name: str, amount: Amount) -> Samples:
    """Start the child, measure, end it."""
    command = (sys.executable, "-m", "benchmarks.actor_ours", _CHILD, "{fd}")
    with tempfile.TemporaryDirectory(prefix="punie-bench-") as folder:
        spec = ChildSpec(
            id=name,
            command=command if name == "punie" else Programs().worker,
            environment={"PATH": os.environ["PATH"], "HOME": folder, "PYTHONPATH": str(_ROOT)},
            restart=Restart.TEMPORARY,
        )
        child = await Child.spawn(spec)
        try:
            if name != "punie":
                await _greet(child.link, folder)
            make = _client_message if name == "punie" else _ping
            return await _measure(child.link, make, amount)
        finally:
            child.kill("measured")
            await child.finish()


async def _greet(link: FrameLink[ToSupervisor], folder: str) -> None:
    """Do the supervisor's part until the worker can take work."""
    await accept_child(link)
    await link.send(
        Welcome(
            protocol=PROTOCOL,
            version=version(),
            limits=Limits(),
            model_socket=f"{folder}/nobody.sock",
            permissions=PermissionSettings(),
        )
    )
    assert isinstance(await link.receive(), Ready)


def _client_message(_: int) -> Message:
    return ClientMessage(session_id=_SESSION, body=PAYLOAD)


def _ping(nonce: int) -> Message:
    return Ping(nonce=nonce)


async def _measure(
    link: FrameLink[ToSupervisor], make: Callable[[int], Message], amount: Amount
) -> Samples:
    numbers = itertools.count()

    async def call() -> None:
        link.send_nowait(make(next(numbers)))
        _check(await link.receive())

    async def batch(calls: int) -> None:
        for _ in range(calls):
            link.send_nowait(make(next(numbers)))
        for _ in range(calls):
            _check(await link.receive())

    return await awaiting(amount, call, batch)


def _check(answer: ToSupervisor) -> None:
    match answer:
        case AgentMessage(body=body) if body == PAYLOAD:
            return
        case Pong():
            return
        case _:
            raise RuntimeError(f"a wrong answer: {answer}")


async def answer(fd: int) -> None:
    """Be the child: answer until the supervisor is gone."""
    decoder = MessageDecoder[ToWorker]("worker", ToWorker)
    link = await FrameLink.over(socket.socket(fileno=fd), decoder, name="supervisor")
    async for message in link:
        if isinstance(message, ClientMessage):
            await link.send(AgentMessage(session_id=message.session_id, body=message.body))


def main() -> None:
    """Be the child, or measure."""
    if sys.argv[1] == _CHILD:
        asyncio.run(answer(int(sys.argv[2])))
        return
    name, amount = arguments()
    tell(asyncio.run(measure(name, amount)), version())


OURS: Final = ("punie", "punie-worker")

if __name__ == "__main__":
    main()
