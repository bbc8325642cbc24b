"""What a permission question shows and offers. Pure."""

from typing import Final, assert_never

import msgspec
from acp import schema

from punie_protocol.permissions import Answer, PromptPermissions, TrustAnswer
from punie_protocol.project_settings import ProjectConfig
from punie_protocol.tool_types import Arguments, Permission, Tool
from punie_workers.actions import Action, Subject
from punie_workers.display import shown
from punie_workers.policy import starts_programs
from punie_workers.project_settings import Found
from punie_workers.questions import Content, Option, Question
from punie_workers.updates import changes, diff_content, kind, text_content

MAX_DIFFS: Final = 8
"""Files of one call whose changes are shown; each side is cut at 64 K characters."""
MAX_TEXT: Final = 64 * 1024
"""Characters of a text that are shown."""


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call that wants to happen. `permissions` are the prompt's, `title` is one line."""

    call_id: str
    tool: Tool
    arguments: Arguments
    action: Action
    title: str
    permissions: PromptPermissions


def about_call(call: Admission, root: str) -> Question:
    """Return the question whether a call may happen."""
    diffs = changes(call.tool.name, call.action)
    content: list[Content] = [diff_content(diff, root) for diff in diffs[:MAX_DIFFS]]
    if len(diffs) > MAX_DIFFS:
        more = len(diffs) - MAX_DIFFS
        content.append(_text(f"{more} more files would change, which are not shown"))
    if call.action.description:
        content.append(text_content(call.action.description))
    what = _whole_session(call)
    return Question(
        call_id=call.call_id,
        title=call.title,
        kind=kind(call.tool),
        raw_input=shown(call.arguments),
        content=tuple(content),
        options=(
            Option(Answer.ALLOW_ONCE, "allow_once", "Allow"),
            Option(Answer.ALLOW_FOR_SESSION, "allow_always", f"Allow {what} in this session"),
            Option(Answer.REJECT_ONCE, "reject_once", "Reject"),
            Option(Answer.REJECT_ALWAYS, "reject_always", f"Reject {what} in this session"),
        ),
    )


def about_settings(session_id: str, found: Found) -> Question:
    """Return the question whether a project's own settings count: first what they would do, then
    the files."""
    names = " and ".join(found.files)
    texts = [f"What they say:\n{describe(found.config)}"]
    texts += [f"{name}:\n{data.decode(errors='replace')}" for name, data in found.files.items()]
    return Question(
        call_id=f"{session_id}:settings:{found.digest[:16]}",
        title=f"use the settings that this project brings along ({names})",
        kind="other",
        content=tuple(_text(text) for text in texts),
        options=(
            Option(TrustAnswer.TRUST, "allow_always", "Trust them as they are now"),
            Option(TrustAnswer.IGNORE, "reject_once", "Ignore them in this session"),
        ),
    )


def describe(config: ProjectConfig) -> str:
    """Return what settings do, in lines."""
    permissions = config.permissions
    lines = [f"mode: {permissions.mode}"] if permissions.mode else []
    lines += [f"allow {rule}" for rule in permissions.allow]
    lines += [f"deny {rule}" for rule in permissions.deny]
    if config.instructions:
        lines.append(f"tell the model:\n{config.instructions}")
    return "\n".join(lines)


def _whole_session(call: Admission) -> str:
    """Return what `policy.grant_key` makes of an answer, in words."""
    subject = call.action.subject
    match call.tool.permission:
        case Permission.EDIT:
            return "edits of exactly these files" if starts_programs(subject) else "all edits"
        case Permission.EXECUTE:
            every = f"every {call.tool.name}"
            what = every if subject.any_arguments else "exactly this command"
            return f"{what}{_reach(subject)}"
        case Permission.NETWORK:
            return "all network access"
        case Permission.READ:
            return "all reading"
        case _:
            assert_never(call.tool.permission)


def _reach(subject: Subject) -> str:
    if not subject.confined:
        return ", without a sandbox,"
    return ", with the network," if subject.network else ""


def _text(text: str) -> schema.ContentToolCallContent:
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}\n… cut, {len(text) - MAX_TEXT} more characters"
    block = schema.TextContentBlock(type="text", text=text)
    return schema.ContentToolCallContent(type="content", content=block)
