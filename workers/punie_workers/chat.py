"""From pydantic-ai's history to the messages that the model host takes, and which part of it."""

import itertools
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


def to_chat(messages: Sequence[ModelMessage], system: str = "") -> list[wire.AnyChatMessage]:
    """Return the conversation, with `system` first unless it is empty."""
    chat: list[wire.AnyChatMessage] = [wire.SystemMessage(text=system)] if system else []
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
                content = part.content
                text = content if isinstance(content, str) else json.dumps(content, default=str)
                yield wire.ToolMessage(call_id=part.tool_call_id, name=part.tool_name, text=text)
            case RetryFeedbackPart():
                yield wire.UserMessage(text=part.model_response())
            case _:
                raise _unsupported(part)


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


def turn_starts(messages: Sequence[ModelMessage]) -> list[int]:
    """Return where each turn begins: at the requests with a user's prompt."""
    return [index for index, message in enumerate(messages) if _has_prompt(message)]


def _has_prompt(message: ModelMessage) -> bool:
    parts = message.parts if isinstance(message, ModelRequest) else ()
    return any(isinstance(part, UserPromptPart) for part in parts)


def start_within(messages: Sequence[ModelMessage], characters: int) -> int:
    """Return the first start, 0 or a whole turn, from which `messages` have so many characters at
    most; the last turn's when even that one has more."""
    starts = [0, *(begin for begin in turn_starts(messages) if begin)]
    left = _sizes_from(messages)
    return next((begin for begin in starts if left[begin] <= characters), starts[-1])


def fitting_start(
    messages: Sequence[ModelMessage], start: int, limit: int, actual: int
) -> int | None:
    """Return a later start, at a whole turn, from which `messages` may fit, as they were `actual`
    of `limit` long from `start`; ``None`` when only the last turn is left. Length is guessed from
    characters: who refused has the last word."""
    later = [begin for begin in turn_starts(messages) if begin > start]
    if not later:
        return None
    left = _sizes_from(messages)
    return next((at for at in later if left[at] * actual <= limit * left[start]), later[-1])


def _sizes_from(messages: Sequence[ModelMessage]) -> list[int]:
    """Return for each message the characters from it to the end."""
    sizes = itertools.accumulate(_size(message) for message in reversed(messages))
    return [*reversed(list(sizes)), 0]


def _size(message: ModelMessage) -> int:
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
