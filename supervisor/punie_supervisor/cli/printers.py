"""How the answer of ``punie ask`` is printed: as text, as one object, as a stream of objects."""

import sys
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, Final

import msgspec

from punie_protocol import client as punie
from punie_supervisor.cli import calls, output
from punie_supervisor.cli.live import Live
from punie_supervisor.clients.turn import Event, EventKind, ToolCallReport, TurnReport


class Format(StrEnum):
    """How the answer is printed."""

    TEXT = "text"
    JSON = "json"
    JSONL = "jsonl"


_ENDED: Final = "stopped: "
"""So begins a notice of a turn that ended early, which is said at the end anyway."""


class TextPrinter:
    """The answer as it comes. What Punie has to say goes to stderr: notices, what was edited and
    run, and on a terminal which tool runs and what it prints."""

    def __init__(self) -> None:
        self._open = False
        self._any = False
        self._live: dict[str, Live] = {}

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
            case EventKind.TOOL_OUTPUT if event.tool is not None and sys.stderr.isatty():
                self.pause()
                self._printed(event.tool, event.text)
            case EventKind.TOOL_FINISHED if event.tool is not None:
                self._finished(event.tool)
            case _:
                pass

    def pause(self) -> None:
        """End the line that the answer stands on, where something else would be written on it."""
        if self._open and sys.stdout.isatty():
            self._write("\n")

    def finish(self, _report: TurnReport) -> None:
        output.clear_progress()
        for live in self._live.values():
            _show(live.end())
        if self._open:
            self._write("\n")

    def _printed(self, tool: ToolCallReport, text: str) -> None:
        """Show more of what a running tool prints; first, which tool it is."""
        if (live := self._live.get(tool.id)) is None:
            live = self._live[tool.id] = Live()
            output.say(f"{output.printable(calls.called(tool))}:")
        _show(live.add(text))
        if live.hidden:
            output.progress(f"  … {live.hidden} more lines: {live.last}")

    def _finished(self, tool: ToolCallReport) -> None:
        live = self._live.pop(tool.id, None)
        if live is not None:
            _show(live.end())
        if done := calls.done(tool):
            self.pause()
            output.say(output.printable(done))

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
            case EventKind.TOOL_OUTPUT if event.tool is not None:
                fields = {"id": event.tool.id, "name": event.tool.name, "text": event.text}
                output.print_json_line({"type": event.kind} | fields)
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


def _show(lines: Iterable[str]) -> None:
    """Print lines of a program on stderr, so that they are not taken for ours."""
    colours = output.colours(sys.stderr)
    sys.stderr.write("".join(f"{output.paint(line, '2', colours=colours)}\n" for line in lines))
    sys.stderr.flush()


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
