"""A conversation as every OpenAI-compatible server takes it. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    RetryFeedbackPart,
    SystemPromptPart,
    ThinkingPart,
    ToolCallPart,
    UserPromptPart,
)
from pydantic_ai.tools import ToolDefinition

from punie_protocol.messages.to_model_host import ToolSchema
from punie_workers.prompts import Instructions


def told(messages: Sequence[ModelMessage], instructions: Instructions) -> list[ModelMessage]:
    """Return the instructions and then the conversation, as the server is to read them."""
    conversation = with_context([plain(message) for message in messages], instructions.context)
    if not instructions.system:
        return conversation
    return [ModelRequest(parts=[SystemPromptPart(instructions.system)]), *conversation]


def definition(tool: ToolSchema) -> ToolDefinition:
    """Return a tool as pydantic-ai declares it."""
    schema = msgspec.json.decode(tool.parameters, type=dict[str, Any])
    return ToolDefinition(
        name=tool.name, description=tool.description, parameters_json_schema=schema
    )


def plain(message: ModelMessage) -> ModelMessage:
    """Return a message of parts that every server takes: a refused answer is the user's say, calls
    have JSON objects as arguments, and thoughts that another kind of model had are left out."""
    match message:
        case ModelRequest():
            return replace(message, parts=[_plain_request_part(part) for part in message.parts])
        case ModelResponse():
            parts = [_plain_response_part(part) for part in message.parts]
            return replace(message, parts=[part for part in parts if part is not None])


def _plain_request_part(part: Any) -> Any:
    if isinstance(part, RetryFeedbackPart):
        return UserPromptPart(part.model_response())
    return part


def _plain_response_part(part: Any) -> Any:
    match part:
        case ToolCallPart():
            return replace(part, args=part.args_as_dict(raise_if_invalid=False))
        case ThinkingPart(id=None):
            return None
        case _:
            return part


def with_context(messages: list[ModelMessage], context: str) -> list[ModelMessage]:
    """Return the conversation with the context before its first prompt, in the same message: some
    chat templates refuse two of the user's in a row."""
    if not context:
        return messages
    match messages:
        case [ModelRequest(parts=[UserPromptPart(content=str(text)), *rest]) as first, *others]:
            joined = UserPromptPart(f"{context}\n\n{text}")
            return [replace(first, parts=[joined, *rest]), *others]
        case _:
            return [ModelRequest(parts=[UserPromptPart(context)]), *messages]
