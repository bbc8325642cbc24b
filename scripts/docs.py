#!/usr/bin/env python3
"""Writes the reference pages that are derived from code: protocol, tools, code-mode and
metrics in ``docs/reference``, and the table of classes in security.

``--check`` writes nothing and exits 1 when a page is not what the code says.
"""

import inspect
import sys
import tomllib
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import msgspec
import security_table

from punie_model_host import metrics, prometheus
from punie_protocol import client, engine, errors, limits
from punie_protocol.messages import to_model_client, to_model_host, to_supervisor, to_worker
from punie_protocol.tool_types import Tool
from punie_protocol.tool_views import parameters_schema, prompt_stubs, signature
from punie_protocol.tools import TOOLS
from punie_workers.code_advice import MODULES
from punie_workers.code_limits import Limits

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
SECURITY = REFERENCE / "security.md"
PROGRAMS = ROOT / "tests" / "data" / "code_mode.toml"

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

CODE_MODE_INTRODUCTION = """\
Generated from `tests/data/code_mode.toml` by `make docs`; the tests run every program in there.

`execute_code` runs Python that calls the [tools](tools.md) as plain functions, positional or \
keyword. It is [Monty](https://github.com/pydantic/monty), a Python of its own in a process of its \
own: no files, no network, no commands but through the tools, each of which passes the permission \
policy like a direct call. What the program prints is the result; each program starts afresh.

**Checked first.** The program is type-checked against the tools' definitions, and not run when \
something is certainly wrong: a tool called with wrong arguments, an attribute that a result does \
not have, an unknown name or module. What the checker cannot know (a value that may be `None`, a \
dict of mixed values) runs; a tool checks its arguments anyway.

**Results** are read-only, with attributes; `print(r)` shows them all, `==` compares values, and \
what they list is a list: `for m in search("x").matches`, `len(list_files().files)`.

**Errors.** A tool that fails or is refused raises `RuntimeError("kind: message")`. A program that \
fails is told with the line, what it had printed, and what it had changed by then.

**Cancelled**, the sandbox process is ended and the tool call under way is cancelled; no other \
starts."""

METRICS_INTRODUCTION = f"""\
Generated from `punie_model_host.prometheus` by `make docs`.

What the model host's engine says of itself at `/metrics` of its HTTP door, in Prometheus' text \
format ({prometheus.CONTENT_TYPE.partition("; charset")[0]}). `punie status` shows the most \
important of it; `punie status --json` has all of it under `model.engine`, also without the door, \
and under `model.door` where the door is and the file with its key. Counters and histograms begin \
anew when the model host is started.

`client` is the opaque id of a project, or of who came through the HTTP door. The \
{metrics.MAX_CLIENTS} clients that were active most recently are told apart, all others, and those \
with an id of more than {metrics.MAX_NAME} characters, are `client="{metrics.OTHER}"`; one that \
comes back from there begins anew at 0, as after a restart. \
`end` is {", ".join(f"`{end}`" for end in metrics.End)}; `error` is a type of the [protocol's \
errors](protocol.md#errors); `state` is `queued`, `prefilling` or `running`, of a client without \
`prefilling`: all that do not wait run; `part` is `running`, `reserved` or `cache`.

What Prometheus needs to be told, with the port and the file from there:

```yaml
scrape_configs:
  - job_name: punie
    authorization: {{credentials_file: KEY_FILE}}
    static_configs: [{{targets: ["127.0.0.1:PORT"]}}]
```

The 95th percentile of the time to the first token, over five minutes:

```text
histogram_quantile(0.95, rate({prometheus.PREFIX}time_to_first_token_seconds_bucket[5m]))
```"""

EXTENSIONS = (
    (client.ACCEPTED, "daemon → client", "notification", client.Accepted, None),
    (client.PROGRESS, "daemon → client", "notification", client.Progress, None),
    (client.STATUS, "client → daemon", "request", None, client.StatusReport),
    (client.ISOLATE, "client → daemon", "request", client.Isolate, client.IsolateReport),
    (client.UNCONFINED, "client → daemon", "request", client.Unconfined, None),
    (client.COMMANDS, "client → daemon", "request", client.CommandsQuery, client.CommandsReport),
    (client.TRUST, "client → daemon", "request", client.Trust, client.TrustReport),
    (client.PERF, "client → daemon", "request", client.PerfQuery, client.PerfReport),
    (client.PROMPT, "client → daemon", "request", client.PromptQuery, client.PromptReport),
    (client.SERVE, "client → daemon", "request", client.Serve, engine.DoorStatus),
    (client.USE, "client → daemon", "request", client.Use, client.UseReport),
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
    return {
        REFERENCE / "protocol.md": protocol_page(),
        REFERENCE / "tools.md": tools_page(),
        REFERENCE / "code-mode.md": code_mode_page(),
        REFERENCE / "metrics.md": metrics_page(),
        SECURITY: security_table.page(SECURITY.read_text()),
    }


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
    parts.append(f"## As the model's code sees them\n\n```python\n{prompt_stubs()}```")
    return "\n\n".join(parts) + "\n"


def code_mode_page() -> str:
    """Return the page of Code Mode: limits, and what its Python has and has not."""
    data = tomllib.loads(PROGRAMS.read_text())
    works = [(one["construct"],) for one in data["construct"] if "prints" in one]
    instead = [
        (one["construct"], f"`{one['told'].strip()}`") for one in data["construct"] if "told" in one
    ]
    shown = [f"**{one['name']}**\n\n{_program(one)}" for one in data["program"][::6]]
    parts = [
        "# Code Mode",
        CODE_MODE_INTRODUCTION,
        "## Limits",
        _table(("of", "limit", "then"), _limit_rows(Limits())),
        f"## What works\n\nModules: {', '.join(f'`{name}`' for name in MODULES.split())}.",
        _table(("construct",), works),
        "## What to write instead\n\nThe model is told so when it uses one of these.",
        _table(("construct", "instead"), instead),
        f"## Programs\n\n{len(data['program'])} programs are tested; some of them:",
        *shown,
    ]
    return "\n\n".join(parts) + "\n"


def metrics_page() -> str:
    """Return the page of the engine's metrics."""
    rows = [
        (f"`{one.name}`", one.kind, one.unit, ", ".join(one.labels), one.help)
        for one in prometheus.FAMILIES
    ]
    table = _table(("metric", "type", "unit", "labels", "meaning"), rows)
    return f"# Metrics\n\n{METRICS_INTRODUCTION}\n\n{table}\n"


def _limit_rows(limits: Limits) -> list[tuple[str, ...]]:
    return [
        ("computing, tool calls and questions not counted", f"{limits.time_s:g} s", "stopped"),
        ("everything together", f"{limits.total_s / 60:g} min", "stopped, the call too"),
        ("memory", f"{limits.memory // 1024**2} MB", "stopped"),
        ("tool calls", f"{limits.calls}", "stopped"),
        ("output", f"{limits.output // 1024} K characters", "cut and said; the program goes on"),
        ("all that is printed", f"{limits.printed / 1e6:g} M characters", "stopped"),
        ("programs at a time", f"{limits.processes}", f"waits {limits.checkout_s:g} s"),
    ]


def _program(one: dict[str, str]) -> str:
    result = one.get("prints") or f"error … {one['told'].strip()}"
    return f"```python\n{one['code'].strip()}\n```\n\n```text\n{result.strip()}\n```"


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
