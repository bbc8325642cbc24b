"""Messages and tools of OpenAI's chat API, in the forms that clients send, as the engine takes
them. Pure."""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
from msgspec import Raw

from punie_model_host.door.faults import Refusal, invalid
from punie_model_host.door.limits import MAX_ITEMS
from punie_protocol.messages.to_model_host import (
    AnyChatMessage,
    AssistantMessage,
    SystemMessage,
    ToolCallPart,
    ToolMessage,
    ToolSchema,
    UserMessage,
)

NOTHING: Final = Raw(b"null")
"""A field that was left out; null is the same."""
_NO_PARAMETERS: Final = '{"type":"object","properties":{}}'
_TEXTS: Final = ("text", "input_text", "output_text")
"""Types of parts that are text; the last two are the Responses API's."""


class Part(msgspec.Struct, frozen=True):
    """One part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(msgspec.Struct, frozen=True):
    """`arguments` is the JSON text of an object."""

    name: str
    arguments: str = "{}"


class CallIn(msgspec.Struct, frozen=True):
    """A tool call of an earlier answer."""

    id: str
    function: FunctionCall | None = None
    type: str = "function"


class MessageIn(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the conversation. What the model thought is `reasoning_content` or
    `reasoning`, as other servers call it."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallIn] | None = None
    tool_call_id: str | None = None
    function_call: Raw = NOTHING


class FunctionIn(msgspec.Struct, frozen=True, kw_only=True):
    """A function that may be called; `parameters` is its JSON schema."""

    name: str
    description: str | None = None
    parameters: Raw = NOTHING


class ToolIn(msgspec.Struct, frozen=True, kw_only=True):
    """A tool; only functions are known."""

    type: str
    function: FunctionIn | None = None


_arguments: Final = msgspec.json.Decoder(dict[str, Raw])
"""Looks at all, and makes nothing of it: that is done where it keeps nobody waiting."""


def read_messages(messages: Sequence[MessageIn]) -> Iterator[AnyChatMessage]:
    """Return the conversation. Raises `Refusal` that names the message and the field."""
    if not messages:
        raise invalid("messages: a conversation without messages", "messages")
    if len(messages) > MAX_ITEMS:
        raise invalid(f"messages are {len(messages)}, at most {MAX_ITEMS} are read", "messages")
    names: dict[str, str] = {}  # of the tools that were called, by the call's id
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if message.function_call != NOTHING:
            param = f"{where}.function_call"
            raise invalid(f"{param} is of an older API: send tool_calls", param)
        yield _message(message, where, names)


def read_tools(tools: Sequence[ToolIn]) -> Iterator[ToolSchema]:
    """Return the tools; their schemas as they came: whether they are any, the engine says."""
    if len(tools) > MAX_ITEMS:
        raise invalid(f"tools are {len(tools)}, at most {MAX_ITEMS} are read", "tools")
    for number, tool in enumerate(tools):
        function = tool.function
        if tool.type != "function" or function is None:
            raise _no_function(f"tools[{number}]", tool.type)
        yield ToolSchema(
            name=function.name,
            description=function.description or "",
            parameters=_parameters(function.parameters, number),
        )


def _message(message: MessageIn, where: str, names: dict[str, str]) -> AnyChatMessage:
    text = _text(message.content, where)
    match message.role:
        case "system" | "developer":
            return SystemMessage(text=text)
        case "user":
            return UserMessage(text=text)
        case "assistant":
            calls = list(_calls(message.tool_calls or [], where))
            names |= {call.call_id: call.name for call in calls}
            thinking = message.reasoning_content or message.reasoning or ""
            said = text or message.refusal or ""
            return AssistantMessage(text=said, thinking=thinking, tool_calls=calls)
        case "tool":
            id = message.tool_call_id
            if id is None:
                param = f"{where}.tool_call_id"
                raise invalid(f"{param}: a tool's message names its call", param)
            return ToolMessage(call_id=id, name=names.get(id, message.name or ""), text=text)
        case "function":
            param = f"{where}.role"
            raise invalid(f"{param} 'function' is of an older API: send 'tool'", param)
        case role:
            raise invalid(f"{where}: there is no role {role[:80]!r}", f"{where}.role")


def _text(content: str | list[Part] | None, where: str) -> str:
    match content:
        case None:
            return ""
        case str():
            return content
        case _ if len(content) > MAX_ITEMS:
            text = f"{where}.content has {len(content)} parts, at most {MAX_ITEMS} are read"
            raise invalid(text, f"{where}.content")
        case _:
            return "".join(_part(part, f"{where}.content[{n}]") for n, part in enumerate(content))


def _part(part: Part, where: str) -> str:
    if part.type == "refusal":
        return part.refusal or ""
    if part.type not in _TEXTS:
        raise invalid(f"{where}: only text is read, not {part.type[:80]!r}", f"{where}.type")
    if part.text is None:
        raise invalid(f"{where}: it has no text", f"{where}.text")
    return part.text


def _calls(calls: Sequence[CallIn], where: str) -> Iterator[ToolCallPart]:
    for number, call in enumerate(calls):
        at = f"{where}.tool_calls[{number}]"
        if call.type != "function" or call.function is None:
            raise _no_function(at, call.type)
        arguments = call.function.arguments or "{}"
        _check_arguments(arguments, f"{at}.function.arguments")
        yield ToolCallPart(call_id=call.id, name=call.function.name, arguments=arguments)


def _check_arguments(arguments: str, where: str) -> None:
    """Chat templates take them apart."""
    try:
        _arguments.decode(arguments)
    except (msgspec.MsgspecError, RecursionError) as error:
        text = f"{where}: not the JSON text of an object: {error}"
        raise invalid(text, where) from None


def _no_function(where: str, kind: str) -> Refusal:
    if kind == "function":
        return invalid(f"{where}.function is missing", f"{where}.function")
    param = f"{where}.type"
    return invalid(f"{param}: only functions are known, not {kind[:80]!r}", param)


def _parameters(schema: Raw, number: int) -> str:
    try:
        return _NO_PARAMETERS if schema == NOTHING else bytes(schema).decode()
    except UnicodeDecodeError as error:
        param = f"tools[{number}].function.parameters"
        raise invalid(f"{param}: not UTF-8: {error.reason}", param) from None
