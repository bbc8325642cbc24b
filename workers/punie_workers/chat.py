"""From pydantic-ai's history to the messages that the model host takes, and how long they are."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    RetryFeedbackPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from punie_protocol.errors import Internal, PunieError
from punie_protocol.messages import to_model_host as wire

_FRAME_SIZE: Final = 32


def to_chat(
    messages: Sequence[ModelMessage], system: str = "", context: str = ""
) -> list[wire.AnyChatMessage]:
    """Return the conversation; before it `system` and, as a user's message, `context`, unless
    they are empty."""
    chat: list[wire.AnyChatMessage] = [wire.SystemMessage(text=system)] if system else []
    if context:
        chat.append(wire.UserMessage(text=context))
    for message in messages:
        match message:
            case ModelRequest():
                chat.extend(_request(message))
            case ModelResponse():
                chat.append(_response(message))
    return chat


def _request(message: ModelRequest) -> Iterator[wire.AnyChatMessage]:
    for part in message.parts:
        match part:
            case UserPromptPart(content=str(text)):
                yield wire.UserMessage(text=text)
            case ToolReturnPart():
                yield wire.ToolMessage(
                    call_id=part.tool_call_id, name=part.tool_name, text=result_text(part)
                )
            case RetryFeedbackPart():
                yield wire.UserMessage(text=part.model_response())
            case _:
                raise _unsupported(part)


def result_text(part: ToolReturnPart) -> str:
    """Return a tool's result as the model reads it."""
    content = part.content
    return content if isinstance(content, str) else json.dumps(content, default=str)


def _response(message: ModelResponse) -> wire.AssistantMessage:
    text, thinking, calls = "", "", []
    for part in message.parts:
        match part:
            case TextPart():
                text += part.content
            case ThinkingPart():
                thinking += part.content
            case ToolCallPart():
                calls.append(_call(part))
            case _:
                raise _unsupported(part)
    return wire.AssistantMessage(text=text, thinking=thinking, tool_calls=calls)


def _call(part: ToolCallPart) -> wire.ToolCallPart:
    return wire.ToolCallPart(
        call_id=part.tool_call_id, name=part.tool_name, arguments=part.args_as_json_str()
    )


def _unsupported(part: object) -> PunieError:
    return PunieError(Internal(message=f"a {type(part).__name__} cannot be sent to the model"))


def split_turns(messages: Sequence[ModelMessage]) -> list[ModelMessage]:
    """Return the same conversation with every user's prompt at the start of a message.
    pydantic-ai merges neighbouring requests, so a prompt may stand behind the results of the turn
    before."""
    return [piece for message in messages for piece in _split(message)]


def _split(message: ModelMessage) -> Iterator[ModelMessage]:
    prompts = [
        index
        for index, part in enumerate(message.parts)
        if index and isinstance(part, UserPromptPart)
    ]
    if not prompts or not isinstance(message, ModelRequest):
        yield message
        return
    for begin, end in zip([0, *prompts], [*prompts, None], strict=True):
        yield dataclasses.replace(message, parts=message.parts[begin:end])


def turn_starts(messages: Sequence[ModelMessage]) -> list[int]:
    """Return where each turn begins: at the requests with a user's prompt."""
    return [index for index, message in enumerate(messages) if _has_prompt(message)]


def _has_prompt(message: ModelMessage) -> bool:
    parts = message.parts if isinstance(message, ModelRequest) else ()
    return any(isinstance(part, UserPromptPart) for part in parts)


def size(message: ModelMessage) -> int:
    """Return the characters of a message, and a little for its frame; nothing is copied."""
    texts = (
        len(value)
        for one in to_chat([message])
        for value in (*msgspec.structs.astuple(one), *_arguments(one))
        if isinstance(value, str)
    )
    return _FRAME_SIZE + sum(texts)


def _arguments(message: wire.AnyChatMessage) -> list[str]:
    calls = message.tool_calls if isinstance(message, wire.AssistantMessage) else []
    return [call.arguments for call in calls]
