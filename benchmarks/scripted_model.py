"""A model host that does what its prompt says: no model, no weights, no time.

Started by the supervisor in the place of the real one (`benchmarks.daemon`). A prompt is the JSON
of a list of steps, a step a list of tool calls ``[name, arguments]``; the model makes the calls of
one step in one answer, then says that it is done. ``["wait", {"seconds": 5}]`` is no call: the
model takes so long.
"""

import argparse
import asyncio
import json
import socket
from typing import Any

from punie_protocol.codec import MessageDecoder
from punie_protocol.handshake import greet_supervisor
from punie_protocol.link import FrameLink
from punie_protocol.messages.common import PromptStyle, Role
from punie_protocol.messages.to_model_client import StepTimings
from punie_protocol.messages.to_model_host import (
    AssistantMessage,
    ControlToModelHost,
    Generate,
    LoadModel,
    Ping,
    Stop,
    UserMessage,
    Welcome,
)
from punie_protocol.messages.to_supervisor import Load, ModelState, Pong, Ready
from punie_protocol.testing.script import Action, Call, Reply, Say, Wait, model_info
from punie_protocol.testing.scripted_host import ScriptedHost

_NO_TIME = StepTimings(queue=0.0, prefill=0.0, decode=0.0)
_MODEL = model_info(PromptStyle.TOOLS, window=1_000_000)


def step(request: Generate) -> Reply:
    """Return the answer that the last prompt of the conversation asks for."""
    done = 0
    for message in reversed(request.messages):
        if isinstance(message, UserMessage):
            steps = json.loads(message.text)
            break
        done += isinstance(message, AssistantMessage)
    else:
        steps = []
    actions: list[Action] = [Say("done")]
    if done < len(steps):
        actions = [_action(name, given) for name, given in steps[done]]
    return Reply(tuple(actions), timings=_NO_TIME)


def _action(name: str, given: dict[str, Any]) -> Action:
    return Wait(**given) if name == "wait" else Call(name, given)


async def main() -> None:
    """Serve until the supervisor says stop, or is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--socket", required=True)
    options = parser.parse_args()
    decoder = MessageDecoder[ControlToModelHost]("model host", ControlToModelHost)
    control = socket.socket(fileno=options.control_fd)
    link = await FrameLink.over(control, decoder, name="supervisor")
    await greet_supervisor(link, Role.MODEL_HOST, Welcome)
    async with ScriptedHost(options.socket, model=_MODEL, otherwise=step):
        link.send_nowait(Ready())
        _tell_ready(link, -1)
        async for message in link:
            match message:
                case Ping(nonce=nonce):
                    link.send_nowait(Pong(nonce=nonce, busy=0))
                case LoadModel(request_id=number):
                    _tell_ready(link, number)
                case Stop():
                    break
                case _:
                    pass
    link.close()


def _tell_ready(link: FrameLink[ControlToModelHost], number: int) -> None:
    state = ModelState(request_id=number, state=Load.READY, name=_MODEL.name, model=_MODEL)
    link.send_nowait(state)


if __name__ == "__main__":
    asyncio.run(main())
