"""``punie doctor``: looks at everything Punie needs here. Starts no daemon, changes nothing."""

import asyncio
import importlib.util
import os
import platform
import resource
import sqlite3
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from punie_protocol import client as punie
from punie_protocol.errors import PunieError
from punie_protocol.handshake import version
from punie_protocol.isolation import SandboxSettings, WorkerLimits
from punie_supervisor import journal_schema
from punie_supervisor.cli import checks, output, probes
from punie_supervisor.cli.checks import Check, Level
from punie_supervisor.cli.exit_codes import ExitCode
from punie_supervisor.clients import launch
from punie_supervisor.clients.connection import check_version, connect, ignore
from punie_supervisor.config import Config
from punie_supervisor.paths import Paths

PROGRAMS: Final = ("rg", "ruff", "ty")
"""Those that came with Punie."""
PATIENCE: Final = 5.0
"""Seconds that the daemon may take to answer."""

_COLOURS: Final = {Level.OK: "32", Level.WARN: "33", Level.FAIL: "31"}
_INOTIFY: Final = Path("/proc/sys/fs/inotify")


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """``punie doctor --json``: `ok` when nothing failed."""

    ok: bool
    checks: list[Check]


def doctor(*, as_json: bool) -> ExitCode:
    """Print what was found; fails when something does."""
    found = asyncio.run(look(Paths.from_environment()))
    well = checks.is_well(found)
    if as_json:
        output.print_json(Report(ok=well, checks=found))
    else:
        colours = output.colours(sys.stdout)
        for level, text in checks.render(found):
            lines = map(output.printable, text.split("\n"))
            sys.stdout.write(_painted("\n".join(lines), level, colours=colours) + "\n")
        sys.stdout.write(f"\n{checks.summary(found)}\n")
    return ExitCode.OK if well else ExitCode.TURN_FAILED


async def look(paths: Paths) -> list[Check]:
    """Return every check, in order; programs and the daemon are asked side by side."""
    asked = await asyncio.gather(
        probes.sandbox(), probes.blas(), *map(probes.program, PROGRAMS), _daemon(paths)
    )
    *programs, daemon = asked
    config, settings = _settings(paths)
    return [
        checks.platform(sys.platform, platform.machine()),
        _python(),
        *(one for found in programs for one in found),
        *_folders(paths),
        settings,
        *checks.places(_missing(config.sandbox)),
        _journal(paths.journal),
        *_limits(config.limits),
        *daemon,
    ]


def _painted(text: str, level: Level, *, colours: bool) -> str:
    head, rest = text[:4], text[4:]
    return output.paint(head, _COLOURS[level], colours=colours) + rest


def _python() -> Check:
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    interpreters = importlib.util.find_spec("concurrent.interpreters") is not None
    return checks.python(sys.version_info[:3], interpreters=interpreters, gil=gil)


def _folders(paths: Paths) -> Iterator[Check]:
    yield checks.folder("state", _folder(paths.state_dir), private=True)
    yield checks.folder("run", _folder(paths.run_dir), private=True)
    try:
        paths.check_socket_path()
    except PunieError as error:
        yield checks.failed("socket", error.error)
    else:
        yield checks.ok("socket", str(paths.socket))
    place = _existing(paths.state_dir)
    try:
        free = os.statvfs(place)
    except OSError as error:
        yield checks.fail("disk", f"{place}: {error.strerror}", "set PUNIE_HOME to another folder")
    else:
        yield checks.disk(place, free.f_bavail * free.f_frsize)


def _folder(path: Path) -> checks.Folder:
    try:
        found = path.stat()
    except OSError:
        place = _existing(path)
        writable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
        return checks.Folder(path=path, is_folder=False, ours=False, writable=writable)
    return checks.Folder(
        path=path,
        is_folder=stat.S_ISDIR(found.st_mode),
        ours=found.st_uid == os.geteuid(),
        writable=os.access(path, os.W_OK | os.X_OK),
        mode=found.st_mode,
    )


def _existing(path: Path) -> Path:
    """Return the folder that is there, of `path` and those above it."""
    return next((one for one in (path, *path.parents) if os.path.lexists(one)), Path("/"))


def _settings(paths: Paths) -> tuple[Config, Check]:
    """Return the settings that hold, and the check of their file."""
    file = paths.config_file
    try:
        config = Config.load(paths)
        mode = file.stat().st_mode if file.exists() else None
    except PunieError as error:
        return Config(), checks.failed("config", error.error)
    except OSError as error:
        text = f"cannot read {file}: {error.strerror}"
        return Config(), checks.fail("config", text, "make it readable")
    keys = any(server.key for server in config.servers)
    return config, checks.config(file, mode, keys=keys)


def _missing(sandbox: SandboxSettings) -> list[str]:
    """Return the places of the config file that are not there."""
    places = dict.fromkeys([*sandbox.read, *sandbox.write])
    return [place for place in places if not Path(place).expanduser().exists()]


def _journal(file: Path) -> Check:
    if not file.exists():
        return checks.ok("journal", f"{file} (none yet)")
    hint = "restore it from a copy, or move it away to start with an empty one"
    try:
        db = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=1.0)
        try:
            journal_schema.check_version(db, file)
            [count] = db.execute("SELECT count(*) FROM projects").fetchone()
        finally:
            db.close()
    except PunieError as error:
        return checks.failed("journal", error.error)
    except sqlite3.Error as error:
        return checks.fail("journal", f"{file} cannot be read: {error}", hint)
    return checks.ok("journal", f"{file}, {count} {'project' if count == 1 else 'projects'}")


def _limits(limits: WorkerLimits) -> Iterator[Check]:
    yield checks.open_files(*_limit(resource.RLIMIT_NOFILE), limits)
    yield checks.processes(_limit(resource.RLIMIT_NPROC)[1], limits)
    if sys.platform == "linux":
        try:
            names = ("max_user_watches", "max_user_instances")
            folders, watchers = (int((_INOTIFY / name).read_text()) for name in names)
        except (OSError, ValueError) as error:
            yield checks.warn("watches", f"unknown: {error}", "projects may not be watched")
        else:
            yield checks.watches(folders, watchers)


def _limit(kind: int) -> tuple[int, int]:
    """Return a limit of this process, soft and hard, -1 for none: elsewhere that is a number."""
    soft, hard = resource.getrlimit(kind)
    none = resource.RLIM_INFINITY
    return (-1 if soft == none else soft, -1 if hard == none else hard)


async def _daemon(paths: Paths) -> Sequence[Check]:
    """Ask the daemon, if one runs."""
    if not launch.is_running(paths):
        return [checks.ok("daemon", "not running; the first question starts it")]
    try:
        async with asyncio.timeout(PATIENCE), connect(paths, ignore) as client:
            daemon = await check_version(client)
            report = await client.ask_daemon(punie.STATUS, None, punie.StatusReport)
    except TimeoutError:
        text = f"it runs and does not answer within {PATIENCE:g} s"
        return [checks.fail("daemon", text, "run: punie restart, and see: punie logs")]
    except PunieError as error:
        return [checks.failed("daemon", error.error)]
    return [
        checks.versions(daemon, version()),
        checks.model(report.model),
        *checks.engine(report.model),
        checks.workers(report.workers, sys.platform),
        *checks.unconfined(report.projects),
    ]
