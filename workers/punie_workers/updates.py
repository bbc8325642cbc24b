"""``session/update`` notifications of one turn, in ACP's own types."""

import asyncio
import posixpath
import shlex
import time
from typing import Any, Final, Literal

import msgspec
from acp import schema

from punie_protocol import jsonrpc
from punie_protocol.client import UpdateMeta
from punie_protocol.messages.common import Isolation
from punie_protocol.tool_types import Arguments, Permission, Result, Tool
from punie_protocol.verbatim import fenced
from punie_workers.actions import Action, FileDiff
from punie_workers.coalescer import Block, BlockKind, Chunk, Coalescer
from punie_workers.display import shown
from punie_workers.interp.plain import visible
from punie_workers.outlet import Outlet
from punie_workers.tool_clock import ToolCallClock

type Update = (
    schema.AgentMessageChunk
    | schema.AgentThoughtChunk
    | schema.ToolCallStart
    | schema.ToolCallProgress
)

type Content = schema.FileEditToolCallContent | schema.ContentToolCallContent

_MOVE: Final = "move_file"
_COMMAND: Final = "run_command"
_KINDS: Final[dict[str, schema.ToolKind]] = {
    "list_files": "search",
    "search": "search",
    "symbols": "search",
    "delete_file": "delete",
    _MOVE: "move",
    "execute_code": "execute",
}
_BY_PERMISSION: Final[dict[Permission, schema.ToolKind]] = {
    Permission.READ: "read",
    Permission.EDIT: "edit",
    Permission.EXECUTE: "execute",
    Permission.NETWORK: "fetch",
}
_MAX_DIFF: Final = 64 * 1024
"""Characters of each side of a diff that are shown."""


