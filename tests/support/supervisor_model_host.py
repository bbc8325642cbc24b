"""A model host for the supervisor's tests: no model, the control protocol alone.

Model names: ``crash`` ends the process at its start, ``bad`` fails to load, as does a draft model
of that name, anything starting with ``slow`` takes a second, ``late`` first waits until two
requests are over, all others load at once. An engine is reported before each READY that was asked
for, with as many steps as the request's id, and before one with a draft model, which it names:
``misfit`` is not used. Its HTTP door is open wherever it is wanted, but at port 1; any port is
4242.
"""

import argparse
import asyncio
import socket
import sys
from pathlib import Path

import msgspec

from punie_protocol import handshake
from punie_protocol.codec import MessageDecoder
from punie_protocol.engine import DraftModelStatus, EngineSettings, EngineStatus
from punie_protocol.errors import InvalidRequest, ModelLoadFailed
from punie_protocol.link import FrameLink
from punie_protocol.messages import to_model_host, to_supervisor
from punie_protocol.messages.common import ModelInfo, PromptStyle, Role
from punie_protocol.messages.to_supervisor import Load, ModelState

_decoder = MessageDecoder[to_model_host.ControlToModelHost](
    "model host", to_model_host.ControlToModelHost
)
MB = 1024 * 1024
TAKEN = 1
ANY = 4242


class FakeHost:
    """One model at a time."""

    def __init__(
        self, link: FrameLink[to_model_host.ControlToModelHost], settings: EngineSettings
    ) -> None:
        self.link = link
        self.settings = settings
        self.model: ModelInfo | None = None
        self.loads: set[asyncio.Task[None]] = set()
        self.door: int | None = None

    async def run(self) -> None:
        async for message in self.link:
            match message:
                case to_model_host.Ping(nonce=nonce):
                    self.link.send_nowait(to_supervisor.Pong(nonce=nonce, busy=0))
                case to_model_host.LoadModel(request_id=id, model=model, settings=settings):
                    self.start(id, model, settings or self.settings)
                case to_model_host.OpenDoor(request_id=id, port=port):
                    self.open_door(id, port)
                case to_model_host.CloseDoor(request_id=id):
                    self.door = None
                    self.link.send_nowait(to_supervisor.DoorIs(request_id=id))
                case to_model_host.Stop():
                    return
                case _:
                    pass

    def start(self, id: int, model: str, settings: EngineSettings) -> None:
        task = asyncio.ensure_future(self.load(id, model, settings))
        self.loads.add(task)
        task.add_done_callback(self.loads.discard)

    def open_door(self, id: int, port: int) -> None:
        error = InvalidRequest(message="port 1 is taken") if port == TAKEN else None
        self.door = self.door if error else port or ANY
        said = to_supervisor.DoorIs(request_id=id, port=self.door, error=error)
        self.link.send_nowait(said)

    async def load(self, id: int, model: str, settings: EngineSettings) -> None:
        if model == "late":
            await self.drain(id, model)
        steps = 10 if model.startswith("slow") else 1
        for step in range(steps):
            self.say(id, Load.LOADING, model, done=step * MB, total=steps * MB)
            await asyncio.sleep(0.1 if steps > 1 else 0)
        draft = settings.draft_model or ""
        if "bad" in (model, draft):
            error = ModelLoadFailed(message="bad is half copied", folder="/bad", file="x.npz")
            self.say(id, Load.FAILED, model, error=error)
            return
        self.settings = settings
        self.model = ModelInfo(
            name=Path(model).name,
            folder=str(Path("/models") / model),
            context_window=1000,
            prompt_style=PromptStyle.LEARNED,
            tool_call_format="x",
            max_output_tokens=100,
        )
        if id >= 0 or draft:
            fits = draft != "misfit"
            told = DraftModelStatus(name=draft) if fits else DraftModelStatus(error="misfit!")
            engine = EngineStatus(steps=id, draft_model=told)
            self.link.send_nowait(to_supervisor.EngineReport(engine=engine))
        self.say(id, Load.READY, model)

    async def drain(self, id: int, model: str) -> None:
        self.say(id, Load.LOADING, model, total=MB)
        for running in (2, 1, 0):
            engine = EngineStatus(steps=9, running=running)
            self.link.send_nowait(to_supervisor.EngineReport(engine=engine))
            await asyncio.sleep(0.3)

    def say(
        self,
        id: int,
        state: Load,
        name: str,
        *,
        done: int = 0,
        total: int = 0,
        error: ModelLoadFailed | None = None,
    ) -> None:
        self.link.send_nowait(
            ModelState(
                request_id=id,
                state=state,
                name=name,
                done_bytes=done,
                total_bytes=total,
                model=self.model,
                error=error,
            )
        )


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--settings", default="{}")
    options = parser.parse_args()
    if options.model == "crash":
        sys.exit("out of memory")
    control = socket.socket(fileno=options.control_fd)
    link = await FrameLink.over(control, _decoder, name="supervisor")
    await handshake.greet_supervisor(link, Role.MODEL_HOST, to_model_host.Welcome)
    await link.send(to_supervisor.Ready())
    settings = msgspec.json.decode(options.settings, type=EngineSettings)
    host = FakeHost(link, settings)
    host.start(-1, options.model, settings)
    await host.run()
    link.close()


if __name__ == "__main__":
    asyncio.run(main())
