#!/usr/bin/env python3
"""Writes the reference pages that are derived from code: ``docs/reference/{protocol,tools}.md``.

``--check`` writes nothing and exits 1 when a page is not what the code says.
"""

import inspect
import sys
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import msgspec

from punie_protocol import client, errors, limits
from punie_protocol.messages import to_model_client, to_model_host, to_supervisor, to_worker
from punie_protocol.tool_views import parameters_schema, signature, stubs
from punie_protocol.tools import TOOLS, Tool

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"

LINKS: tuple[tuple[str, str, Any], ...] = (
    ("worker or model host → supervisor", "to_supervisor", to_supervisor.ToSupervisor),
    ("supervisor → worker", "to_worker", to_worker.ToWorker),
    ("supervisor → model host", "to_model_host", to_model_host.ControlToModelHost),
    ("worker → model host", "to_model_host", to_model_host.ClientToModelHost),
    ("model host → worker", "to_model_client", to_model_client.ToModelClient),
)
"""Every link's direction, module and union of messages."""

FRAMES = (
    f"Frames: a {limits.FRAME_HEADER_SIZE}-byte big-endian length, then that many bytes of "
    f"MessagePack (at most {limits.MAX_FRAME}): one map whose `type` names the message. "
    f"Protocol number {limits.PROTOCOL}. The first exchange on each link is a handshake "
    f"(`hello` → `welcome`, `client_hello` → `model_welcome` or `refused`) within "
    f"{limits.HANDSHAKE_TIMEOUT:g} s. Who sends what:"
)
TOOLS_INTRODUCTION = (
    "Generated from `punie_protocol.tools` by `make docs`. The model calls them directly, or "
    "from the Python it writes for `execute_code`, with the same names and results."
)

EXTENSIONS = (
    (client.ACCEPTED, "daemon → client", "notification", client.Accepted, None),
    (client.PROGRESS, "daemon → client", "notification", client.Progress, None),
    (client.STATUS, "client → daemon", "request", None, client.StatusReport),
    (client.ISOLATE, "client → daemon", "request", client.Isolate, None),
    (client.SHUTDOWN, "client → daemon", "request", None, None),
)


def members(union: Any) -> tuple[type[msgspec.Struct], ...]:
    """Return the classes of a union alias, or of one class."""
    value = getattr(union, "__value__", union)
    return get_args(value) if isinstance(value, UnionType) else (value,)


def main() -> int:
    """Write or check every page."""
    check = "--check" in sys.argv[1:]
    stale = [page for page, text in pages().items() if not _write(page, text, check=check)]
    for page in stale:
        sys.stderr.write(f"docs: {page.relative_to(REFERENCE.parent.parent)} is stale: make docs\n")
    return 1 if stale else 0


def pages() -> dict[Path, str]:
    """Return the text of each page."""
    return {REFERENCE / "protocol.md": protocol_page(), REFERENCE / "tools.md": tools_page()}


def protocol_page() -> str:
    """Return the page of frames, messages, errors and the extensions of ACP."""
    parts = [
        "# Protocol",
        "Generated from `punie_protocol` by `make docs`; a test checks that it is not stale.",
        FRAMES,
        _diagram(),
    ]
    for direction, module, union in LINKS:
        parts.append(f"## {direction}\n\n`punie_protocol.messages.{module}`")
        parts.append(_table(("message", "fields", "meaning"), map(_message_row, members(union))))
    parts.append("## Errors\n\n`punie_protocol.errors`, inside messages and in JSON-RPC errors.")
    rows = [_error_row(cls) for cls in members(errors.WireError)]
    parts.append(_table(("type", "fault", "retry", "fields", "meaning"), rows))
    parts.append(
        "## Extensions of ACP\n\nClients speak ACP (JSON-RPC over a WebSocket on the Unix socket). "
        "Punie adds `_meta.punie` and these methods."
    )
    parts.append(_table(("method", "direction", "kind", "params", "result"), _extension_rows()))
    metas = (client.SessionMeta, client.PromptMeta, client.UpdateMeta, client.ResultMeta)
    parts += [f"**{cls.__name__}** ({_fields(cls)}): {_doc(cls)}" for cls in metas]
    return "\n\n".join(parts) + "\n"


def tools_page() -> str:
    """Return the page of the tools."""
    parts = [
        "# Tools",
        TOOLS_INTRODUCTION,
    ]
    parts += [_tool_section(tool) for tool in TOOLS.values()]
    parts.append(f"## As the model's code sees them\n\n```python\n{stubs()}```")
    return "\n\n".join(parts) + "\n"


def _tool_section(tool: Tool) -> str:
    schema = parameters_schema(tool)["properties"]
    rows = [
        (f"`{name}`", spec.get("description", ""), _default(tool, name))
        for name, spec in schema.items()
    ]
    return "\n\n".join(
        [
            f"## {tool.name}",
            f"{tool.doc} Permission: **{tool.permission}**.",
            f"`{signature(tool)}`",
            _table(("argument", "meaning", "default"), rows),
            f"Result: {_fields(tool.result)}. {_doc(tool.result)}",
        ]
    )


def _default(tool: Tool, name: str) -> str:
    field = next(f for f in msgspec.structs.fields(tool.arguments) if f.name == name)
    return "required" if field.required else f"`{field.default!r}`"


def _diagram() -> str:
    lines = ["```"]
    for direction, _, union in LINKS:
        lines.append(f"{direction}: {', '.join(_tag(cls) for cls in members(union))}")
    return "\n".join([*lines, "```"])


def _message_row(cls: type[msgspec.Struct]) -> tuple[str, ...]:
    return (f"`{_tag(cls)}`", _fields(cls), _doc(cls))


def _error_row(cls: Any) -> tuple[str, ...]:
    return (f"`{_tag(cls)}`", cls.fault, cls.retry, _fields(cls), _doc(cls))


def _extension_rows() -> list[tuple[str, ...]]:
    return [
        (f"`{method}`", direction, kind, _fields(params), _fields(result))
        for method, direction, kind, params, result in EXTENSIONS
    ]


def _fields(cls: type[msgspec.Struct] | None) -> str:
    if cls is None:
        return "none"
    return ", ".join(f"`{field.encode_name}`" for field in msgspec.structs.fields(cls)) or "none"


def _tag(cls: type[msgspec.Struct]) -> str:
    return str(cls.__struct_config__.tag)


def _doc(cls: type) -> str:
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split())


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )


def _write(page: Path, text: str, *, check: bool) -> bool:
    if check:
        return page.exists() and page.read_text() == text
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)
    return True


if __name__ == "__main__":
    sys.exit(main())
