"""Edits as a model is asked for them and as it answers: the conversation, and the answer's text.

The conversation has the three tools that change files, the request, and the file in it. The answer
is a line of prose and calls in Qwen3-Coder's XML: `rewrite` writes the whole file again, `replace`
replaces pieces of it, each with up to three lines round what changes, as in a diff, and as many
more as make it unique.
"""

import difflib
import json
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from benchmarks.edits import Edit
from punie_protocol.messages.to_model_host import (
    AnyChatMessage,
    AssistantMessage,
    SystemMessage,
    ToolCallPart,
    ToolMessage,
    ToolSchema,
    UserMessage,
)
from punie_protocol.tools_files import ReadFileResult

SYSTEM: Final = (
    "You are Punie, a coding agent. You work inside one project on the user's machine. Edit in "
    "small exact steps; `old_text` must stand exactly once in the file: copy it, with its "
    "indentation. Change what was asked for and nothing else."
)
END: Final = "<|im_end|>"
_CONTEXT: Final = 3

type Call = tuple[str, dict[str, str]]
"""A tool and its arguments."""


class Shown(StrEnum):
    """How the file stands in the conversation."""

    TEXT = "text"
    """As ``print(read_file(path).text)`` prints it in Code Mode."""
    JSON = "json"
    """As a direct call of ``read_file`` returns it: line ends and quotes are escaped."""


def conversation(edit: Edit, shown: Shown) -> list[AnyChatMessage]:
    """Return what is said before the answer."""
    match shown:
        case Shown.TEXT:
            name, arguments = "execute_code", {"code": f'print(read_file("{edit.path}").text)'}
            result = edit.before
        case Shown.JSON:
            name, arguments = "read_file", {"path": edit.path}
            lines = edit.before.count("\n")
            read = ReadFileResult(
                text=edit.before,
                start_line=1,
                end_line=lines,
                total_lines=lines,
                truncated=False,
                encoding="utf-8",
                content_hash="",
            )
            result = msgspec.json.encode(read).decode()
    call = ToolCallPart(call_id="call_1", name=name, arguments=json.dumps(arguments))
    return [
        SystemMessage(text=SYSTEM),
        UserMessage(text=edit.asked),
        AssistantMessage(tool_calls=[call]),
        ToolMessage(call_id="call_1", name=name, text=result),
    ]


def rewrite(edit: Edit) -> list[Call]:
    """Return the call that writes the whole file."""
    return [("write_file", {"path": edit.path, "text": edit.after})]


def replace(edit: Edit) -> list[Call]:
    """Return the calls that make the edit piece by piece."""
    return [
        ("edit_file", {"path": edit.path, "old_text": old, "new_text": new})
        for old, new in _pieces(edit.before.splitlines(), edit.after.splitlines())
    ]


def _pieces(before: Sequence[str], after: Sequence[str]) -> Iterator[tuple[str, str]]:
    matcher = difflib.SequenceMatcher(a=before, b=after, autojunk=False)
    for group in matcher.get_grouped_opcodes(_CONTEXT):
        (_, a, _, c, _), (_, _, b, _, d) = group[0], group[-1]
        while a and "\n".join(before).count("\n".join(before[a:b])) > 1:
            a, c = a - 1, c - 1
        yield "\n".join(before[a:b]), "\n".join(after[c:d])


def answer(prose: str, calls: Sequence[Call]) -> str:
    """Return the text of an answer, its end included."""
    return f"{prose}\n\n" + "\n".join(map(_xml, calls)) + END


def _xml(call: Call) -> str:
    name, arguments = call
    given = "".join(
        f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items()
    )
    return f"<tool_call>\n<function={name}>\n{given}</function>\n</tool_call>"


def _schema(name: str, about: str, required: Sequence[str]) -> ToolSchema:
    properties = {key: {"type": "string"} for key in required}
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return ToolSchema(name=name, description=about, parameters=json.dumps(parameters))


TOOLS: Final = (
    _schema("execute_code", "Run Python that calls the other tools as functions.", ["code"]),
    _schema("read_file", "Read lines of a text file.", ["path"]),
    _schema(
        "edit_file",
        "Replace `old_text`, which must stand exactly once in the file, by `new_text`.",
        ["path", "old_text", "new_text"],
    ),
    _schema("write_file", "Write a whole text file; missing folders are made.", ["path", "text"]),
)
