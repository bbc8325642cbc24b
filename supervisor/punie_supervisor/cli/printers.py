"""How the answer of ``punie ask`` is printed: as text, as one object, as a stream of objects."""

import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec

from punie_protocol import client as punie
from punie_supervisor.cli import output
from punie_supervisor.clients.turn import Event, EventKind, TurnReport


class Format(StrEnum):
    """How the answer is printed."""

    TEXT = "text"
    JSON = "json"
    JSONL = "jsonl"


class TextPrinter:
    """The answer as it comes; what tools run is said on a terminal's stderr."""

    def __init__(self) -> None:
        self._open = False
        self._any = False

    def accepted(self, _accepted: punie.Accepted) -> None:
        pass

    def event(self, event: Event) -> None:
        output.clear_progress()
        match event.kind:
            case EventKind.TEXT:
                if event.new_block and self._any:
                    _write("\n" if not self._open else "\n\n")
                _write(event.text)
                self._any = True
                self._open = not event.text.endswith("\n")
            case EventKind.TOOL_STARTED if event.tool is not None and sys.stderr.isatty():
                output.progress(f"running {event.tool.name}")
            case _:
                pass

    def finish(self, _report: TurnReport) -> None:
        output.clear_progress()
        if self._open:
            _write("\n")


class JsonPrinter:
    """One object at the end."""

    def accepted(self, _accepted: punie.Accepted) -> None:
        pass

    def event(self, _event: Event) -> None:
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
            case EventKind.TEXT | EventKind.THOUGHT:
                output.print_json_line({"type": event.kind, "text": event.text})
            case EventKind.TOOL_STARTED | EventKind.TOOL_FINISHED:
                output.print_json_line({"type": event.kind} | msgspec.to_builtins(event.tool))
            case EventKind.OTHER:
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
    if report.error is None:
        del fields["error"]
    return fields


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
