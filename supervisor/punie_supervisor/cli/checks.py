"""What `punie doctor` makes of the facts it found: one `Check` each. Pure."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from punie_protocol import client as punie
from punie_protocol.engine import EngineStatus
from punie_protocol.errors import Overloaded, WireError
from punie_protocol.isolation import WorkerLimits
from punie_supervisor.cli import engine_text

WIDTH: Final = 80
"""Columns of a terminal; a path may need more."""
MIN_DISK: Final = 64 * 1024**2
"""Free bytes below which the journal cannot be relied on."""
SMALL_DISK: Final = 1024**3
MIN_FILES: Final = 1024
"""Open files of the daemon, for some hundred workers."""
MIN_WATCHES: Final = 16_384
"""One a folder of each open project."""
MIN_WATCHERS: Final = 64
"""One an open project."""

_OVERLOADED: Final = str(Overloaded.__struct_config__.tag)


class Level(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at: what there is, and what to do about it unless all is well."""

    name: str
    level: Level
    text: str
    hint: str = ""


class SandboxAnswer(msgspec.Struct, frozen=True):
    """What ``python -m punie_workers.sandbox.available --json`` prints."""

    available: bool
    name: str | None = None
    version: str | None = None
    path: str | None = None
    reason: str | None = None
    hint: str | None = None


class BlasAnswer(msgspec.Struct, frozen=True):
    """What ``python -m punie_model_host.blas`` prints: the library to be loaded, and why it does
    not load."""

    library: str | None = None
    error: str = ""


class Folder(msgspec.Struct, frozen=True, kw_only=True):
    """A folder of Punie's. `mode` is ``None`` while there is none; `writable` then says whether it
    could be made."""

    path: Path
    is_folder: bool
    ours: bool
    writable: bool
    mode: int | None = None


def ok(name: str, text: str) -> Check:
    """All is well."""
    return Check(name=name, level=Level.OK, text=text)


def warn(name: str, text: str, hint: str) -> Check:
    """It works, and something is lost."""
    return Check(name=name, level=Level.WARN, text=text, hint=hint)


def fail(name: str, text: str, hint: str) -> Check:
    """A part of Punie does not work."""
    return Check(name=name, level=Level.FAIL, text=text, hint=hint)


def failed(name: str, error: WireError) -> Check:
    """A part of Punie does not work; `error` says why."""
    return fail(name, error.message, error.hint)


def platform(system: str, machine: str) -> Check:
    """Whether Punie runs here at all."""
    here = f"{system} on {machine}"
    match system, machine:
        case "linux", _:
            return ok("platform", here)
        case "darwin", "arm64":
            return ok("platform", here)
        case "darwin", _:
            hint = "MLX needs Apple silicon; use a model server: --model http://host:port/v1#name"
            return warn("platform", here, hint)
        case _:
            return fail("platform", here, "Punie runs on Linux and macOS")


def python(version: tuple[int, int, int], *, interpreters: bool, gil: bool) -> Check:
    """Whether this Python has what the project halves need."""
    text = ".".join(map(str, version))
    hint = "install CPython 3.14, or run: make bootstrap"
    if version < (3, 14, 0):
        return fail("python", f"{text}, 3.14 is needed", hint)
    if not interpreters:
        return fail("python", f"{text}, without interpreters (PEP 734)", hint)
    if not gil:
        return warn("python", f"{text}, free-threaded: nobody has tried that", hint)
    return ok("python", text)


def sandbox(answer: SandboxAnswer) -> Check:
    """Whether commands and tests can run."""
    if not answer.available:
        reason = answer.reason or "there is none"
        return fail("sandbox", f"none: {reason}", answer.hint or "")
    return ok("sandbox", " ".join(filter(None, (answer.name, answer.version, answer.path))))


def places(missing: Sequence[str]) -> list[Check]:
    """What the config file shows to commands and is not there; nothing when all is."""
    if not missing:
        return []
    text = f"[sandbox] of the config file names what is not there: {', '.join(missing)}"
    return [warn("sandbox", text, "commands do not see it: mend the path, or make the folder")]


