"""A daemon with fake children as a process of its own: ``HOME [config]``; with the second word it
reads the config file."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from punie_supervisor import logs
from punie_supervisor.config import Config
from punie_supervisor.daemon import Daemon
from tests.support.supervisor_rig import PROGRAMS, paths_of


async def main() -> None:
    logs.configure(sys.stderr)
    paths = paths_of(Path(sys.argv[1]))
    config = Config.load(paths) if sys.argv[2:] else Config(model="tiny")
    daemon = Daemon(paths, config, programs=PROGRAMS)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, daemon.stop, "SIGTERM")
    await daemon.run(lambda: print(os.getpid(), flush=True))


if __name__ == "__main__":
    asyncio.run(main())
