"""The model host's program. Started by the supervisor:

python -m punie_model_host.main --control-fd N --socket PATH --models-dir DIR --model NAME_OR_PATH
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

from punie_model_host import blas
from punie_model_host.lifetime import die_with_parent, leave, private_temporary_folder
from punie_model_host.log import configure, event
from punie_model_host.process import EXIT_START, Host, HostOptions
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    configure()
    _choose_blas()
    os.set_inheritable(options.control_fd, False)
    setproctitle.setproctitle("punie-model-host")
    os.environ.update(_OFFLINE)
    leave(_run(options))


def _run(options: HostOptions) -> int:
    try:
        os.environ["TMPDIR"] = str(private_temporary_folder(options.socket_path.parent))
        return asyncio.run(_host(options))
    except PunieError as error:
        event(_log, logging.CRITICAL, "start-failed", error=error, hint=error.error.hint)
    except OSError as error:
        event(_log, logging.CRITICAL, "start-failed", error=error)
    return EXIT_START


async def _host(options: HostOptions) -> int:
    return await Host(options).run()


def _options(argv: list[str]) -> HostOptions:
    parser = argparse.ArgumentParser(
        prog="python -m punie_model_host.main",
        description="Punie's model host. The supervisor starts it; to start Punie: punie up",
    )
    parser.add_argument("--control-fd", type=int, required=True, help="connected Unix socket")
    parser.add_argument("--socket", type=Path, required=True, help="where clients connect")
    parser.add_argument("--models-dir", type=Path, required=True, help="folder of model folders")
    parser.add_argument("--model", required=True, help="'embedded', a name or an absolute path")
    parser.add_argument("--settings", type=_settings, default=EngineSettings(), help="JSON")
    parser.add_argument("--cache-dir", type=Path, help="keeps the prefix cache between starts")
    arguments = parser.parse_args(argv)
    if not _is_socket(arguments.control_fd):
        parser.error(f"--control-fd {arguments.control_fd} is not a socket; start Punie: punie up")
    return HostOptions(
        control_fd=arguments.control_fd,
        socket_path=arguments.socket.absolute(),
        models_dir=arguments.models_dir.absolute(),
        model=arguments.model,
        settings=arguments.settings,
        cache_dir=arguments.cache_dir and arguments.cache_dir.absolute(),
    )


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


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
