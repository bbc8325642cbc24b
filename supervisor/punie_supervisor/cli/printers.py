"""How the answer of ``punie ask`` is printed: as text, as one object, as a stream of objects."""

import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

import msgspec

from punie_protocol import client as punie
from punie_supervisor.cli import output
from punie_supervisor.clients.turn import Event, EventKind, ToolCallReport, TurnReport


class Format(StrEnum):
    """How the answer is printed."""

    TEXT = "text"
    JSON = "json"
    JSONL = "jsonl"


_ENDED: Final = "stopped: "
"""So begins a notice of a turn that ended early, which is said at the end anyway."""


class TextPrinter:
    """The answer as it comes. What Punie has to say goes to stderr: notices and what was edited,
    and on a terminal which tool runs."""

    def __init__(self) -> None:
        self._open = False
        self._any = False

    def accepted(self, _accepted: punie.Accepted) -> None:
        pass

    def event(self, event: Event) -> None:
        output.clear_progress()
        match event.kind:
            case EventKind.TEXT:
                self._text(event)
            case EventKind.NOTICE if not event.text.startswith(_ENDED):
                self.pause()
                output.say(f"note: {output.printable(event.text.strip())}")
            case EventKind.TOOL_STARTED if event.tool is not None and sys.stderr.isatty():
                self.pause()
                output.progress(f"running {event.tool.name}")
            case EventKind.TOOL_FINISHED if event.tool is not None:
                if done := _edited(event.tool):
                    self.pause()
                    output.say(done)
            case _:
                pass

    def pause(self) -> None:
        """End the line that the answer stands on, where something else would be written on it."""
        if self._open and sys.stdout.isatty():
            self._write("\n")

    def finish(self, _report: TurnReport) -> None:
        output.clear_progress()
        if self._open:
            self._write("\n")

    def _text(self, event: Event) -> None:
        if event.new_block and self._any:
            self._write("\n" if not self._open else "\n\n")
        self._write(event.text)

    def _write(self, text: str) -> None:
        if sys.stdout.isatty():
            text = "\n".join(map(output.printable, text.split("\n")))
        sys.stdout.write(text)
        sys.stdout.flush()
        self._any = True
        self._open = not text.endswith("\n")


class JsonPrinter:
    """One object at the end."""

    def accepted(self, _accepted: punie.Accepted) -> None:
        pass

    def event(self, _event: Event) -> None:
        pass

    def pause(self) -> None:
        pass

    def finish(self, report: TurnReport) -> None:
        output.clear_progress()
        output.print_json(_for_machines(report))


class JsonlPrinter:
    """Each event as it comes, the whole report last."""

    def accepted(self, accepted: punie.Accepted) -> None:
        output.print_json_line(
            {
                "type": "accepted",
                "session_id": accepted.session_id,
                "prompt_id": accepted.prompt_id,
            }
        )

    def event(self, event: Event) -> None:
        match event.kind:
            case EventKind.TEXT | EventKind.THOUGHT | EventKind.NOTICE:
                output.print_json_line({"type": event.kind, "text": event.text})
            case EventKind.TOOL_STARTED | EventKind.TOOL_FINISHED if event.tool is not None:
                output.print_json_line({"type": event.kind} | _call(event.tool))
            case _:
                pass

    def pause(self) -> None:
        pass

    def finish(self, report: TurnReport) -> None:
        output.print_json_line({"type": "result"} | _for_machines(report))


PRINTERS: dict[Format, Callable[[], TextPrinter | JsonPrinter | JsonlPrinter]] = {
    Format.TEXT: TextPrinter,
    Format.JSON: JsonPrinter,
    Format.JSONL: JsonlPrinter,
}


def _for_machines(report: TurnReport) -> dict[str, Any]:
    fields = msgspec.to_builtins(report)
    fields["timings_ms"] = output.rounded(fields["timings_ms"])
    fields["tool_calls"] = [_call(call) for call in report.tool_calls]
    if report.error is None:
        del fields["error"]
    return fields


def _call(call: ToolCallReport) -> dict[str, Any]:
    """Return a call for machines: the clock's floats are rounded, a tool's own are not."""
    times = {"duration_ms": call.duration_ms, "wait_ms": call.wait_ms}
    return msgspec.to_builtins(call) | output.rounded(times)


def _edited(call: ToolCallReport) -> str:
    """Return in one line what a call did to a file; empty when it did nothing to one."""
    result = call.result
    if not (call.ok and isinstance(result, dict) and "diff" in result and "added" in result):
        return ""
    given = call.arguments if isinstance(call.arguments, dict) else {}
    moved = f"{given.get('path')} → " if "destination" in given else ""
    lines = f" +{result['added']} -{result.get('removed')}"
    return output.printable(f"{call.name} {moved}{result.get('path')}{lines}")
