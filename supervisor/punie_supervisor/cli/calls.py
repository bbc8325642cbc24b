"""A tool call in one line: what it is about, what it did. Pure."""

import shlex
from typing import Any, Final

from punie_protocol.messages.common import Outcome
from punie_supervisor.clients.turn import ToolCallReport

MAX_COMMAND: Final = 120
"""Characters of a command that stand in a line; a permission question shows all of it."""

_RUNNING: Final = frozenset({"run_command", "pytest_run"})


def target(arguments: Any) -> str:
    """Return what a call is about: a path, or a command; empty when its arguments name neither."""
    match arguments:
        case {"command": str(text)} if text:
            return _cut(text)
        case {"command": [_, *_] as words}:
            return _cut(shlex.join(map(str, words)))
        case {"job": str(job)} if job:
            return f"job {job}"
        case {"path": str(path)}:
            return path
        case _:
            return ""


def called(call: ToolCallReport) -> str:
    """Return a call's tool, and what it is about."""
    return " ".join(filter(None, (call.name, target(call.arguments))))


def done(call: ToolCallReport) -> str:
    """Return what a call did to a file, or which program it ran and how that ended; empty for
    every other one."""
    match call.result:
        case {"path": path, "diff": _, "added": added, "removed": removed} if call.ok:
            given = call.arguments if isinstance(call.arguments, dict) else {}
            moved = f"{given.get('path')} → " if "destination" in given else ""
            return f"{call.name} {moved}{path} +{added} -{removed}"
        case {"output": _, "exit_code": _, "running": _} if not _only_looks(call):
            return f"{called(call)}{_reach(call)}: {_ending(call.result)}"
        case {"passed": _, "failed": _, "errors": _, "skipped": _}:
            return f"{called(call)}: {_counts(call.result)}"
        case {"error": str(text)} if call.name in _RUNNING and call.outcome is Outcome.FAILED:
            return f"{called(call)}{_reach(call)}: {_cut(text.removeprefix('error: '))}"
        case _:
            return ""


def _only_looks(call: ToolCallReport) -> bool:
    """Whether a call asks what a background command has printed."""
    match call.arguments:
        case {"job": str(job), **others}:
            return bool(job) and not others.get("stop")
        case _:
            return False


def _reach(call: ToolCallReport) -> str:
    match call.arguments:
        case {"network": True}:
            return " (with the network)"
        case _:
            return ""


def _ending(result: dict[str, Any]) -> str:
    match result:
        case {"running": True}:
            return f"runs in the background, job {result.get('job')}"
        case {"exit_code": None}:
            return "stopped"
        case _:
            return f"exit code {result['exit_code']}"


def _counts(result: dict[str, Any]) -> str:
    errors = "error" if result["errors"] == 1 else "errors"
    names = {"passed": "passed", "failed": "failed", "errors": errors, "skipped": "skipped"}
    counts = [f"{result[key]} {word}" for key, word in names.items() if result[key]]
    return ", ".join(counts) or "no tests"


def _cut(text: str) -> str:
    """Return a text in one line, its first when it has several."""
    first, newline, _ = text.strip().partition("\n")
    if len(first) > MAX_COMMAND:
        return f"{first[:MAX_COMMAND]}…"
    return f"{first} …" if newline else first