def blas(answer: BlasAnswer) -> Check:
    """Whether our own model host computes fast on Linux."""
    hint = "install libopenblas0-pthread, then: scripts/bootstrap --again"
    if answer.error:
        return warn("openblas", f"{answer.library} does not load: {answer.error}", hint)
    if answer.library is None:
        return warn("openblas", "none: models of our own host compute slowly", hint)
    return ok("openblas", answer.library)


def program(name: str, place: Path, code: int, printed: str) -> Check:
    """Whether a program that came with Punie runs."""
    if code:
        return fail(name, f"{place} ended with exit code {code}", "run: scripts/bootstrap --again")
    return ok(name, printed.partition("\n")[0].strip())


def folder(name: str, found: Folder, *, private: bool) -> Check:
    """Whether a folder can be used; with `private` by nobody else."""
    path, hint = found.path, "set PUNIE_HOME to a folder of your own"
    if found.mode is None:
        if found.writable:
            return ok(name, f"{path} (not made yet)")
        return fail(name, f"{path} is not there and cannot be made", hint)
    if not found.is_folder:
        return fail(name, f"{path} is no folder", hint)
    if not found.ours:
        return fail(name, f"{path} belongs to another user", hint)
    if not found.writable:
        return fail(name, f"{path} cannot be written", hint)
    if private and found.mode & 0o077:
        text = f"{path} is open to others (mode {found.mode & 0o777:04o})"
        return warn(name, text, f"run: chmod 700 {path}")
    return ok(name, f"{path}")


def disk(path: Path, free: int) -> Check:
    """Whether the journal has room."""
    text = f"{free / 1e9:.1f} GB free at {path}"
    if free < MIN_DISK:
        return fail("disk", text, "make room: answers are not accepted when the journal is full")
    if free < SMALL_DISK:
        return warn("disk", text, "make room: the journal grows with every conversation")
    return ok("disk", text)


def config(file: Path, mode: int | None, *, keys: bool) -> Check:
    """Whether a config file that is valid keeps its `keys` to its owner; `mode` is ``None`` while
    there is no file."""
    if mode is None:
        return ok("config", f"{file} (none: the defaults hold)")
    if keys and mode & 0o077:
        text = f"{file} holds keys, and others may read it"
        return warn("config", text, f"run: chmod 600 {file}")
    return ok("config", str(file))


def open_files(soft: int, hard: int, limits: WorkerLimits) -> Check:
    """Whether the daemon and its workers may open what they need; -1 is without a limit."""
    text = f"{_number(soft)} open files, up to {_number(hard)}"
    if 0 <= hard < limits.files:
        hint = f"raise it, or set files = {hard} or less in [limits] of the config file"
        return warn("files", f"{text}; a worker should have {limits.files}", hint)
    if 0 <= soft < MIN_FILES:
        return warn("files", text, f"for many projects at once: ulimit -n {MIN_FILES * 4}")
    return ok("files", text)


def processes(hard: int, limits: WorkerLimits) -> Check:
    """Whether a worker may start what its limit allows; -1 is without a limit."""
    text = f"{_number(hard)} processes of this user"
    if 0 <= hard < limits.processes:
        return warn("processes", f"{text}, fewer than one worker may use", "raise: ulimit -u")
    return ok("processes", text)


def watches(folders: int, watchers: int) -> Check:
    """Whether large projects can be watched on Linux."""
    text = f"{folders} watched folders, {watchers} watchers"
    lost = "without watches every question about symbols looks at all files; run: sudo sysctl "
    if folders < MIN_WATCHES:
        return warn("watches", text, f"{lost}fs.inotify.max_user_watches=524288")
    if watchers < MIN_WATCHERS:
        return warn("watches", text, f"{lost}fs.inotify.max_user_instances=512")
    return ok("watches", text)


