"""The model host with a disk that hangs when the idle engine writes to it. Takes the arguments of
the real one, and a short deadline."""

import asyncio
import sys
import threading

from punie_model_host.engine import Engine
from punie_model_host.lifetime import leave
from punie_model_host.log import configure
from tests.support.hung_model_host import serve


def hang(self: Engine) -> bool:
    """Block the engine's thread, and say so before."""
    print("hangs at its disk", file=sys.stderr, flush=True)
    threading.Event().wait()
    return False


if __name__ == "__main__":
    configure()
    Engine.do_chore = hang
    leave(asyncio.run(serve()))
