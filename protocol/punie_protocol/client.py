"""What Punie adds to ACP: ``_meta.punie``, the ``_punie/*`` methods and the status report.

Names in ``_meta.punie`` are camelCase like ACP's own; the status report and the timings are
snake_case, as ``punie status --json`` prints them.
"""

from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from punie_protocol.backends import Backend
from punie_protocol.engine import DoorStatus, EngineSettings, EngineStatus, Port, Speculation
from punie_protocol.errors import WireError
from punie_protocol.isolation import WorkerLimits
from punie_protocol.messages.common import (
    HalfStatus,
    Isolation,
    ModelTiming,
    Outcome,
    Timings,
    ToolTiming,
    Usage,
)
from punie_protocol.permissions import Mode, PromptPermissions

ACCEPTED: Final = "_punie/accepted"
"""Notification: the prompt is durable. Params `Accepted`."""
PROGRESS: Final = "_punie/progress"
"""Notification while a prompt waits for the model or a worker. Params `Progress`."""
STATUS: Final = "_punie/status"
"""Request without params. Result `StatusReport`."""
ISOLATE: Final = "_punie/isolate"
"""Request: move an idle project to an isolation level. Params `Isolate`, result
`IsolateReport`."""
UNCONFINED: Final = "_punie/unconfined"
"""Request: let a project's commands run where there is no sandbox, or no more. Params
`Unconfined`; answered with ``{}``."""
COMMANDS: Final = "_punie/commands"
"""Request: the background commands of a project, or end them. Params `CommandsQuery`, result
`CommandsReport`."""
TRUST: Final = "_punie/trust"
"""Request: trust a project's own settings as they are, or no more. Params `Trust`, result
`TrustReport`."""
PERF: Final = "_punie/perf"
"""Request: the timings of turns. Params `PerfQuery`, result `PerfReport`."""
PROMPT: Final = "_punie/prompt"
"""Request: what a model is told before the first prompt. Params `PromptQuery`, result
`PromptReport`."""
SERVE: Final = "_punie/serve"
"""Request: open the model host's HTTP door, or close it. Params `Serve`, result
`engine.DoorStatus`."""
USE: Final = "_punie/use"
"""Request: have our model host use another model, or other settings of its engine, from now on.
It waits for the turns under way; `PROGRESS` to who asked meanwhile. Params `Use`, result
`UseReport`."""
SHUTDOWN: Final = "_punie/shutdown"
"""Request without params: end the daemon. Answered with ``{}`` before it ends."""


