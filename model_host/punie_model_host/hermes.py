"""Tool calls as JSON, in the form of the Hermes models:
``{"name": ..., "arguments": {...}}``, one object after the other."""

import json
from typing import Any


def json_calls(body: str) -> list[tuple[str, dict[str, Any]]] | None:
    """Return the calls in `body`, JSON objects one after the other; None for anything else."""
    calls: list[tuple[str, dict[str, Any]]] = []
    decoder = json.JSONDecoder(strict=False)
    body = body.strip()
    while body:
        try:
            value, end = decoder.raw_decode(body)
            call = _json_call(value)
        except ValueError, RecursionError:
            return None
        if call is None:
            return None
        calls.append(call)
        body = body[end:].strip()
    return calls or None


def _json_call(value: Any) -> tuple[str, dict[str, Any]] | None:
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or not name:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json.loads(arguments, strict=False)
    return (name, arguments) if isinstance(arguments, dict) else None
