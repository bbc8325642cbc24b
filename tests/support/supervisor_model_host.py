"""A model host for the supervisor's tests: no model, the control protocol alone.

Model names: ``crash`` ends the process at its start, ``bad`` fails to load, anything starting with
``slow`` takes a second, all others load at once. An engine is reported after each load that was
asked for, with as many steps as the request's id. Its HTTP door is open wherever it is wanted, but
at port 1; any port is 4242.
"""

import argparse
import asyncio
import socket
import sys
from pathlib import Path

from punie_protocol import handshake
from punie_protocol.codec import MessageDecoder
from punie_protocol.engine import EngineStatus
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

    def __init__(self, link: FrameLink[to_model_host.ControlToModelHost]) -> None:
        self.link = link
        self.model: ModelInfo | None = None
        self.loads: set[asyncio.Task[None]] = set()
        self.door: int | None = None

    async def run(self) -> None:
        async for message in self.link:
            match message:
                case to_model_host.Ping(nonce=nonce):
                    self.link.send_nowait(to_supervisor.Pong(nonce=nonce, busy=0))
                case to_model_host.LoadModel(request_id=id, model=model):
                    self.start(id, model)
                case to_model_host.OpenDoor(request_id=id, port=port):
                    self.open_door(id, port)
                case to_model_host.CloseDoor(request_id=id):
                    self.door = None
                    self.link.send_nowait(to_supervisor.DoorIs(request_id=id))
                case to_model_host.Stop():
                    return
                case _:
                    pass

    def start(self, id: int, model: str) -> None:
        task = asyncio.ensure_future(self.load(id, model))
        self.loads.add(task)
        task.add_done_callback(self.loads.discard)

    def open_door(self, id: int, port: int) -> None:
        error = InvalidRequest(message="port 1 is taken") if port == TAKEN else None
        self.door = self.door if error else port or ANY
        said = to_supervisor.DoorIs(request_id=id, port=self.door, error=error)
        self.link.send_nowait(said)

    async def load(self, id: int, model: str) -> None:
        steps = 10 if model.startswith("slow") else 1
        for step in range(steps):
            self.say(id, Load.LOADING, model, done=step * MB, total=steps * MB)
            await asyncio.sleep(0.1 if steps > 1 else 0)
        if model == "bad":
            error = ModelLoadFailed(message="bad is half copied", folder="/bad", file="x.npz")
            self.say(id, Load.FAILED, model, error=error)
            return
        self.model = ModelInfo(
            name=Path(model).name,
            folder=str(Path("/models") / model),
            context_window=1000,
            prompt_style=PromptStyle.LEARNED,
            tool_call_format="x",
            max_output_tokens=100,
        )
        self.say(id, Load.READY, model)
        if id >= 0:
            self.link.send_nowait(to_supervisor.EngineReport(engine=EngineStatus(steps=id)))

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
    options = parser.parse_args()
    if options.model == "crash":
        sys.exit("out of memory")
    control = socket.socket(fileno=options.control_fd)
    link = await FrameLink.over(control, _decoder, name="supervisor")
    await handshake.greet_supervisor(link, Role.MODEL_HOST, to_model_host.Welcome)
    await link.send(to_supervisor.Ready())
    host = FakeHost(link)
    host.start(-1, options.model)
    await host.run()
    link.close()


if __name__ == "__main__":
    asyncio.run(main())
