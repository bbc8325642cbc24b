"""``python -m punie_workers.main --control-fd N``: a worker process, started by the supervisor.

The hello goes out before the heavy imports, so that the supervisor knows early that it lives. With
``--spare`` it goes out after them, and the welcome may take as long as it likes: until somebody
needs a worker.
"""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import traceback
from typing import NoReturn

from punie_protocol.codec import MessageDecoder
from punie_protocol.errors import PunieError
from punie_protocol.handshake import greet_supervisor
from punie_protocol.limits import HANDSHAKE_TIMEOUT
from punie_protocol.link import FrameLink
from punie_protocol.messages import to_worker
from punie_protocol.messages.common import Role
from punie_protocol.messages.to_supervisor import Ready
from punie_workers import children, lifetime
from punie_workers.project_half import Early

_FAILED = 1


def main() -> NoReturn:
    """Run what the command line says until the supervisor ends it; leaves by `os._exit`."""
    parser = argparse.ArgumentParser(prog="punie-worker")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--spare", action="store_true", help="import everything, then say hello")
    options = parser.parse_args()
    run(options.control_fd, spare=options.spare)


def run(control: int, *, spare: bool = False) -> NoReturn:
    """Be a worker until the supervisor at the other end of `control` ends it; leaves by
    `os._exit`. To be called first of all, on the main thread, with no event loop."""
    lifetime.end_with_parent()
    lifetime.keep_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lifetime.set_title("punie-worker")
    lifetime.keep_little()
    children.scrub_environment()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # else a line for each request
    try:
        asyncio.run(_serve(control, spare=spare))
    except PunieError as error:
        logging.getLogger(__name__).error("%s", error)
    except BaseException:  # noqa: BLE001 - the process ends here, whatever it was
        traceback.print_exc()
    lifetime.leave(_FAILED)


async def _serve(control: int, *, spare: bool) -> NoReturn:
    os.set_inheritable(control, False)
    sock = socket.socket(fileno=control)
    decoder = MessageDecoder[to_worker.ToWorker]("worker", to_worker.ToWorker)
    link = await FrameLink.over(sock, decoder, name="supervisor")
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lifetime.leave, 0)
    if sys.platform == "linux":
        loop.add_signal_handler(signal.SIGCHLD, children.reap_orphans)
    early = None if spare else Early()
    if spare:
        _import_all()
    patience = None if spare else HANDSHAKE_TIMEOUT
    welcome = await greet_supervisor(link, Role.WORKER, to_worker.Welcome, patience)
    assert isinstance(welcome, to_worker.Welcome)
    if welcome.limits_of_process is not None:
        lifetime.limit(welcome.limits_of_process)
    watch = asyncio.create_task(_leave_at_end(link), name="supervisor-watch")
    from punie_workers.worker import Worker

    worker = Worker(link, welcome, (early or Early()).make)
    await link.send(Ready())
    await worker.serve()
    watch.cancel()
    await _flushed(link)
    lifetime.leave(0)


def _import_all() -> None:
    """Import what every worker needs."""
    import punie_workers.worker  # noqa: F401


async def _leave_at_end(link: FrameLink[to_worker.ToWorker]) -> None:
    """The end of the link is the end of the supervisor: nobody is left to work for."""
    await link.wait_closed()
    lifetime.leave(0)


async def _flushed(link: FrameLink[to_worker.ToWorker]) -> None:
    """Give the last answers a moment to go out; the supervisor has its own deadline."""
    for _ in range(200):
        if not link.unsent:
            return
        await asyncio.sleep(0.005)


if __name__ == "__main__":
    main()