class _Meta(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Base: camelCase, defaults left out."""


class SessionMeta(_Meta, frozen=True):
    """In ``session/new``: `isolation` and `mode` from the client; `session_id` from the
    supervisor."""

    isolation: Isolation | None = None
    mode: Mode | None = None
    session_id: str | None = None


class Resume(_Meta, frozen=True):
    """A turn goes on after its worker was lost: `attempt` counts from 1, `stored` are the deltas
    of this prompt that the history has already."""

    attempt: int
    stored: int


class PromptMeta(_Meta, frozen=True):
    """In ``session/prompt``: `prompt_id` makes it idempotent, `model` is a name, an absolute path
    or a server's address (`backends`), `permissions` hold for this prompt.

    From the supervisor to the worker: `queue_ms` is how long it waited in the router, `backend`
    the server to ask instead of the model host, `resume` says that it was begun before."""

    prompt_id: str | None = None
    model: str | None = None
    permissions: PromptPermissions | None = None
    queue_ms: float | None = None
    backend: Backend | None = None
    resume: Resume | None = None


class UpdateMeta(_Meta, frozen=True):
    """In ``session/update``: `seq` from the supervisor; for tool calls the rest from the worker.
    `parent` is the tool call id of the `execute_code` a nested call came from; `wait_ms` the wait
    for a permission, which is no part of `duration_ms`. `notice`: the thought is no model's but a
    line of Punie's own for the person who asked."""

    seq: int | None = None
    prompt_id: str | None = None
    tool: str | None = None
    parent: str | None = None
    duration_ms: float | None = None
    wait_ms: float | None = None
    outcome: Outcome | None = None
    isolation: Isolation | None = None
    notice: bool = False


class ResultMeta(_Meta, frozen=True):
    """In the response to ``session/prompt``; of one that failed, in the error's ``data.meta``.
    `stop_detail` says more about a turn that ended early, for a person. `tools` are the first
    `limits.MAX_TURN_CALLS` calls in order of their start, `steps` all model steps."""

    prompt_id: str
    model: str
    isolation: Isolation
    usage: Usage
    timings_ms: Timings
    stop_detail: str = ""
    tool_count: int = 0
    tools: list[ToolTiming] = []
    steps: list[ModelTiming] = []


class Accepted(_Meta, frozen=True):
    """Params of `ACCEPTED`."""

    session_id: str
    prompt_id: str


class Progress(_Meta, frozen=True):
    """Params of `PROGRESS`: one line for a person, and how far (bytes) when that is known.
    `session_id` is empty when it is of a request that is no prompt."""

    session_id: str
    text: str
    done: int = 0
    total: int = 0


class Isolate(_Meta, frozen=True):
    """Params of `ISOLATE`; `cwd` is the project's folder."""

    cwd: str
    isolation: Isolation


class IsolateReport(msgspec.Struct, frozen=True, kw_only=True):
    """Result of `ISOLATE`: the project's root, its level now and before. `confined` is why it ran
    alone until now although its level shares, or empty: that is forgotten."""

    root: str
    isolation: Isolation
    before: Isolation
    confined: str = ""


class Unconfined(_Meta, frozen=True):
    """Params of `UNCONFINED`; `cwd` is the project's folder."""

    cwd: str
    unconfined: bool = True


class CommandsQuery(_Meta, frozen=True):
    """Params of `COMMANDS`; `cwd` is the project's folder. `stop`: end them."""

    cwd: str
    stop: bool = False


class BackgroundCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A command that runs, or ran until it was stopped just now: its `job` as the model knows it,
    its text, cut when it is long, and seconds since its start."""

    job: str
    command: str
    seconds: float


class CommandsReport(msgspec.Struct, frozen=True, kw_only=True):
    """Result of `COMMANDS`: the project's root, and the commands that run; those that were ended
    when that was asked."""

    root: str
    commands: list[BackgroundCommand]


class Trust(_Meta, frozen=True):
    """Params of `TRUST`. `cwd` is the project's folder."""

    cwd: str
    trusted: bool = True


class TrustReport(msgspec.Struct, frozen=True, kw_only=True):
    """Result of `TRUST`. `files` are the project's own settings, relative to `root`; `digest` is
    of their content, empty when there are none."""

    root: str
    files: list[str]
    digest: str
    trusted: bool


class PerfQuery(_Meta, frozen=True):
    """Params of `PERF`: the last `turns` turns, newest first, of one session, of one project, or
    of all."""

    session_id: str | None = None
    cwd: str | None = None
    turns: int = 50


class TurnPerf(msgspec.Struct, frozen=True, kw_only=True):
    """One turn that ended. `started_at` is Unix time, `state` the journal's word, `title` the
    first line of the prompt; `meta` is ``None`` for a turn that never reached a worker."""

    session_id: str
    prompt_id: str
    root: str
    title: str
    started_at: float
    state: str
    stop_reason: str | None
    meta: ResultMeta | None


class PerfReport(msgspec.Struct, frozen=True, kw_only=True):
    """Result of `PERF`, newest turn first."""

    turns: list[TurnPerf]


class PromptQuery(_Meta, frozen=True):
    """Params of `PROMPT`. `cwd` is the project's folder; `model` as in a prompt."""

    cwd: str
    model: str | None = None


class PromptPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of what a model is told, in order: ``core``, ``stubs``, ``tools``, ``project``,
    ``session``, and ``added`` for tools that a session brought. `tokens` is what it adds."""

    name: str
    text: str
    tokens: int


class PromptReport(msgspec.Struct, frozen=True, kw_only=True):
    """Result of `PROMPT`. `tokens` is of all parts but ``added``; `exact` when the model's own
    tokenizer counted, else they are guessed from the text."""

    model: str
    style: str
    exact: bool
    tokens: int
    parts: list[PromptPart]


class Serve(_Meta, frozen=True):
    """Params of `SERVE`. `port` as in the config file's ``[engine]``; None: where it is open
    already, else as the config file says, else any. `stop`: close it."""

    port: Port | None = None
    stop: bool = False


class Drafting(_Meta, frozen=True):
    """Settings of the engine that a command line changes until the daemon ends; what is None stays.
    `num_draft_tokens` 0: as many as pay; `draft_model` is a name or an absolute path, empty:
    none."""

    speculation: Speculation | None = None
    num_draft_tokens: Annotated[int, Meta(ge=0, le=64)] | None = None
    draft_model: Annotated[str, Meta(max_length=4096)] | None = None


class Use(Drafting, frozen=True):
    """Params of `USE`. `model` is a name or an absolute path; None: the one in use."""

    model: str | None = None


class UseReport(msgspec.Struct, frozen=True, kw_only=True):
    """Result of `USE`: the model as it was asked for, its folder (empty while the host has not been
    needed), the engine's settings; `changed` is false when all was so already."""

    model: str
    folder: str
    settings: EngineSettings
    changed: bool


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
    `WorkerState` while the process itself is not ready; ``server`` when the model of prompts that
    name none is a server's and our host has not been needed. `settings` are the engine's, those in
    force."""

    name: str
    folder: str
    state: str
    pid: int | None
    rss_bytes: int
    error: WireError | None = None
    engine: EngineStatus | None = None
    door: DoorStatus | None = None
    settings: EngineSettings | None = None


class WorkerStart(StrEnum):
    """How a worker process came to be: forked from a warm server, taken from the spares that had
    imported everything, or started from nothing."""

    FORK = "fork"
    SPARE = "spare"
    SPAWN = "spawn"


class WorkerUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker process and all that its tools started use now: private bytes, CPU seconds in
    the present turn or since the last, processes, and open descriptors of the one that has
    most."""

    memory_bytes: int
    cpu_s: float
    processes: int
    files: int


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A worker process and the roots of its projects. `limits` is ``None`` for one that several
    projects share: they are promised for one alone. `draining` is why it takes no new turns, or
    empty."""

    id: str
    pid: int | None
    state: WorkerState
    rss_bytes: int
    restarts: int
    projects: list[str]
    isolation: Isolation = Isolation.PROCESS
    start: WorkerStart | None = None
    limits: WorkerLimits | None = None
    usage: WorkerUsage | None = None
    draining: str = ""


class ServerState(StrEnum):
    """State of a model server. ``external``: somebody else's, used as it is."""

    IDLE = "idle"
    STARTING = "starting"
    READY = "ready"
    EXTERNAL = "external"
    STOPPING = "stopping"
    FAILED = "failed"


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A model server of the config file. `pid` is that of a process of ours, `error` why it does
    not run."""

    url: str
    state: ServerState
    pid: int | None
    error: WireError | None = None


class ProjectState(StrEnum):
    """State of a project."""

    ACTIVE = "active"
    PASSIVE = "passive"


class ProjectStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A known project. `sessions` counts them, `last_session` is the most recently prompted.
    `confined` is why it runs alone although its level shares, or empty; `worker` the id of the
    process it is in while it is active, `half` what its tools did there, `programs` its
    background commands. `unconfined`: the user lets its commands run without a sandbox."""

    root: str
    isolation: Isolation
    state: ProjectState
    sessions: int
    last_session: str | None
    confined: str = ""
    worker: str | None = None
    half: HalfStatus | None = None
    programs: int = 0
    unconfined: bool = False


class StatusReport(msgspec.Struct, frozen=True, kw_only=True):
    """``punie status --json``. `config` is the config file, which may be missing, `state` the
    folder of journal and log."""

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
    servers: list[ServerStatus] = []
    config: str = ""
    state: str = ""
