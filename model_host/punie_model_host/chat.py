"""A conversation as the tokens of a prompt, through the model's chat template."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, assert_never

import msgspec
from jinja2 import TemplateError
from mlx_lm.tokenizer_utils import TokenizerWrapper

from punie_model_host.quoting import Quoting
from punie_model_host.toolcalls import Schemas
from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.messages.common import PromptStyle
from punie_protocol.messages.to_model_host import (
    AnyChatMessage,
    AssistantMessage,
    SystemMessage,
    ToolCallPart,
    ToolMessage,
    ToolSchema,
    UserMessage,
)

_THINK: Final = (
    "<think>",
    "<longcat_think>",
    "<|think:start|>",
    "<|channel>thought",
    "<|open|>think<|sep|>",
    "[THINK]",
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens to answer; `thinking` says that they end inside the thinking."""

    tokens: list[int]
    thinking: bool


def render(
    tokenizer: TokenizerWrapper,
    messages: Sequence[AnyChatMessage],
    tools: Sequence[ToolSchema],
    style: PromptStyle,
    controls: Sequence[str] = (),
    *,
    to_answer: bool = True,
    check: Callable[[str], None] = lambda text: None,
) -> Prompt:
    """Return the prompt. `controls` are quoted where messages (instructions excepted) contain
    them: what users, tools and the model wrote is text, only the template's tags are tokens.
    With `to_answer` the opening of an answer follows. `check` is given the rendered text before it
    is tokenized, and may raise. Raises `PunieError` when the conversation does not fit the
    template."""
    if not messages:
        raise PunieError(InvalidRequest(message="a conversation without messages"))
    shown = [_tool(tool) for tool in tools] if style is PromptStyle.TOOLS else []
    quoting = Quoting(controls)
    try:
        chat = [_message(message, quoting) for message in messages]
        text = tokenizer.apply_chat_template(
            chat, tools=shown or None, add_generation_prompt=to_answer, tokenize=False
        )
    except (TemplateError, RecursionError) as error:
        message = f"the chat template refuses this conversation: {error}"
        raise PunieError(InvalidRequest(message=message)) from error
    check(text)
    return Prompt(quoting.encode(tokenizer, text), text.rstrip().endswith(_THINK))


def properties(tools: Sequence[ToolSchema]) -> Schemas:
    """Return the properties of each tool's parameters. Raises `PunieError` naming a bad tool."""
    return {tool.name: _properties(tool) for tool in tools}


def _properties(tool: ToolSchema) -> dict[str, dict[str, Any]]:
    found = _json_object(tool.parameters, f"parameters of tool {tool.name}").get("properties", {})
    if not isinstance(found, dict):
        message = f"parameters of tool {tool.name}: properties are not an object"
        raise PunieError(InvalidRequest(message=message))
    return {key: value for key, value in found.items() if isinstance(value, dict)}


def _tool(tool: ToolSchema) -> dict[str, Any]:
    parameters = _json_object(tool.parameters, f"parameters of tool {tool.name}")
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _message(message: AnyChatMessage, quoting: Quoting) -> dict[str, Any]:
    match message:
        case SystemMessage(text=text):
            return {"role": "system", "content": text}
        case UserMessage(text=text):
            return {"role": "user", "content": quoting.protect(text)}
        case AssistantMessage():
            return _assistant(message, quoting)
        case ToolMessage(text=text, name=name, call_id=call_id):
            texts = {"content": text, "name": name, "tool_call_id": call_id}
            return {"role": "tool", **quoting.protect_json(texts)}
        case _:
            assert_never(message)


def _assistant(message: AssistantMessage, quoting: Quoting) -> dict[str, Any]:
    chat: dict[str, Any] = {"role": "assistant", "content": quoting.protect(message.text)}
    if message.thinking:
        chat["reasoning_content"] = quoting.protect(message.thinking)
    if message.tool_calls:
        chat["tool_calls"] = [_call(call, quoting) for call in message.tool_calls]
    return chat


def _call(call: ToolCallPart, quoting: Quoting) -> dict[str, Any]:
    arguments = _json_object(call.arguments, f"arguments of call {call.call_id}")
    texts = {"id": call.call_id, "function": {"name": call.name, "arguments": arguments}}
    return {"type": "function", **quoting.protect_json(texts)}


def _json_object(text: str, what: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        message = f"{what}: not a JSON object: {error}"
        raise PunieError(InvalidRequest(message=message)) from None
