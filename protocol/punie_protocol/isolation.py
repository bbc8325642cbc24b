"""What projects are kept to: the limits of a worker process, the sandbox of its programs.

Both are settings of the user's config file, which reach a worker with its `Welcome`.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from punie_protocol.limits import MAX_PATH

MAX_PLACES: Final = 100
"""Paths, and names of variables, that a list of the sandbox's settings may have."""

type Megabytes = Annotated[int, Meta(ge=256, le=1_000_000)]
type Place = Annotated[str, Meta(min_length=1, max_length=MAX_PATH)]
type Variable = Annotated[str, Meta(min_length=1, max_length=200)]


class WorkerLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[limits]`` of the config file: what a worker process at level ``process`` may use, with all
    that its tools started. A worker over one of them is ended, and says so.

    `memory_mb` is private memory; `cpu_s` CPU seconds in one turn (in turns that overlap,
    together), and between two turns; `processes` is how many live at once; `files` how many
    descriptors each may have open.
    """

    memory_mb: Megabytes = 4096
    cpu_s: Annotated[float, Meta(ge=1, le=1_000_000)] = 3600.0
    processes: Annotated[int, Meta(ge=16, le=100_000)] = 512
    files: Annotated[int, Meta(ge=256, le=1_000_000)] = 4096


class SandboxSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[sandbox]`` of the config file: what programs that a tool runs may see besides the project
    and the system. `read` and `write` are absolute paths, ``~`` is the user's home; `environment`
    names variables that are handed on."""

    read: Annotated[list[Place], Meta(max_length=MAX_PLACES)] = []
    write: Annotated[list[Place], Meta(max_length=MAX_PLACES)] = []
    environment: Annotated[list[Variable], Meta(max_length=MAX_PLACES)] = []
