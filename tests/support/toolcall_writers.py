"""Writes tool calls the way models do, one writer for each format, all of them well formed."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from punie_model_host.calls.formats import ToolCallFormat

type Calls = list[tuple[str, dict[str, Any]]]
type Writer = Callable[[Calls], str]


def as_text(value: Any) -> str:
    """Return a value as the formats with tags write it: strings as they are, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def qwen(calls: Calls) -> str:
    return "\n".join(f"<tool_call>\n{qwen_function(*call)}\n</tool_call>" for call in calls)


def qwen_function(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a call in Qwen's tags, without the block round it."""
    values = "".join(
        f"<parameter={key}>\n{as_text(value)}\n</parameter>\n" for key, value in arguments.items()
    )
    return f"<function={name}>\n{values}</function>"


def hermes(calls: Calls) -> str:
    return "\n".join(f"<tool_call>\n{hermes_object(*call)}\n</tool_call>" for call in calls)


def hermes_object(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a call as JSON, without the block round it."""
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def glm(calls: Calls, prefix: str = "") -> str:
    return "\n".join(_glm_call(*call, prefix) for call in calls)


def _glm_call(name: str, arguments: Mapping[str, Any], prefix: str) -> str:
    values = "".join(
        f"<{prefix}arg_key>{key}</{prefix}arg_key>\n"
        f"<{prefix}arg_value>{as_text(value)}</{prefix}arg_value>\n"
        for key, value in arguments.items()
    )
    return f"<{prefix}tool_call>{name}\n{values}</{prefix}tool_call>"


def longcat(calls: Calls) -> str:
    return glm(calls, "longcat_")


def minimax(calls: Calls) -> str:
    return f"<minimax:tool_call>\n{_invokes(calls, '')}</minimax:tool_call>"


def muse(calls: Calls) -> str:
    return f"<atem:function_calls>\n{_invokes(calls, 'atem:')}</atem:function_calls>"


def _invokes(calls: Calls, prefix: str) -> str:
    return "".join(
        f'<{prefix}invoke name="{name}">\n'
        + "".join(
            f'<{prefix}parameter name="{key}">{as_text(value)}</{prefix}parameter>\n'
            for key, value in arguments.items()
        )
        + f"</{prefix}invoke>\n"
        for name, arguments in calls
    )


def minicpm(calls: Calls) -> str:
    return "\n".join(
        f'<function name="{name}">'
        + "".join(
            f'<param name="{key}">{_cdata(as_text(value))}</param>'
            for key, value in arguments.items()
        )
        + "</function>"
        for name, arguments in calls
    )


def _cdata(text: str) -> str:
    return f"<![CDATA[{text}]]>" if set(text) & set("<&\n") else text


def kimi_k2(calls: Calls) -> str:
    written = "".join(
        f"<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>"
        f"{json.dumps(arguments, ensure_ascii=False)}<|tool_call_end|>"
        for number, (name, arguments) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{written}<|tool_calls_section_end|>"


def kimi_k3(calls: Calls) -> str:
    written = "".join(
        f'<|open|>call tool="{name}" index="{number}"<|sep|>'
        + "".join(
            f'<|open|>argument key="{key}" type="{_kind(value)}"<|sep|>{as_text(value)}'
            "<|close|>argument<|sep|>"
            for key, value in arguments.items()
        )
        + "<|close|>call<|sep|>"
        for number, (name, arguments) in enumerate(calls, 1)
    )
    return f"<|open|>tools<|sep|>{written}<|close|>tools<|sep|>"


def _kind(value: Any) -> str:
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array"}
    return kinds.get(type(value), "object")


def gemma4(calls: Calls) -> str:
    return "".join(
        f"<|tool_call>call:{name}{_gemma(arguments, '<|"|>')}<tool_call|>"
        for name, arguments in calls
    )


def function_gemma(calls: Calls) -> str:
    return "".join(
        f"<start_function_call>call:{name}{_gemma(arguments, '<escape>')}<end_function_call>"
        for name, arguments in calls
    )


def _gemma(value: Any, quote: str) -> str:
    match value:
        case str():
            return f"{quote}{value}{quote}"
        case dict():
            return "{" + ",".join(f"{k}:{_gemma(v, quote)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ",".join(_gemma(v, quote) for v in value) + "]"
        case _:
            return json.dumps(value)


def pythonic(calls: Calls) -> str:
    written = ", ".join(
        f"{name}({', '.join(f'{k}={_python(v)}' for k, v in arguments.items())})"
        for name, arguments in calls
    )
    return f"<|tool_call_start|>[{written}]<|tool_call_end|>"


def _python(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def mistral(calls: Calls) -> str:
    return "".join(
        f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments, ensure_ascii=False)}"
        for name, arguments in calls
    )


WRITERS: Final[dict[ToolCallFormat, Writer]] = {
    ToolCallFormat.QWEN3_CODER: qwen,
    ToolCallFormat.JSON: hermes,
    ToolCallFormat.GLM47: glm,
    ToolCallFormat.LONGCAT: longcat,
    ToolCallFormat.MINIMAX_M2: minimax,
    ToolCallFormat.MUSE_SPARK: muse,
    ToolCallFormat.MINICPM5: minicpm,
    ToolCallFormat.KIMI_K2: kimi_k2,
    ToolCallFormat.KIMI_K3: kimi_k3,
    ToolCallFormat.GEMMA4: gemma4,
    ToolCallFormat.FUNCTION_GEMMA: function_gemma,
    ToolCallFormat.PYTHONIC: pythonic,
    ToolCallFormat.MISTRAL: mistral,
}
