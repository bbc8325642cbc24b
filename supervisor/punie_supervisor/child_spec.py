"""Child specs, in Erlang's words: what to start, when to restart, how long it may take to stop."""

import re
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from punie_protocol.engine import EngineSettings
from punie_protocol.messages.common import Role
from punie_supervisor.paths import Paths

MODEL_HOST: Final = "model-host"
"""Id of the model host's spec."""
FORK_SERVER: Final = "fork-server"
"""Id of the fork server's spec."""

_SAVING: Final = 6.0
"""Seconds for the model host to end: it writes its prefix cache to disk then."""
_SHARED = re.compile(r"(HOME|PATH|LANG|LC_[A-Z]+|TMPDIR|TZ|USER|LOGNAME|PUNIE_[A-Z0-9_]+)\Z")
_SECRET = re.compile(r"_(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?)\Z")
_NUMERIC = re.compile(r"(OPENBLAS|OMP)_[A-Z0-9_]+\Z")


class Restart(StrEnum):
    """When an ended child is started again: always; only after a failure; never."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


class ChildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One child. The word ``{fd}`` in `command` becomes the number of its control socket.

    More than `intensity` restarts within `period_s` seconds: it is given up. `start_s` bounds the
    time from spawn to READY, `shutdown_s` the time from the stop message to SIGKILL.
    """

    id: str
    command: tuple[str, ...]
    environment: dict[str, str]
    restart: Restart
    cwd: str = "/"
    start_s: float = 60.0
    shutdown_s: float = 2.0
    intensity: int = 5
    period_s: float = 180.0

    def argv(self, fd: int) -> list[str]:
        """Return the command line for a control socket at `fd`."""
        return [str(fd) if word == "{fd}" else word for word in self.command]


class Programs(msgspec.Struct, frozen=True, kw_only=True):
    """Command lines of the children. Whole words in braces are replaced: ``{fd}``; for the model
    host ``{socket}``, ``{models_dir}``, ``{model}``, ``{cache_dir}`` and ``{settings}`` (JSON)
    too."""

    model_host: tuple[str, ...] = (
        *(sys.executable, "-m", "punie_model_host.main", "--control-fd", "{fd}"),
        *("--socket", "{socket}", "--models-dir", "{models_dir}", "--model", "{model}"),
        *("--settings", "{settings}", "--cache-dir", "{cache_dir}"),
    )
    worker: tuple[str, ...] = (
        *(sys.executable, "-m", "punie_workers.main", "--control-fd", "{fd}"),
    )
    fork_server: tuple[str, ...] = (
        *(sys.executable, "-m", "punie_workers.fork_server", "--control-fd", "{fd}"),
    )


def child_environment(environ: Mapping[str, str], role: Role) -> dict[str, str]:
    """Return what a child may see of `environ`: an allow-list, never a secret."""
    allowed = {
        name: value
        for name, value in environ.items()
        if _SHARED.match(name) and not _SECRET.search(name)
    }
    if role is Role.MODEL_HOST:
        allowed |= {name: value for name, value in environ.items() if _NUMERIC.match(name)}
    return allowed


def model_host_spec(
    paths: Paths,
    model: str,
    environ: Mapping[str, str],
    programs: Programs,
    engine: EngineSettings,
) -> ChildSpec:
    """Return the spec of the model host that starts with `model`."""
    words = {
        "{socket}": str(paths.model_socket),
        "{models_dir}": str(paths.models_dir),
        "{model}": model,
        "{cache_dir}": str(paths.prefix_cache),
        "{settings}": msgspec.json.encode(engine).decode(),
    }
    return ChildSpec(
        id=MODEL_HOST,
        command=tuple(words.get(word, word) for word in programs.model_host),
        environment=child_environment(environ, Role.MODEL_HOST),
        restart=Restart.PERMANENT,
        cwd=_private(paths.run_dir),
        shutdown_s=_SAVING,
    )


def worker_spec(id: str, paths: Paths, environ: Mapping[str, str], programs: Programs) -> ChildSpec:
    """Return the spec of a worker."""
    return ChildSpec(
        id=id,
        command=programs.worker,
        environment=child_environment(environ, Role.WORKER),
        restart=Restart.TRANSIENT,
        cwd=_private(paths.run_dir),
    )


def fork_server_spec(worker: ChildSpec, programs: Programs, *, servers: bool) -> ChildSpec:
    """Return the spec of the fork server for workers like this one; with `servers` it has what they
    need for models of other servers, too."""
    return ChildSpec(
        id=FORK_SERVER,
        command=(*programs.fork_server, *(["--servers"] if servers else [])),
        environment=worker.environment,
        restart=Restart.PERMANENT,
        cwd=worker.cwd,
    )


def spare_spec(worker: ChildSpec) -> ChildSpec:
    """Return the spec of a worker that imports everything and then waits to be needed."""
    command = (*worker.command, "--spare")
    return msgspec.structs.replace(worker, id="spare", command=command)


def _private(folder: Path) -> str:
    # ``python -m`` puts the working directory first on the import path: never a user's folder.
    return str(folder)
