"""Requests of OpenAI's chat API, turned into what the engine takes. Pure."""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Raw

from punie_model_host.door import wire
from punie_model_host.door.conversation import NOTHING, MessageIn, ToolIn, read_messages, read_tools
from punie_model_host.door.faults import Refusal, invalid
from punie_model_host.door.wire import Asked
from punie_protocol.messages.to_model_host import Generate, ToolSchema

ANY_TOOL: Final = ""
"""For `Generate.must_call`."""


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """Only plain text is made."""

    type: str = "text"


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """A function by its name."""

    name: str


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A choice that is more than a word: it names a tool."""

    type: str = ""
    function: Named | None = None


class ChatRequest(Asked, frozen=True, kw_only=True):
    """Body of ``POST /v1/chat/completions``."""

    messages: list[MessageIn]
    max_completion_tokens: int | None = None
    tools: list[ToolIn] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    modalities: list[str] | None = None
    functions: Raw = NOTHING
    function_call: Raw = NOTHING


_decoder: Final = msgspec.json.Decoder(ChatRequest)


def decode(body: bytes) -> ChatRequest:
    """Return the request. Raises `Refusal`."""
    return wire.decode(_decoder, body)


def generates(request: ChatRequest, conversation_id: str) -> list[Generate]:
    """Return what the engine is to answer, one for each choice. `conversation_id` is for requests
    that name none. Raises `Refusal` for what is not known or cannot be done."""
    _check_possible(request)
    most = request.max_completion_tokens
    tools = list(read_tools(request.tools or []))
    wanted = Generate(
        request_id=1,
        client_id=request.client_id,
        conversation_id=request.prompt_cache_key or conversation_id,
        priority=request.priority,
        messages=list(read_messages(request.messages)),
        tools=[] if request.tool_choice == "none" else tools,
        sampling=request.sampling(request.max_tokens if most is None else most),
        must_call=_must_call(request.tool_choice, tools),
        one_call=request.parallel_tool_calls is False,
    )
    return wire.choices([wanted], request.answers)


def _check_possible(request: ChatRequest) -> None:
    if request.logprobs or request.top_logprobs:
        raise invalid("logprobs: log probabilities are not given", "logprobs")
    if request.response_format is not None and request.response_format.type != "text":
        kind = request.response_format.type
        text = f"response_format: an answer of type {kind[:80]!r} cannot be forced"
        raise invalid(text, "response_format")
    if any(kind != "text" for kind in request.modalities or ()):
        raise invalid("modalities: only text is made", "modalities")
    if request.functions != NOTHING:
        raise _older("functions", "tools")
    if request.function_call != NOTHING:
        raise _older("function_call", "tool_choice")


def _must_call(choice: str | ToolChoice | None, tools: Sequence[ToolSchema]) -> str | None:
    match choice:
        case None | "auto" | "none":
            return None
        case "required" if tools:
            return ANY_TOOL
        case "required":
            raise invalid("tool_choice is 'required', and there are no tools", "tool_choice")
        case ToolChoice(type="function", function=Named(name=name)):
            if name in {tool.name for tool in tools}:
                return name
            raise invalid(f"tool_choice: there is no tool {name[:80]!r} in tools", "tool_choice")
        case str(word) | ToolChoice(type=word):
            known = "'auto', 'none', 'required', or a function's name"
            raise invalid(f"tool_choice: {known}, not {word[:80]!r}", "tool_choice")


def _older(field: str, newer: str) -> Refusal:
    return invalid(f"{field} is of an older API: send {newer}", field)
