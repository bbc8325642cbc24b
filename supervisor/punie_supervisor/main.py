"""``punie-supervisor``: the daemon's process."""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Final

import msgspec
import setproctitle

from punie_protocol.backends import is_backend, parse
from punie_protocol.errors import InvalidRequest, PunieError, WireError
from punie_protocol.handshake import version
from punie_supervisor import logs
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
    parser.add_argument("--version", action="version", version=version())
    return Options(**vars(parser.parse_args(argv)))


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
    return msgspec.structs.replace(config, model=_absolute(model))


def _absolute(model: str) -> str:
    if is_backend(model):
        parse(model)  # or it is said now
        return model
    if os.sep in model or model.startswith("~"):
        return str(Path(model).expanduser().absolute())
    return model


async def _run(paths: Paths, config: Config, options: Options) -> None:
    model = _absolute(options.model) if options.model else None
    daemon = Daemon(paths, config, model=model, rest=options.rest)
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
