"""How an answer begins that has to be a tool call: its first tokens are given, not chosen."""

import re
from collections.abc import Iterable
from typing import Final

from punie_model_host.calls.formats import ToolCallFormat
from punie_protocol.errors import InvalidRequest, PunieError

_ANY: Final = {
    ToolCallFormat.QWEN3_CODER: "<tool_call>\n",
    ToolCallFormat.JSON: "<tool_call>\n",
    ToolCallFormat.GLM47: "<tool_call>",
    ToolCallFormat.LONGCAT: "<longcat_tool_call>",
    ToolCallFormat.MINIMAX_M2: "<minimax:tool_call>\n",
    ToolCallFormat.MUSE_SPARK: "<atem:function_calls>\n",
    ToolCallFormat.KIMI_K2: "<|tool_calls_section_begin|>",
    ToolCallFormat.GEMMA4: "<|tool_call>",
    ToolCallFormat.FUNCTION_GEMMA: "<start_function_call>",
    ToolCallFormat.PYTHONIC: "<|tool_call_start|>",
    ToolCallFormat.MISTRAL: "[TOOL_CALLS]",
}
"""What begins a call of any tool: a token of its own in these models' vocabularies, or a line."""
_NAMED: Final = {
    ToolCallFormat.QWEN3_CODER: "<function={}>\n",
    ToolCallFormat.JSON: '{{"name": "{}", "arguments":',
    ToolCallFormat.MINIMAX_M2: '<invoke name="{}">\n',
    ToolCallFormat.MUSE_SPARK: '<atem:invoke name="{}">\n',
}
"""What follows that for one tool, where the name can be ended too: else the model might go on with
it."""
_NO: Final = "a call cannot be demanded"
_NAME: Final = re.compile(r"[\w.\-]{1,128}")
_THINK_END: Final = "\n</think>\n\n"
"""An answer that would begin by thinking does not think, as Qwen's template has it."""


def opening(format: ToolCallFormat, name: str, known: Iterable[str], *, thinking: bool) -> str:
    """Return the text that such an answer begins with, for the tool `name` among `known`, or any
    of them if it is empty; `thinking` says that the prompt ends inside ``<think>``. It ends where a
    model's own tokens do.

    Raises `PunieError` without tools, for a name that is not known, and for a format that has no
    such beginning.
    """
    names = set(known)
    if not names or (name and (name not in names or not _NAME.fullmatch(name))):
        message = f"{_NO}: there is no tool {name[:80]!r} that could be called"
        raise PunieError(InvalidRequest(message=message, hint="name one of the tools"))
    if format not in _ANY or (name and format not in _NAMED):
        message = f"{_NO} of this model: its calls ({format.value}) cannot be begun for it"
        raise PunieError(InvalidRequest(message=message, hint="let the model choose"))
    begin = _ANY[format] + (_NAMED[format].format(name) if name else "")
    return _THINK_END + begin if thinking else begin