class Updates:
    """What one turn shows. Not for use after `close`.

    What waits for a slow supervisor is `async`; cancelled there, it has been sent.
    """

    def __init__(
        self,
        session_id: str,
        prompt_id: str,
        outlet: Outlet,
        *,
        root: str,
        isolation: Isolation,
        attempt: int = 0,
    ) -> None:
        self._session_id = session_id
        self._prompt_id = prompt_id
        self._outlet = outlet
        self._root = root
        self._isolation: Isolation = isolation
        self._attempt = attempt
        self._coalescer = Coalescer()
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None
        self._message = 0

    async def text(self, kind: BlockKind, text: str) -> None:
        """Show more of what the model says or thinks."""
        suffix = "t" if kind is BlockKind.THOUGHT else ""
        block = Block(kind, self._message_id() + suffix)
        due = self._coalescer.add(block, text, time.monotonic())
        self._set_timer()
        await self._emit(due)

    def notice(self, text: str) -> None:
        """Show a line that is Punie's and no part of the answer."""
        self._flush()
        self._message += 1
        block = Block(BlockKind.THOUGHT, f"{self._message_id()}n")
        self._outlet.send_nowait(self._chunk(Chunk(block, text + "\n"), notice=True))

    async def end_block(self) -> None:
        """Show what waits; text from here on belongs to another message."""
        self._message += 1
        await self._emit(self._coalescer.flush())

    def supersede(self) -> None:
        """Void the message that streams: its text comes again, under another id."""
        self._coalescer.drop()
        self._message += 1

    async def tool_started(
        self, call: ToolCallClock, tool: Tool, arguments: Arguments | dict[str, Any]
    ) -> None:
        """Show a tool call that begins now."""
        self._flush()
        given = shown(arguments)
        start = schema.ToolCallStart(
            session_update="tool_call",
            tool_call_id=call.id,
            title=title(tool.name, given),
            kind=kind(tool),
            status="in_progress",
            raw_input=given,
            locations=self._locations(given.get("path"), given.get("start_line")),
            field_meta=self._meta(tool=tool.name, parent=call.parent_id),
        )
        await self._outlet.send(self._update(start))

    async def tool_prepared(self, call: ToolCallClock, action: Action) -> None:
        """Show what a call with effects would do, before anybody is asked."""
        progress = schema.ToolCallProgress(
            session_update="tool_call_update",
            tool_call_id=call.id,
            content=self._content(call, action) or None,
            locations=self._locations(*action.subject.paths[:1]),
            field_meta=self._meta(tool=call.tool, parent=call.parent_id),
        )
        await self._outlet.send(self._update(progress))

    def tool_printed(self, call: ToolCallClock, text: str) -> None:
        """Show what its program has printed lately, in place of what was shown before; does not
        wait."""
        progress = schema.ToolCallProgress(
            session_update="tool_call_update",
            tool_call_id=call.id,
            status="in_progress",
            content=[text_content(text)],
            field_meta=self._meta(tool=call.tool, parent=call.parent_id),
        )
        self._outlet.send_nowait(self._update(progress))

    def _content(self, call: ToolCallClock, action: Action) -> list[Content]:
        content: list[Content] = [
            diff_content(diff, self._root) for diff in changes(call.tool, action)
        ]
        return [*content, text_content(action.description)] if action.description else content

    async def tool_finished(self, call: ToolCallClock, output: Result | str) -> None:
        """Show how it ended: with a result, or with the text of its error."""
        await self._outlet.send(self._finished(call, output))

    def tool_cancelled(self, call: ToolCallClock) -> None:
        """Show that it was stopped; does not wait."""
        self._outlet.send_nowait(self._finished(call, "error: cancelled"))

    def _finished(self, call: ToolCallClock, output: Result | str) -> bytes:
        status: Literal["completed", "failed"] = (
            "failed" if isinstance(output, str) else "completed"
        )
        raw = shown({"error": output} if isinstance(output, str) else output)
        progress = schema.ToolCallProgress(
            session_update="tool_call_update",
            tool_call_id=call.id,
            status=status,
            raw_output=raw,
            field_meta=self._meta(
                tool=call.tool,
                parent=call.parent_id,
                duration_ms=call.duration_ms,
                wait_ms=call.wait_ms or None,
                outcome=call.outcome,
                isolation=self._isolation,
            ),
        )
        return self._update(progress)

    def _locations(
        self, path: object = None, line: object = None
    ) -> list[schema.ToolCallLocation] | None:
        """Return the one place a call is about, as clients that follow along want it."""
        if not isinstance(path, str):
            return None
        at = line if isinstance(line, int) and line > 1 else None
        return [schema.ToolCallLocation(path=absolute(self._root, path), line=at)]

    def close(self) -> None:
        """Show what waits and stop the clock; does not wait."""
        self._flush()
        self._set_timer()

    def _message_id(self) -> str:
        again = f"{self._attempt}." if self._attempt else ""
        return f"{self._prompt_id}.{again}{self._message}"

    def _set_timer(self) -> None:
        due = self._coalescer.due
        if due == self._due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due, self._timer = due, None
        if due is not None:
            delay = max(0.0, due - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._due = self._timer = None
        self._emit_nowait(self._coalescer.poll(time.monotonic()))
        self._set_timer()

    def _flush(self) -> None:
        self._emit_nowait(self._coalescer.flush())

    def _emit_nowait(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            self._outlet.send_nowait(self._chunk(chunk))

    async def _emit(self, chunks: list[Chunk]) -> None:
        if chunks:
            self._emit_nowait(chunks[:-1])
            await self._outlet.send(self._chunk(chunks[-1]))

    def _chunk(self, chunk: Chunk, *, notice: bool = False) -> bytes:
        content = schema.TextContentBlock(type="text", text=chunk.text)
        message_id = chunk.block.message_id
        meta = self._meta(notice=notice)
        match chunk.block.kind:
            case BlockKind.MESSAGE:
                update: Update = schema.AgentMessageChunk(
                    session_update="agent_message_chunk",
                    content=content,
                    message_id=message_id,
                    field_meta=meta,
                )
            case BlockKind.THOUGHT:
                update = schema.AgentThoughtChunk(
                    session_update="agent_thought_chunk",
                    content=content,
                    message_id=message_id,
                    field_meta=meta,
                )
        return self._update(update)

    def _update(self, update: Update) -> bytes:
        params = schema.SessionNotification(session_id=self._session_id, update=update)
        return jsonrpc.notification("session/update", dump(params))

    def _meta(self, **fields: Any) -> dict[str, Any]:
        meta = UpdateMeta(prompt_id=self._prompt_id, **fields)
        return {"punie": msgspec.to_builtins(meta)}


def dump(model: schema.BaseModel) -> msgspec.Raw:
    """Return an ACP object as JSON, without what is not set."""
    return msgspec.Raw(model.model_dump_json(by_alias=True, exclude_none=True).encode())


def title(name: str, arguments: dict[str, Any]) -> str:
    """Return one line that says what a call does, for a person."""
    if name == _MOVE:
        return f"{name}: {_line(arguments.get('path'))} → {_line(arguments.get('destination'))}"
    first = next((value for value in arguments.values() if isinstance(value, str)), "")
    line = _line(_command(arguments) if name == _COMMAND else first)
    return f"{name}: {line}" if line else name


def changes(name: str, action: Action) -> tuple[FileDiff, ...]:
    """Return the changed files whose texts are shown: a move changes none."""
    return () if name == _MOVE else action.diffs


def _command(arguments: dict[str, Any]) -> str:
    """Return the command of a call, or which job it is about."""
    match arguments.get("command"):
        case str(text) if text:
            return visible(text)
        case list(words):
            return visible(shlex.join(map(str, words)))
        case _:
            return f"job {arguments.get('job')}"


def _line(value: object) -> str:
    """Return the first line of a text, as much as a title takes; one that goes on says so."""
    if not isinstance(value, str):
        return "?"
    text = value.strip()
    line = text.split("\n", 1)[0][:80]
    return line if line == text else f"{line}…"


def kind(tool: Tool) -> schema.ToolKind:
    """Return ACP's kind of a tool."""
    return _KINDS.get(tool.name, _BY_PERMISSION[tool.permission])


def diff_content(diff: FileDiff, root: str) -> schema.FileEditToolCallContent:
    """Return a file's change as clients show it; each side is cut at `_MAX_DIFF` characters, and
    says so."""
    return schema.FileEditToolCallContent(
        type="diff",
        path=absolute(root, diff.path),
        old_text=None if diff.old is None else _short(diff.old),
        new_text=_short(diff.new or ""),
    )


def text_content(text: str) -> schema.ContentToolCallContent:
    """Return what a program printed, or its command, as clients show it."""
    block = schema.TextContentBlock(type="text", text=fenced(text))
    return schema.ContentToolCallContent(type="content", content=block)


def absolute(root: str, path: str) -> str:
    """Return a path of a tool as ACP wants it."""
    return posixpath.normpath(posixpath.join(root, path))


def _short(text: str) -> str:
    if len(text) <= _MAX_DIFF:
        return text
    return f"{text[:_MAX_DIFF]}\n… cut, {len(text) - _MAX_DIFF} more characters"
