"""What Punie adds to ACP: ``_meta.punie``, the ``_punie/*`` methods and the status report.

Names in ``_meta.punie`` are camelCase like ACP's own; the status report and the timings are
snake_case, as ``punie status --json`` prints them.
"""

from enum import StrEnum
from typing import Final

import msgspec

from punie_protocol.errors import WireError
from punie_protocol.messages.common import Isolation, Timings, Usage

ACCEPTED: Final = "_punie/accepted"
"""Notification: the prompt is durable. Params `Accepted`."""
PROGRESS: Final = "_punie/progress"
"""Notification while a prompt waits for the model or a worker. Params `Progress`."""
STATUS: Final = "_punie/status"
"""Request without params. Result `StatusReport`."""
ISOLATE: Final = "_punie/isolate"
"""Request: move an idle project to an isolation level. Params `Isolate`; answered with ``{}``."""
SHUTDOWN: Final = "_punie/shutdown"
"""Request without params: end the daemon. Answered with ``{}`` before it ends."""


class _Meta(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Base: camelCase, defaults left out."""


class SessionMeta(_Meta, frozen=True):
    """In ``session/new``: `isolation` from the client; `session_id` from the supervisor."""

    isolation: Isolation | None = None
    session_id: str | None = None


class PromptMeta(_Meta, frozen=True):
    """In ``session/prompt``: `prompt_id` makes it idempotent, `model` is a name or an absolute
    path. `queue_ms`, from the supervisor to the worker, is how long it waited in the router."""

    prompt_id: str | None = None
    model: str | None = None
    queue_ms: float | None = None


class UpdateMeta(_Meta, frozen=True):
    """In ``session/update``: `seq` from the supervisor; for tool calls the rest from the worker.
    `parent` is the tool call id of the `execute_code` a nested call came from."""

    seq: int | None = None
    prompt_id: str | None = None
    tool: str | None = None
    parent: str | None = None
    duration_ms: float | None = None


class ResultMeta(_Meta, frozen=True):
    """In the response to ``session/prompt``; of one that failed, in the error's ``data.meta``."""

    prompt_id: str
    model: str
    isolation: Isolation
    usage: Usage
    timings_ms: Timings


class Accepted(_Meta, frozen=True):
    """Params of `ACCEPTED`."""

    session_id: str
    prompt_id: str


class Progress(_Meta, frozen=True):
    """Params of `PROGRESS`: one line for a person, and how far (bytes) when that is known."""

    session_id: str
    text: str
    done: int = 0
    total: int = 0


class Isolate(_Meta, frozen=True):
    """Params of `ISOLATE`; `cwd` is the project's folder."""

    cwd: str
    isolation: Isolation


class About(_Meta, frozen=True):
    """In the response to ``initialize``: the frame protocol's number."""

    protocol: int = 0


class WorkerState(StrEnum):
    """State of a child process."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The model host and its model. `state` is ``loading``, ``ready``, ``failed`` or a
    `WorkerState` while the process itself is not ready."""

    name: str
    folder: str
    state: str
    pid: int | None
    rss_bytes: int
    error: WireError | None = None


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A worker process and the roots of its projects."""

    id: str
    pid: int | None
    state: WorkerState
    rss_bytes: int
    restarts: int
    projects: list[str]


class ProjectState(StrEnum):
    """State of a project."""

    ACTIVE = "active"
    PASSIVE = "passive"


class ProjectStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A known project. `sessions` counts them, `last_session` is the most recently prompted."""

    root: str
    isolation: Isolation
    state: ProjectState
    sessions: int
    last_session: str | None


class StatusReport(msgspec.Struct, frozen=True, kw_only=True):
    """``punie status --json``."""

    version: str
    protocol: int
    pid: int
    uptime_s: float
    rss_bytes: int
    socket: str
    home: str
    model: ModelStatus
    workers: list[WorkerStatus]
    projects: list[ProjectStatus]
