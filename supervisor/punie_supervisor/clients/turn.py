"""What a turn looks like from outside, collected from its updates. Pure."""

from enum import StrEnum
from typing import Any

import msgspec

from punie_protocol.client import ResultMeta, UpdateMeta
from punie_protocol.errors import WireError
from punie_protocol.messages.common import Isolation, Outcome, Timings, Usage
from punie_protocol.verbatim import unfenced


class ToolCallReport(msgspec.Struct, kw_only=True):
    """A tool call of a turn; `parent` is the id of the `execute_code` it came from."""

    id: str
    name: str
    arguments: Any = None
    ok: bool | None = None
    outcome: Outcome | None = None
    duration_ms: float | None = None
    wait_ms: float | None = None
    isolation: Isolation | None = None
    parent: str | None = None
    result: Any = None


class TurnReport(msgspec.Struct, kw_only=True):
    """``punie ask --format json``. `notices` are Punie's own words, not the model's."""

    answer: str
    session_id: str
    project: str
    model: str | None = None
    isolation: Isolation | None = None
    stop_reason: str | None = None
    stop_detail: str = ""
    notices: list[str] = []
    tool_calls: list[ToolCallReport] = []
    usage: Usage = Usage()
    timings_ms: Timings = Timings()
    error: WireError | None = None


class EventKind(StrEnum):
    """What an update means to somebody who watches."""

    TEXT = "text"
    THOUGHT = "thought"
    NOTICE = "notice"
    TOOL_STARTED = "tool_call"
    TOOL_OUTPUT = "tool_output"
    TOOL_FINISHED = "tool_result"
    OTHER = "other"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One update, simplified. `new_block` is true for text that does not continue the last. Of
    `TOOL_OUTPUT`, `text` is what came since the last one."""

    kind: EventKind
    text: str = ""
    new_block: bool = False
    tool: ToolCallReport | None = None


class _MetaHolder(msgspec.Struct):
    punie: UpdateMeta = UpdateMeta()


class _Content(msgspec.Struct, frozen=True):
    text: str = ""


class _ToolContent(msgspec.Struct):
    type: str = ""
    content: _Content = _Content()


class _Update(msgspec.Struct, rename={"meta": "_meta"}):
    sessionUpdate: str
    content: msgspec.Raw = msgspec.Raw(b"null")
    toolCallId: str = ""
    title: str | None = None
    status: str | None = None
    rawInput: Any = None
    rawOutput: Any = None
    messageId: str | None = None
    meta: _MetaHolder = msgspec.field(default_factory=_MetaHolder)


class _Notification(msgspec.Struct, rename={"session_id": "sessionId", "meta": "_meta"}):
    session_id: str
    update: _Update
    meta: _MetaHolder = msgspec.field(default_factory=_MetaHolder)


class _ResultMetaHolder(msgspec.Struct):
    punie: ResultMeta | None = None


class PromptResult(msgspec.Struct, rename={"stop_reason": "stopReason", "meta": "_meta"}):
    """The response to ``session/prompt``."""

    stop_reason: str
    meta: _ResultMetaHolder = msgspec.field(default_factory=_ResultMetaHolder)


class TurnCollector:
    """Builds a `TurnReport` from the ``session/update`` notifications of one prompt; those of the
    session's other prompts are passed over.

    The answer is the text after the last tool call; a block that is superseded (the model host
    was restarted) is dropped when its successor begins.
    """

    def __init__(self, session_id: str, project: str, prompt_id: str = "") -> None:
        self.report = TurnReport(answer="", session_id=session_id, project=project)
        self.prompt_id = prompt_id
        self._tools: dict[str, ToolCallReport] = {}
        self._printed: dict[str, str] = {}
        self._blocks: dict[str | None, list[str]] = {}
        self._last_block: str | None = None

    def update(self, params: bytes | msgspec.Raw) -> Event:
        """Take one notification's params in and say what it means."""
        notification = msgspec.json.decode(params, type=_Notification)
        update = notification.update
        owner = notification.meta.punie.prompt_id or update.meta.punie.prompt_id
        if self.prompt_id and owner and owner != self.prompt_id:
            return Event(kind=EventKind.OTHER)
        match update.sessionUpdate:
            case "agent_message_chunk":
                return self._text(update)
            case "agent_thought_chunk":
                return self._thought(update)
            case "tool_call":
                return self._tool_started(update)
            case "tool_call_update":
                return self._tool_updated(update)
            case _:
                return Event(kind=EventKind.OTHER)

    def finish(self, result: PromptResult) -> TurnReport:
        """Complete the report with the response."""
        self.report.stop_reason = result.stop_reason
        self._measured(result.meta.punie)
        return self.report

    def fail(self, error: WireError, meta: bytes | None) -> TurnReport:
        """Complete the report with an error response, and its `ResultMeta` if it had one."""
        self.report.error = error
        self._measured(None if meta is None else msgspec.json.decode(meta, type=ResultMeta))
        return self.report

    def _measured(self, meta: ResultMeta | None) -> None:
        if meta is not None:
            self.report.model, self.report.isolation = meta.model, meta.isolation
            self.report.usage, self.report.timings_ms = meta.usage, meta.timings_ms
            self.report.stop_detail = meta.stop_detail

    def _text(self, update: _Update) -> Event:
        text = _text_of(update)
        new = update.messageId not in self._blocks
        if new:
            self._blocks = {update.messageId: []}
        self._blocks[update.messageId].append(text)
        self.report.answer = "".join(self._blocks[update.messageId])
        return Event(kind=EventKind.TEXT, text=text, new_block=new)

    def _thought(self, update: _Update) -> Event:
        text = _text_of(update)
        if not update.meta.punie.notice:
            return Event(kind=EventKind.THOUGHT, text=text)
        self.report.notices.append(text.strip())
        return Event(kind=EventKind.NOTICE, text=text)

    def _tool_started(self, update: _Update) -> Event:
        meta = update.meta.punie
        tool = ToolCallReport(
            id=update.toolCallId,
            name=meta.tool or update.title or "",
            arguments=update.rawInput,
            parent=meta.parent,
        )
        self._tools[tool.id] = tool
        self.report.tool_calls.append(tool)
        self._blocks = {}
        self.report.answer = ""
        return Event(kind=EventKind.TOOL_STARTED, tool=tool)

    def _tool_updated(self, update: _Update) -> Event:
        tool = self._tools.get(update.toolCallId)
        if tool is None:
            return Event(kind=EventKind.OTHER)
        if update.rawInput is not None:
            tool.arguments = update.rawInput
        if update.status not in ("completed", "failed"):
            return self._tool_output(tool, update)
        self._printed.pop(tool.id, None)
        tool.ok = update.status == "completed"
        tool.result = update.rawOutput
        meta = update.meta.punie
        tool.duration_ms, tool.wait_ms = meta.duration_ms, meta.wait_ms
        tool.outcome, tool.isolation = meta.outcome, meta.isolation
        return Event(kind=EventKind.TOOL_FINISHED, tool=tool)

    def _tool_output(self, tool: ToolCallReport, update: _Update) -> Event:
        """What a call shows replaces what it showed before: the end of its output, so far."""
        shown = _shown_by(update)
        if not shown:
            return Event(kind=EventKind.OTHER)
        new = added(self._printed.get(tool.id, ""), shown)
        self._printed[tool.id] = shown
        return Event(kind=EventKind.TOOL_OUTPUT, text=new, tool=tool)


