"""What surrounds the calls of each format in an answer."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from punie_model_host.arguments import Schemas
from punie_model_host.calls import notations, tags
from punie_model_host.calls.bodies import BodyReader, Notation
from punie_model_host.calls.formats import ToolCallFormat
from punie_model_host.calls.reading import CallReader
from punie_model_host.calls.tag_reader import TagReader
from punie_model_host.calls.tags import Dialect

type Make = Callable[[Schemas], CallReader]
type Literals = Callable[[Collection[str]], tuple[str, ...]]

_THINKING: Final = (("<think>", "</think>"), ("<|think:start|>", "<|think:end|>"))


@dataclass(frozen=True)
class Frame:
    """Marks in lower case. `openers` begin a block anywhere. At the start of a line `bare` texts
    (for tools of these names) begin one too, and are part of it; so do, with `functions`, a tag of
    that dialect. With `shared`, what follows the opener says how the call is written. `closers` are
    dropped behind a call, `dropped` everywhere."""

    openers: tuple[str, ...]
    make: Make
    closers: tuple[str, ...]
    bare: Literals = lambda names: ()
    functions: Dialect | None = None
    shared: bool = False
    thinking: tuple[tuple[str, str], ...] = _THINKING
    dropped: tuple[str, ...] = ()


def _tags(dialect: Dialect) -> Make:
    return lambda schemas: TagReader(dialect, schemas, in_block=True)


def _body(notation: Notation) -> Make:
    return lambda schemas: BodyReader(notation, schemas)


_SHARED_CLOSERS: Final = ("</tool_call>", "</tool_calls>", "</function>", "</parameter>")
_SHARED_OPENERS: Final = ("<tool_call>", "<tool_calls>")


def _named(*forms: str) -> Literals:
    """Return what makes texts of the names of tools."""
    return lambda names: tuple(form.format(name.lower()) for name in names for form in forms)


FRAMES: Final = {
    ToolCallFormat.QWEN3_CODER: Frame(
        _SHARED_OPENERS, _tags(tags.QWEN), _SHARED_CLOSERS, functions=tags.QWEN, shared=True
    ),
    ToolCallFormat.JSON: Frame(
        _SHARED_OPENERS, _body(notations.JSON), _SHARED_CLOSERS, shared=True
    ),
    ToolCallFormat.GLM47: Frame(
        _SHARED_OPENERS,
        _tags(tags.GLM),
        (*_SHARED_CLOSERS, "</arg_value>"),
        bare=_named("{}\n<arg_key>", "{}<arg_key>"),
        shared=True,
    ),
    ToolCallFormat.LONGCAT: Frame(
        ("<longcat_tool_call>",),
        _tags(tags.LONGCAT),
        ("</longcat_tool_call>", "</longcat_arg_value>"),
        bare=_named("{}\n<longcat_arg_key>", "{}<longcat_arg_key>"),
        thinking=(*_THINKING, ("<longcat_think>", "</longcat_think>")),
    ),
    ToolCallFormat.MINIMAX_M2: Frame(
        ("<minimax:tool_call>",),
        _tags(tags.MINIMAX),
        ("</minimax:tool_call>", "</invoke>", "</parameter>"),
        functions=tags.MINIMAX,
    ),
    ToolCallFormat.MUSE_SPARK: Frame(
        ("<atem:function_calls>",),
        _tags(tags.MUSE),
        ("</atem:function_calls>", "</atem:invoke>", "</atem:parameter>"),
        functions=tags.MUSE,
    ),
    ToolCallFormat.MINICPM5: Frame(
        (), _tags(tags.MINICPM), ("</function>", "</param>"), functions=tags.MINICPM
    ),
    ToolCallFormat.KIMI_K2: Frame(
        ("<|tool_calls_section_begin|>",),
        _body(notations.KIMI_K2),
        ("<|tool_calls_section_end|>", "<|tool_call_end|>"),
        bare=lambda names: ("<|tool_call_begin|>",),
    ),
    ToolCallFormat.KIMI_K3: Frame(
        ("<|open|>tools<|sep|>",),
        _tags(tags.KIMI_K3),
        ("<|close|>tools<|sep|>", "<|close|>call<|sep|>"),
        functions=tags.KIMI_K3,
        thinking=(("<|open|>think<|sep|>", "<|close|>think<|sep|>"),),
        dropped=(
            "<|open|>response<|sep|>",
            "<|close|>response<|sep|>",
            "<|close|>message<|sep|>",
        ),
    ),
    ToolCallFormat.GEMMA4: Frame(
        ("<|tool_call>",),
        _body(notations.GEMMA4),
        ("<tool_call|>",),
        bare=_named("call:{}{{"),
        thinking=(*_THINKING, ("<|channel>thought", "<channel|>")),
    ),
    ToolCallFormat.FUNCTION_GEMMA: Frame(
        ("<start_function_call>",),
        _body(notations.FUNCTION_GEMMA),
        ("<end_function_call>",),
        bare=_named("call:{}{{"),
    ),
    ToolCallFormat.PYTHONIC: Frame(
        ("<|tool_call_start|>",),
        _body(notations.PYTHONIC),
        ("<|tool_call_end|>",),
        bare=_named("[{}("),
    ),
    ToolCallFormat.MISTRAL: Frame(
        ("[tool_calls]",),
        _body(notations.MISTRAL),
        (),
        bare=_named("{}[args]"),
        thinking=(*_THINKING, ("[think]", "[/think]")),
    ),
}
"""How calls of each format stand in an answer."""
