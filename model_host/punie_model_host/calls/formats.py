"""The ways in which models write tool calls, and which one a chat template teaches."""

from collections.abc import Callable, Collection
from enum import StrEnum
from typing import Final


class ToolCallFormat(StrEnum):
    """How the model writes a tool call. Laguna writes as GLM 4.7 does."""

    QWEN3_CODER = "qwen3-coder"
    JSON = "json"
    GLM47 = "glm47"
    LONGCAT = "longcat"
    MINIMAX_M2 = "minimax-m2"
    MINICPM5 = "minicpm5"
    MUSE_SPARK = "muse-spark"
    KIMI_K2 = "kimi-k2"
    KIMI_K3 = "kimi-k3"
    GEMMA4 = "gemma4"
    FUNCTION_GEMMA = "function-gemma"
    PYTHONIC = "pythonic"
    MISTRAL = "mistral"


PARSER_TYPES: Final = {
    "qwen3_coder": ToolCallFormat.QWEN3_CODER,
    "json_tools": ToolCallFormat.JSON,
    "laguna": ToolCallFormat.GLM47,
} | {format.replace("-", "_"): format for format in ToolCallFormat}
"""mlx-lm's names, as ``tool_parser_type`` of ``tokenizer_config.json`` has them."""

_TEMPLATES: Final = (
    (("<minimax:tool_call>",), ToolCallFormat.MINIMAX_M2),
    (("<|tool_call>", "<tool_call|>"), ToolCallFormat.GEMMA4),
    (("<start_function_call>",), ToolCallFormat.FUNCTION_GEMMA),
    (("<longcat_tool_call>",), ToolCallFormat.LONGCAT),
    (("<arg_key>",), ToolCallFormat.GLM47),
    (("<|tool_list_start|>",), ToolCallFormat.PYTHONIC),
    (("<|tool_call_start|>",), ToolCallFormat.PYTHONIC),
    (("<function=",), ToolCallFormat.QWEN3_CODER),
    (("<|tool_calls_section_begin|>",), ToolCallFormat.KIMI_K2),
    (('<function name="', '<param name="'), ToolCallFormat.MINICPM5),
    (("[TOOL_CALLS]",), ToolCallFormat.MISTRAL),
    (("<atem:function_calls>",), ToolCallFormat.MUSE_SPARK),
    (("<tool_call>",), ToolCallFormat.JSON),
)
"""What a template must contain, in mlx-lm's order (``tokenizer_utils._infer_tool_parser``)."""

_VOCABULARIES: Final = (
    (("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"), ToolCallFormat.KIMI_K3),
    (("<|tool_call_start|>", "<|tool_call_end|>"), ToolCallFormat.PYTHONIC),
)


def detect(
    template: str, parser_type: object, special_tokens: Callable[[], Collection[str]]
) -> ToolCallFormat:
    """Return the format of a model: what its configuration names (`parser_type`), else what its
    chat template shows, else what its special tokens (asked for only then) are for, else JSON."""
    if isinstance(parser_type, str) and parser_type in PARSER_TYPES:
        return PARSER_TYPES[parser_type]
    for marks, format in _TEMPLATES:
        if all(mark in template for mark in marks):
            return format
    known = special_tokens()
    for marks, format in _VOCABULARIES:
        if all(mark in known for mark in marks):
            return format
    return ToolCallFormat.JSON