def added(before: str, now: str) -> str:
    """Return what `now` has more than `before`, of which it may have lost the beginning."""
    if not now or now.startswith(before):
        return now[len(before) :]
    back = _borders(now)
    kept = 0  # characters at the end of what was read of `before` that `now` begins with
    for character in before:
        while kept and (kept == len(now) or now[kept] != character):
            kept = back[kept - 1]
        kept += now[kept] == character
    return now[kept:]


def _borders(text: str) -> list[int]:
    """Return for each beginning of `text` how long the end of it is that it begins with too, but
    for itself (Knuth, Morris, Pratt: linear in the text, whatever a program prints)."""
    back = [0] * len(text)
    for at in range(1, len(text)):
        length = back[at - 1]
        while length and text[at] != text[length]:
            length = back[length - 1]
        back[at] = length + (text[at] == text[length])
    return back


def _text_of(update: _Update) -> str:
    content = msgspec.json.decode(update.content, type=_Content | None)
    return content.text if content is not None else ""


def _shown_by(update: _Update) -> str:
    """Return what the program of a call that runs has printed lately; diffs are no text, and what
    was shown before it ran is no output."""
    if update.status != "in_progress":
        return ""
    contents = msgspec.json.decode(update.content, type=list[_ToolContent] | None) or []
    return "".join(unfenced(one.content.text) for one in contents if one.type == "content")
