"""The daemon with the scripted model, a process of its own: ``python -m benchmarks.daemon``.

Everything in it is real but for the model host that it starts (`benchmarks.scripted_model`), and
with ``--hang`` the fork server (`benchmarks.hanging_fork_server`). Its home is ``PUNIE_HOME``; one
line on stdout says that clients can connect.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from punie_supervisor import logs
from punie_supervisor.child_spec import Programs
from punie_supervisor.config import Config
from punie_supervisor.daemon import Daemon
from punie_supervisor.paths import Paths

_FOLDER = Path(__file__).parent
_REAL = Programs()
_MODEL_HOST = (
    *(sys.executable, str(_FOLDER / "scripted_model.py")),
    *("--control-fd", "{fd}", "--socket", "{socket}"),
)
_HANGING = (sys.executable, str(_FOLDER / "hanging_fork_server.py"), "--control-fd", "{fd}")


async def main() -> None:
    """Be the daemon until SIGTERM."""
    logs.configure(sys.stderr)
    paths = Paths.from_environment()
    paths.prepare()
    fork_server = _HANGING if "--hang" in sys.argv else _REAL.fork_server
    programs = Programs(model_host=_MODEL_HOST, fork_server=fork_server)
    daemon = Daemon(paths, Config.load(paths), programs=programs)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, daemon.stop, "it got SIGTERM")
    await daemon.run(lambda: print(os.getpid(), flush=True))


if __name__ == "__main__":
    asyncio.run(main())
