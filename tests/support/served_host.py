"""A real model host with its HTTP door open, and the supervisor's end of its control link."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import openai

from punie_protocol.codec import MessageDecoder
from punie_protocol.handshake import accept_child, version
from punie_protocol.limits import PROTOCOL
from punie_protocol.link import FrameLink
from punie_protocol.messages.common import Limits
from punie_protocol.messages.to_model_host import CloseDoor, OpenDoor, Ping, Stop, Welcome
from punie_protocol.messages.to_supervisor import DoorIs, Load, ModelState, Pong, ToSupervisor

DEADLINE = 15.0
LOAD_DEADLINE = 60.0
"""Seconds for MLX to be imported and a model to be read; ranks of a model wait for one another."""
KEY = "k" * 43
ROOT = Path(__file__).parents[2]
_decoder: MessageDecoder[ToSupervisor] = MessageDecoder("supervisor", ToSupervisor)


class ServedHost:
    """`port` is where its door is open."""

    def __init__(self, process: subprocess.Popen[bytes], control: FrameLink[ToSupervisor]) -> None:
        self.process = process
        self.control = control
        self.port = 0

    def client(self, key: str = KEY) -> openai.AsyncOpenAI:
        """Return the official client, to be used as a context manager; it tries nothing again."""
        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=DEADLINE)

    async def open(self, port: int = 0, key: str = KEY) -> DoorIs:
        """Open the door."""
        await self.control.send(OpenDoor(request_id=3, port=port, key=key))
        answer = await self._next(DoorIs)
        self.port = answer.port or 0
        return answer

    async def close(self) -> DoorIs:
        """Close the door."""
        await self.control.send(CloseDoor(request_id=4))
        return await self._next(DoorIs)

    async def _busy(self) -> int:
        await asyncio.sleep(0.005)
        await self.control.send(Ping(nonce=1))
        return (await self._next(Pong)).busy

    async def until_busy(self, wanted: int) -> None:
        """Wait until so many requests are under way."""
        async with asyncio.timeout(DEADLINE):
            while await self._busy() != wanted:
                pass

    async def stop(self) -> int:
        """Have it end, and return its exit code."""
        await self.control.send(Stop(reason="test", deadline_s=4.0))
        return await asyncio.to_thread(self.process.wait, DEADLINE)

    async def loaded(self) -> ModelState:
        """Wait for the model, and return how the load ended."""
        while (state := await self._next(ModelState, LOAD_DEADLINE)).state is Load.LOADING:
            pass
        return state

    async def _next[M](self, kind: type[M], deadline: float = DEADLINE) -> M:
        async with asyncio.timeout(deadline):
            while True:
                if isinstance(message := await self.control.receive(), kind):
                    return message


@asynccontextmanager
async def served(
    models: Path, folder: Path, model: str, environment: Mapping[str, str] = {}
) -> AsyncGenerator[ServedHost]:
    """Run a host while the context is open; its log belongs to what fails inside."""
    ours, theirs = socket.socketpair()
    log = folder / "host.log"
    command = [sys.executable, "-m", "punie_model_host.main", "--control-fd", str(theirs.fileno())]
    command += ["--socket", str(folder / "model.sock")]
    command += ["--models-dir", str(models), "--model", model]
    with theirs, log.open("wb") as stderr:
        process = _start(command, theirs.fileno(), stderr.fileno(), folder, environment)
    control = await FrameLink.over(ours, _decoder, name="host")
    host = ServedHost(process, control)
    try:
        await accept_child(control)
        await control.send(Welcome(protocol=PROTOCOL, version=version(), limits=Limits()))
        await host.loaded()
        opened = await host.open()
        assert opened.error is None
        yield host
    except BaseException as error:
        error.add_note(log.read_text())
        raise
    finally:
        control.close()
        process.kill()
        process.wait(5)


def _start(
    command: list[str], control: int, stderr: int, home: Path, more: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    env = {"PATH": os.environ["PATH"], "HOME": str(home), **more}
    return subprocess.Popen(
        command, pass_fds=[control], env=env, stdin=subprocess.DEVNULL, stderr=stderr, cwd=ROOT
    )
