"""From pydantic-ai's history to the messages that the model host takes, and which part of it."""

import json
from collections.abc import Iterator, Sequence

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

from punie_protocol.errors import ContextOverflow, Internal, PunieError
from punie_protocol.messages import to_model_host as wire


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


def fitting_start(
    messages: Sequence[ModelMessage], start: int, error: ContextOverflow
) -> int | None:
    """Return a later start, at a whole turn, from which `messages` may fit; ``None`` when only
    the last turn is left. Tokens are guessed from sizes: the host has the last word."""
    later = [begin for begin in turn_starts(messages) if begin > start]
    if not later:
        return None
    sizes = [_size(message) for message in messages]
    allowed = error.limit * sum(sizes[start:])
    fits = (begin for begin in later if sum(sizes[begin:]) * error.tokens <= allowed)
    return next(fits, later[-1])


def _size(message: ModelMessage) -> int:
    chat = to_chat([message])
    return len(msgspec.msgpack.encode(chat))
