"""The model host with an engine that hangs in the first token: its thread blocks for real, as in
an evaluation that never ends. Takes the arguments of the real one, and a short deadline."""

import asyncio
import sys
import threading
from dataclasses import replace

from punie_model_host import main
from punie_model_host.batch import Batch
from punie_model_host.lifetime import leave
from punie_model_host.log import configure
from punie_model_host.process import Host


def hang(self: Batch) -> None:
    """Block the engine's thread."""
    threading.Event().wait()


async def serve() -> int:
    """Run the host; returns its exit code."""
    options = replace(main._options(sys.argv[1:]), progress_deadline=0.5)
    return await Host(options).run()


if __name__ == "__main__":
    configure()
    Batch.dispatch = hang
    leave(asyncio.run(serve()))
