"""The model host's program. Started by the supervisor:

python -m punie_model_host.main --control-fd N --socket PATH --models-dir DIR --model NAME_OR_PATH

or, without a supervisor, by a person; with ``mlx.launch`` as several ranks with one model:

mlx.launch --hostfile FILE -- python -m punie_model_host.main --socket PATH --model PATH \\
    --openai-port PORT --openai-key-file FILE
"""

import argparse
import asyncio
import logging
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Final, NoReturn

import msgspec
import setproctitle

from punie_model_host import blas, follower
from punie_model_host.follower import FollowerOptions
from punie_model_host.lifetime import die_with_parent, leave, private_temporary_folder
from punie_model_host.log import configure, event
from punie_model_host.process import EXIT_START, Host, HostOptions
from punie_model_host.ranks import Place, Sharding, place_of
from punie_model_host.standalone import DoorPlan
from punie_protocol.engine import EngineSettings
from punie_protocol.errors import PunieError

_OFFLINE: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Nothing is fetched: a folder is complete, or it is not loaded."""

_log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the model host; ends the process."""
    options = _options(sys.argv[1:] if argv is None else argv)
    alone = options.control_fd is None
    signal.signal(signal.SIGINT, signal.SIG_DFL if alone else signal.SIG_IGN)
    die_with_parent()
    configure()
    _choose_blas()
    if options.control_fd is not None:
        os.set_inheritable(options.control_fd, False)
    setproctitle.setproctitle("punie-model-host")
    os.environ.update(_OFFLINE)
    leave(_run(options))


def _run(options: HostOptions) -> int:
    folder = options.socket_path.parent
    try:
        if options.control_fd is None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ["TMPDIR"] = str(private_temporary_folder(folder))
        if options.ranks is not None and not options.ranks[0].leads:
            return follower.run(_follows(options, *options.ranks))
        return asyncio.run(_host(options))
    except PunieError as error:
        event(_log, logging.CRITICAL, "start-failed", error=error, hint=error.error.hint)
    except OSError as error:
        event(_log, logging.CRITICAL, "start-failed", error=error)
    return EXIT_START


async def _host(options: HostOptions) -> int:
    return await Host(options).run()


def _follows(options: HostOptions, place: Place, sharding: Sharding) -> FollowerOptions:
    return FollowerOptions(
        models_dir=options.models_dir,
        settings=options.settings,
        place=place,
        sharding=sharding,
    )


def _options(argv: list[str]) -> HostOptions:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if (arguments.openai_port is None) != (arguments.openai_key_file is None):
        parser.error("--openai-port and --openai-key-file go together")
    door = None
    if arguments.openai_port is not None:
        door = DoorPlan(arguments.openai_port, arguments.openai_key_file.absolute())
    try:
        place = place_of(os.environ)
    except PunieError as error:
        parser.error(f"{error}; {error.error.hint}")
    return HostOptions(
        control_fd=arguments.control_fd,
        socket_path=arguments.socket.absolute(),
        models_dir=arguments.models_dir.absolute(),
        model=arguments.model,
        settings=arguments.settings,
        cache_dir=arguments.cache_dir and arguments.cache_dir.absolute(),
        door=door,
        ranks=None if place is None else (place, arguments.sharding),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m punie_model_host.main",
        description="Punie's model host. The supervisor starts it; to start Punie: punie up",
    )
    parser.add_argument("--control-fd", type=_socket, help="connected Unix socket; else alone")
    parser.add_argument("--socket", type=Path, required=True, help="where clients connect")
    parser.add_argument("--models-dir", type=Path, default=Path(), help="folder of model folders")
    parser.add_argument("--model", required=True, help="'embedded', a name or an absolute path")
    parser.add_argument("--settings", type=_settings, default=EngineSettings(), help="JSON")
    parser.add_argument("--cache-dir", type=Path, help="keeps the prefix cache between starts")
    parser.add_argument(
        "--openai-port", type=int, help="HTTP door, 0 for any free port; alone only"
    )
    parser.add_argument("--openai-key-file", type=Path, help="file with the HTTP door's key")
    parser.add_argument(
        "--sharding",
        type=Sharding,
        choices=list(Sharding),
        default=Sharding.AUTO,
        help="how ranks divide the model, when mlx.launch started several",
    )
    return parser


def _socket(text: str) -> int:
    try:
        fd = int(text)
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            return fd
    except ValueError, OSError, OverflowError:
        pass
    raise argparse.ArgumentTypeError(f"{text} is not a socket; start Punie: punie up")


def _settings(text: str) -> EngineSettings:
    try:
        return msgspec.json.decode(text, type=EngineSettings)
    except msgspec.MsgspecError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _choose_blas() -> None:
    library = blas.wanted(os.environ, Path(sys.prefix), sys.platform)
    if library is not None:
        try:
            blas.load(library, blas.threads(os.process_cpu_count() or 1))
        except OSError as error:
            event(_log, logging.ERROR, "blas-not-loaded", library=library, error=error)
            library = None
    event(_log, logging.INFO, "blas", library=library or "built into MLX")


if __name__ == "__main__":
    main()
