"""``punie-supervisor``: the daemon's process."""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from typing import Final

import msgspec
import setproctitle

from punie_protocol.backends import is_backend, parse
from punie_protocol.client import Drafting
from punie_protocol.engine import EngineSettings
from punie_protocol.errors import InvalidRequest, PunieError, WireError
from punie_protocol.handshake import version
from punie_supervisor import drafting, logs
from punie_supervisor.config import Config
from punie_supervisor.daemon import Daemon
from punie_supervisor.lock import AlreadyRunning, LifetimeLock
from punie_supervisor.paths import Paths

STOPPED: Final = 0
BAD_CONFIGURATION: Final = 2
ALREADY_RUNNING: Final = 3


class Started(msgspec.Struct, frozen=True):
    """The line on ``--ready-fd`` once clients can connect."""

    pid: int


class NotStarted(msgspec.Struct, frozen=True):
    """The line on ``--ready-fd`` when that will not be."""

    error: WireError


class Options(msgspec.Struct, frozen=True):
    """The command line."""

    detached: bool
    ready_fd: int | None
    model: str | None
    rest: bool
    drafting: Drafting


def main(argv: list[str] | None = None) -> None:
    """Run the daemon; leaves the process with 0 stopped, 3 already running, 2 bad configuration
    (or a journal or socket that cannot be used)."""
    sys.exit(_main(_options(argv)))


def _options(argv: list[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="punie-supervisor", description="Punie's daemon.")
    parser.add_argument("--detached", action="store_true", help="log to the log file alone")
    parser.add_argument("--ready-fd", type=int, metavar="N", help="say there when clients can come")
    parser.add_argument(
        "--model", metavar="M", help="model name or folder, instead of the config's"
    )
    parser.add_argument(
        "--rest", action="store_true", help="start the model host only when a prompt needs it"
    )
    for name, flag in drafting.FLAGS.items():
        parser.add_argument(flag, metavar="V", help=f"instead of the config's engine.{name}")
    parser.add_argument("--version", action="version", version=version())
    given = vars(parser.parse_args(argv))
    wish = {name: given.pop(name) for name in drafting.FLAGS}
    try:
        return Options(**given, drafting=drafting.parse(wish))
    except PunieError as error:
        parser.error(str(error))


def _main(options: Options) -> int:
    setproctitle.setproctitle("punie-supervisor")
    try:
        paths = Paths.from_environment()
        paths.prepare()
        config = _config(paths)
        lock = LifetimeLock.acquire(paths.lock_file)
    except AlreadyRunning as error:
        return _refuse(options, error, ALREADY_RUNNING)
    except PunieError as error:
        return _refuse(options, error, BAD_CONFIGURATION)
    except OSError as error:
        return _refuse(options, PunieError(InvalidRequest(message=str(error))), BAD_CONFIGURATION)
    try:
        if options.detached:
            os.chdir("/")
        logs.configure(logs.RotatingFile(paths.log_file) if options.detached else sys.stderr)
        asyncio.run(_run(paths, config, options))
    except PunieError as error:
        logs.get(pid=os.getpid()).error("daemon.failed", reason=str(error), hint=error.error.hint)
        return _refuse(options, error, BAD_CONFIGURATION)
    finally:
        lock.release()
    return STOPPED


def _config(paths: Paths) -> Config:
    """Return the config file's settings, with ``PUNIE_MODEL`` over its model."""
    config = Config.load(paths)
    model = os.environ.get("PUNIE_MODEL") or config.model
    engine = _with_path(config.engine, paths)
    return msgspec.structs.replace(config, model=_absolute(model, paths), engine=engine)


def _with_path[S: (EngineSettings, Drafting)](settings: S, paths: Paths) -> S:
    """Return settings whose draft model is a name or an absolute path."""
    if not settings.draft_model:
        return settings
    return msgspec.structs.replace(settings, draft_model=paths.model(settings.draft_model))


def _absolute(model: str, paths: Paths) -> str:
    if is_backend(model):
        parse(model)  # or it is said now
        return model
    return paths.model(model)


async def _run(paths: Paths, config: Config, options: Options) -> None:
    model = _absolute(options.model, paths) if options.model else None
    wish = _with_path(options.drafting, paths)
    daemon = Daemon(paths, config, model=model, drafting=wish, rest=options.rest)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop, f"it got {number.name}")
    await daemon.run(lambda: _tell(options, Started(os.getpid())))


def _refuse(options: Options, error: PunieError, code: int) -> int:
    hint = f"\n{error.error.hint}" if error.error.hint else ""
    if not options.detached:
        print(f"punie-supervisor: {error}{hint}", file=sys.stderr)
    _tell(options, NotStarted(error.error))
    return code


def _tell(options: Options, line: Started | NotStarted) -> None:
    if options.ready_fd is None:
        return
    # Whoever started us may have gone away meanwhile; that is no reason to end.
    with contextlib.suppress(OSError):
        os.write(options.ready_fd, msgspec.json.encode(line) + b"\n")
        os.close(options.ready_fd)


if __name__ == "__main__":
    main()
