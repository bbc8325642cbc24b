"""The actors of others: one actor in another process that answers with what it was sent.

``python -m benchmarks.actor_peers NAME CALLS BATCH`` in an environment that has that peer and not
Punie. Each peer is used as its documentation says, with as many calls under way as ours.
"""

import asyncio
import importlib
import importlib.metadata
import logging
import platform
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.managers import BaseManager
from typing import Any

from benchmarks.actor_calls import (
    PAYLOAD,
    Amount,
    Echo,
    Samples,
    arguments,
    awaiting,
    blocking,
    tell,
)

THREADS = 8
"""For a peer whose calls block a thread: that many are under way."""


def ray(amount: Amount) -> Samples:
    """A ray actor; calls under way are object references."""
    library = importlib.import_module("ray")
    library.init(
        num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    try:
        echo = library.remote(Echo).remote().echo.remote
        return blocking(
            amount,
            lambda: library.get(echo(PAYLOAD)),
            lambda calls: library.get([echo(PAYLOAD) for _ in range(calls)]),
        )
    finally:
        library.shutdown()


def dask(amount: Amount) -> Samples:
    """A dask actor in a worker process; calls under way are actor futures."""
    library = importlib.import_module("distributed")
    cluster = library.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, library.Client(cluster) as client:
        echo = client.submit(Echo, actor=True).result().echo

        def batch(calls: int) -> None:
            for future in [echo(PAYLOAD) for _ in range(calls)]:
                future.result()

        return blocking(amount, lambda: echo(PAYLOAD).result(), batch)


def xoscar(amount: Amount) -> Samples:
    """A xoscar actor in a sub-pool, a process of its own; calls under way are coroutines."""
    return asyncio.run(_xoscar(amount, importlib.import_module("xoscar")))


async def _xoscar(amount: Amount, library: Any) -> Samples:
    async with await library.create_actor_pool("127.0.0.1:0", n_process=1) as pool:
        actor = await library.create_actor(
            type("EchoActor", (Echo, library.Actor), {}),
            address=pool.external_address,
            allocate_strategy=library.allocate_strategy.ProcessIndex(1),
        )

        async def batch(calls: int) -> None:
            await asyncio.gather(*(actor.echo(PAYLOAD) for _ in range(calls)))

        return await awaiting(amount, lambda: actor.echo(PAYLOAD), batch)


class Manager(BaseManager):
    """A manager of `Echo` objects."""


Manager.register("Echo", Echo)


def multiprocessing(amount: Amount) -> Samples:
    """An object in a manager's process behind a proxy, which keeps a connection a thread."""
    with Manager() as manager, ThreadPoolExecutor(THREADS) as threads:
        make: Callable[[], Any] = vars(Manager)["Echo"].__get__(manager)
        proxy = make()

        def share(calls: int) -> None:
            for _ in range(calls):
                proxy.echo(PAYLOAD)

        def batch(calls: int) -> None:
            for _ in threads.map(share, [calls // THREADS] * THREADS):
                pass

        return blocking(amount, lambda: proxy.echo(PAYLOAD), batch)


def socketpair(amount: Amount) -> Samples:
    """Nobody's actor: a bare socket and a process that blocks on it. It is this machine's floor of
    a round trip; bytes without messages have no throughput to compare."""
    ours, theirs = socket.socketpair()
    program = "import os\nwhile data := os.read(0, 4096): os.write(0, data)"
    with ours, theirs:
        child = subprocess.Popen([sys.executable, "-c", program], stdin=theirs.fileno())
        theirs.close()

        def call() -> None:
            ours.sendall(PAYLOAD)
            missing = len(PAYLOAD)
            while missing:
                missing -= len(ours.recv(missing))

        samples = blocking(amount, call, lambda _: None)
        ours.close()
        child.wait()
    return Samples(samples.round_trip_us, [])


PEERS: dict[str, tuple[Callable[[Amount], Samples], str]] = {
    "ray": (ray, "ray"),
    "xoscar": (xoscar, "xoscar"),
    "dask": (dask, "distributed"),
    "multiprocessing": (multiprocessing, ""),
    "socketpair": (socketpair, ""),
}
"""Every peer, with the distribution to install; the standard library has its own."""


def main() -> None:
    """Measure one peer; it leaves with its own error when it does not work here."""
    name, amount = arguments()
    measure, distribution = PEERS[name]
    samples = measure(amount)
    version = importlib.metadata.version(distribution) if distribution else ""
    tell(samples, version or platform.python_version())


if __name__ == "__main__":
    main()
