"""Requests of OpenAI's chat API, decoded strictly and turned into `Generate`. Pure.

Fields that it does not know are ignored, as OpenAI's servers do. What it knows and cannot do is
refused by name: nobody takes an answer for what it is not.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
from msgspec import Raw

from punie_model_host.door.faults import Refusal, invalid, undecodable
from punie_model_host.door.limits import MAX_ITEMS, MAX_USER
from punie_protocol.messages.common import ModelInfo, Priority
from punie_protocol.messages.to_model_host import (
    AnyChatMessage,
    AssistantMessage,
    Generate,
    Sampling,
    SystemMessage,
    ToolCallPart,
    ToolMessage,
    ToolSchema,
    UserMessage,
)

REQUEST_ID: Final = 1
"""Each HTTP request is a client of its own, with one request."""
CLIENT: Final = "http"
"""Fairness key of requests that name no user."""
_ANY_MODEL: Final = ("", "default")
_NO_PARAMETERS: Final = '{"type":"object","properties":{}}'


class Part(msgspec.Struct, frozen=True):
    """One part of a message's content."""

    type: str
    text: str | None = None


class FunctionCall(msgspec.Struct, frozen=True):
    """`arguments` is the JSON text of an object."""

    name: str
    arguments: str = "{}"


class CallIn(msgspec.Struct, frozen=True):
    """A tool call of an earlier answer."""

    id: str
    function: FunctionCall
    type: str = "function"


class MessageIn(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the conversation."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallIn] | None = None
    tool_call_id: str | None = None


class FunctionIn(msgspec.Struct, frozen=True, kw_only=True):
    """A function that may be called; `parameters` is its JSON schema."""

    name: str
    description: str | None = None
    parameters: Raw = Raw(b"null")


class ToolIn(msgspec.Struct, frozen=True, kw_only=True):
    """A tool; only functions are known."""

    type: str
    function: FunctionIn | None = None


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`include_usage`: an event with the usage comes last."""

    include_usage: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """Only plain text is made."""

    type: str = "text"


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A choice that is more than a word: it names a tool."""

    type: str = ""


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``POST /v1/chat/completions``. What is ``None`` is as the model's profile says;
    `top_k` to `xtc_threshold` are named as mlx_lm.server does."""

    messages: list[MessageIn]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    n: int | None = None
    logprobs: bool | int | None = None
    response_format: ResponseFormat | None = None
    tools: list[ToolIn] | None = None
    tool_choice: str | ToolChoice | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


_decoder = msgspec.json.Decoder(ChatRequest)


def decode(body: bytes) -> ChatRequest:
    """Return the request. Raises `Refusal`."""
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise undecodable(error) from None


def check_model(name: str | None, model: ModelInfo) -> None:
    """Raise `Refusal` when a request asks for another model than the one that is loaded; its name,
    its folder and ``default`` are that one."""
    if name is None or name in _ANY_MODEL or name in (model.name, model.folder):
        return
    text = f"there is no model {name[:200]!r} here; the one that is loaded is {model.name!r}"
    raise Refusal(404, "invalid_request_error", text, param="model", code="model_not_found")


def generate(request: ChatRequest, conversation_id: str) -> Generate:
    """Return what the engine is to answer. `conversation_id` is for requests that name none.
    Raises `Refusal` for what is not known or cannot be done."""
    _check_possible(request)
    background = request.service_tier == "flex"
    return Generate(
        request_id=REQUEST_ID,
        client_id=_client(request),
        conversation_id=request.prompt_cache_key or conversation_id,
        priority=Priority.BACKGROUND if background else Priority.INTERACTIVE,
        messages=list(_messages(request.messages)),
        tools=[] if request.tool_choice == "none" else list(_tools(request.tools or [])),
        sampling=_sampling(request),
    )


def _check_possible(request: ChatRequest) -> None:
    if len(request.messages) > MAX_ITEMS:
        text = f"messages are {len(request.messages)}, at most {MAX_ITEMS} are read"
        raise invalid(text, "messages")
    if request.n not in (None, 1):
        raise invalid(f"n is {request.n}: one answer a request is made", "n")
    if request.logprobs:
        raise invalid("log probabilities are not given", "logprobs")
    if request.response_format is not None and request.response_format.type != "text":
        kind = request.response_format.type
        raise invalid(f"an answer of type {kind[:80]!r} cannot be forced", "response_format")
    if request.tool_choice not in (None, "auto", "none"):
        raise invalid("a tool call cannot be forced: 'auto' or 'none'", "tool_choice")


def _client(request: ChatRequest) -> str:
    user = request.user or request.safety_identifier or request.prompt_cache_key
    return f"{CLIENT}:{user[:MAX_USER]}" if user else CLIENT


def _sampling(request: ChatRequest) -> Sampling:
    stop = request.stop or []
    most = request.max_completion_tokens
    return Sampling(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        xtc_probability=request.xtc_probability,
        xtc_threshold=request.xtc_threshold,
        logit_bias=request.logit_bias or {},
        seed=request.seed,
        max_tokens=request.max_tokens if most is None else most,
        stop=[stop] if isinstance(stop, str) else stop,
    )


def _messages(messages: Sequence[MessageIn]) -> Iterator[AnyChatMessage]:
    names: dict[str, str] = {}  # of the tools that were called, by the call's id
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        text = _text(message.content, where)
        match message.role:
            case "system" | "developer":
                yield SystemMessage(text=text)
            case "user":
                yield UserMessage(text=text)
            case "assistant":
                calls = list(_calls(message.tool_calls or [], where))
                names |= {call.call_id: call.name for call in calls}
                thinking = message.reasoning_content or ""
                yield AssistantMessage(text=text, thinking=thinking, tool_calls=calls)
            case "tool":
                id = message.tool_call_id
                if id is None:
                    raise invalid(
                        f"{where}: a tool's message names its call", f"{where}.tool_call_id"
                    )
                yield ToolMessage(call_id=id, name=names.get(id, message.name or ""), text=text)
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
    if part.type != "text":
        raise invalid(f"{where}: only text is read, not {part.type[:80]!r}", f"{where}.type")
    if part.text is None:
        raise invalid(f"{where}: it has no text", f"{where}.text")
    return part.text


def _calls(calls: Sequence[CallIn], where: str) -> Iterator[ToolCallPart]:
    for number, call in enumerate(calls):
        if call.type != "function":
            param = f"{where}.tool_calls[{number}].type"
            raise invalid(f"{param}: only functions are called, not {call.type[:80]!r}", param)
        arguments = call.function.arguments or "{}"
        yield ToolCallPart(call_id=call.id, name=call.function.name, arguments=arguments)


def _tools(tools: Sequence[ToolIn]) -> Iterator[ToolSchema]:
    for number, tool in enumerate(tools):
        function = tool.function
        if tool.type != "function" or function is None:
            param = f"tools[{number}].type"
            raise invalid(f"{param}: only functions are known, not {tool.type[:80]!r}", param)
        yield ToolSchema(
            name=function.name,
            description=function.description or "",
            parameters=_parameters(bytes(function.parameters), number),
        )


def _parameters(schema: bytes, number: int) -> str:
    """Return a schema as it came; whether it is one, the engine says."""
    try:
        return _NO_PARAMETERS if schema == b"null" else schema.decode()
    except UnicodeDecodeError as error:
        param = f"tools[{number}].function.parameters"
        raise invalid(f"{param}: not UTF-8: {error.reason}", param) from None
