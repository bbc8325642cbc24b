"""What a scripted model says and does.

A script is a list of steps, one for each request. A step is a `Reply`, or a function that looks at
the request and returns one. `load` reads replies, not functions, from JSON.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec

from punie_protocol.errors import Internal, InvalidRequest, PunieError, WireError
from punie_protocol.messages.common import ModelInfo, PromptStyle, Usage
from punie_protocol.messages.to_model_client import StepTimings, StopReason
from punie_protocol.messages.to_model_host import (
    AnyChatMessage,
    AssistantMessage,
    Generate,
    ToolMessage,
    UserMessage,
)


class Say(msgspec.Struct, frozen=True, tag="say"):
    """Text, in chunks of `chunk` characters with `delay` seconds before each."""

    text: str
    chunk: int = 16
    delay: float = 0.0


class Think(msgspec.Struct, frozen=True, tag="think"):
    """Thinking."""

    text: str


class Call(msgspec.Struct, frozen=True, tag="call"):
    """A tool call. The id is made up, and unique, when it is empty."""

    name: str
    arguments: dict[str, object]
    call_id: str = ""


class Wait(msgspec.Struct, frozen=True, tag="wait"):
    """Nothing for so long."""

    seconds: float


class Die(msgspec.Struct, frozen=True, tag="die"):
    """Cut the connection, as a killed host does; it listens on."""


class Fail(msgspec.Struct, frozen=True, tag="fail"):
    """End the request with an error; `usage` is what it had cost by then."""

    error: WireError
    usage: Usage = Usage()


type Action = Say | Think | Call | Wait | Die | Fail


class Reply(msgspec.Struct, frozen=True):
    """What one request gets, in order; a `Finished` follows by itself."""

    actions: tuple[Action, ...]
    stop_reason: StopReason = StopReason.STOP
    usage: Usage = Usage(input_tokens=10, cached_tokens=4, output_tokens=5)
    timings: StepTimings = StepTimings(queue=1.0, prefill=2.0, decode=3.0)


type Step = Reply | Callable[[Generate], Reply]


def reply(*actions: Action, stop_reason: StopReason = StopReason.STOP) -> Reply:
    """Return a reply that does `actions` in order."""
    return Reply(actions, stop_reason)


def call(name: str, /, **arguments: object) -> Reply:
    """Return a reply that calls one tool."""
    return Reply((Call(name, arguments),))


def say(text: str, *, delay: float = 0.0) -> Reply:
    """Return a reply of text; with a `delay` it is streamed slowly."""
    return Reply((Say(text, delay=delay),))


def over(_: Generate) -> Reply:
    """Fail the request: this is the step after the last one."""
    return reply(Fail(Internal(message="the script is over", hint="add a reply to it")))


def turn(*replies: Reply) -> Step:
    """Return the step that plays one turn whatever becomes of it: it takes the reply whose number
    is how often the model has answered since the prompt. Give it as ``otherwise``: a request that
    is repeated after a crash gets the same reply again."""

    def step(request: Generate) -> Reply:
        answers = 0
        for message in reversed(request.messages):
            if isinstance(message, UserMessage):
                break
            answers += isinstance(message, AssistantMessage)
        return replies[answers] if answers < len(replies) else over(request)

    return step


def told(request: Generate) -> str:
    """Return the text of the last message of a request: the prompt, or what a tool answered."""
    return request.messages[-1].text


def tool_results(request: Generate) -> list[ToolMessage]:
    """Return every tool result in a request, in order."""
    return [message for message in request.messages if isinstance(message, ToolMessage)]


def model_info(
    style: PromptStyle = PromptStyle.LEARNED, *, name: str = "scripted", window: int = 32_768
) -> ModelInfo:
    """Return the description of a model that is not there."""
    return ModelInfo(
        name=name,
        folder="/nowhere",
        context_window=window,
        prompt_style=style,
        tool_call_format="qwen3_coder",
        max_output_tokens=4096,
    )


def estimate(messages: list[AnyChatMessage], extra: int = 0) -> int:
    """Return about how many tokens messages are: one for each four characters, 4 a message."""
    return extra // 4 + sum(4 + len(message.text) // 4 for message in messages)


def load(path: Path) -> list[Step]:
    """Return the replies in a JSON file. Raises `PunieError` naming what is wrong with it."""
    try:
        return [*msgspec.json.decode(path.read_bytes(), type=list[Reply])]
    except (OSError, msgspec.MsgspecError) as error:
        message = f"{path} is no script: {error}"
        hint = 'it is a list like [{"actions": [{"type": "say", "text": "hello"}]}]'
        raise PunieError(InvalidRequest(message=message, hint=hint)) from None