def versions(daemon: str, ours: str) -> Check:
    """Whether the daemon that runs is of our version."""
    if daemon != ours:
        return warn("daemon", f"version {daemon}, this is {ours}", "run: punie restart")
    return ok("daemon", f"runs, version {daemon}")


def model(status: punie.ModelStatus) -> Check:
    """Whether the model answers."""
    if status.error is not None:
        return failed("model", status.error)
    return ok("model", f"{status.name}, {status.state}")


def engine(status: punie.ModelStatus) -> list[Check]:
    """Whether the model host's engine answers what it is asked, with the draft model that is asked
    for; nothing of what it did while it did nothing."""
    found = status.engine
    if found is None:
        return []
    checks = [_work(found)] if engine_text.has_worked(found) else []
    if error := found.draft_model.error:
        hint = "name another: punie model use --draft-model NAME, or draft_model in config.toml"
        checks.append(warn("drafts", f"no draft model: {error}", hint))
    return checks


def _work(found: EngineStatus) -> Check:
    done = engine_text.requests(found)
    if found.requests.get("failed"):
        return warn("engine", done, "see: punie logs")
    if refused := found.rejected.get(_OVERLOADED, 0):
        text = f"{done}, {refused} of those because too many waited"
        return warn("engine", text, "see who asks: punie status --json, model.engine.clients")
    return ok("engine", f"{done}, {engine_text.cached(found)}")


def workers(found: Sequence[punie.WorkerStatus], system: str) -> Check:
    """Whether workers run, and come as fast as they should."""
    if lost := [w.id for w in found if w.state in _LOST]:
        text = f"cannot be started: {', '.join(lost)}"
        return fail("workers", text, "see: punie logs; then: punie restart")
    if slow := sum(worker.start is punie.WorkerStart.SPAWN for worker in found):
        hint = f"{_server(system)}: see punie logs; then: punie restart"
        return warn("workers", f"{slow} of {len(found)} started from nothing", hint)
    return ok("workers", _counted(found))


def unconfined(found: Iterable[punie.ProjectStatus]) -> list[Check]:
    """Whether commands of a project may run without a sandbox; nothing when none may."""
    roots = [project.root for project in found if project.unconfined]
    if not roots:
        return []
    text = f"commands may run without a sandbox in {', '.join(roots)}"
    return [warn("projects", text, "to end that: punie projects unconfined --revoke DIR")]


def render(found: Iterable[Check]) -> Iterator[tuple[Level, str]]:
    """Yield each check as lines, with the level that the first of them begins with."""
    for one in found:
        head = f"{one.level:<4}  {one.name:<{_NAME}}  "
        hint = one.hint if one.level is not Level.OK else ""
        lines = [*_wrapped(one.text), *_wrapped(hint)]
        yield one.level, head + f"\n{' ' * len(head)}".join(lines)


def summary(found: Sequence[Check]) -> str:
    """Return the outcome in one line."""
    bad = sum(one.level is Level.FAIL for one in found)
    so_so = sum(one.level is Level.WARN for one in found)
    if not bad and not so_so:
        return "all is well"
    return f"{bad} failed, {so_so} {'warning' if so_so == 1 else 'warnings'}"


def is_well(found: Iterable[Check]) -> bool:
    """Whether nothing failed."""
    return all(one.level is not Level.FAIL for one in found)


_NAME: Final = 9
"""Columns of a check's name."""
_LOST: Final = frozenset({punie.WorkerState.FAILED, punie.WorkerState.BACKOFF})


def _wrapped(text: str) -> list[str]:
    room = WIDTH - _NAME - 8
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)


def _server(system: str) -> str:
    return "the fork server does not run" if system == "linux" else "there were no spares"


def _counted(found: Sequence[punie.WorkerStatus]) -> str:
    if not found:
        return "none runs now"
    starts = [w.start.value if w.start else "unknown" for w in found]
    return ", ".join(f"{starts.count(start)} by {start}" for start in dict.fromkeys(starts))


def _number(limit: int) -> str:
    return "any number of" if limit < 0 else str(limit)
