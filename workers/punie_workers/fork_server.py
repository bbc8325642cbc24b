"""``python -m punie_workers.fork_server --control-fd N``: forks workers that are warm already.

It imports what a worker needs, plays one turn (`warm`), closes all of it, freezes the heap and
then forks a worker for each request, in milliseconds. The pages that a worker does not write to are
shared with all others.

A worker is a child of the supervisor, not of this process: a midwife between them forks it and
ends at once, and the kernel gives the orphan to the nearest subreaper, which the supervisor is.
Running workers notice nothing of the end of this process, which comes with that of the supervisor.

What a fork copies and must not stay the same: Python and OpenSSL draw new random numbers after it,
by themselves. The layout of memory and the keys of hash tables do stay the same in all workers of
one fork server.
"""

import argparse
import contextlib
import gc
import os
import signal
import socket
import stat
import sys
import time
import traceback
from typing import Final, NoReturn

import msgspec

from punie_protocol.births import (
    DESCRIPTORS,
    MAX_PACKET,
    Bear,
    Birth,
    Born,
    Cold,
    NotBorn,
    Warm,
    decode_request,
    encode,
)
from punie_workers import immortal, lifetime

PARENT_PATIENCE: Final = 2.0
"""Seconds for the kernel to hand a worker to the supervisor once its midwife has ended."""
_FAILED: Final = 1


def main() -> NoReturn:
    """Serve until the supervisor ends it or itself; leaves by `os._exit`."""
    parser = argparse.ArgumentParser(prog="punie-fork-server")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--servers", action="store_true", help="be warm for other servers' models")
    options = parser.parse_args()
    control: int = options.control_fd
    supervisor = os.getppid()
    lifetime.end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lifetime.set_title("punie-fork-server")
    lifetime.keep_little()
    os.set_inheritable(control, False)
    link = socket.socket(fileno=control)
    try:
        _warm_up(servers=options.servers)
        check_alone({0, 1, 2, control})
    except BaseException as error:  # noqa: BLE001 - the supervisor is told, whatever it was
        traceback.print_exc()
        _tell(link, Cold(reason=f"{type(error).__name__}: {error}"[:1000]))
        os._exit(_FAILED)
    _freeze()
    _tell(link, Warm(pid=os.getpid()))
    _serve(link, supervisor)


def _warm_up(*, servers: bool) -> None:
    from punie_workers import warm

    warm.up()
    if servers:
        import punie_workers.server_model  # noqa: F401


def check_alone(descriptors: set[int]) -> None:
    """Raise `RuntimeError` unless this process may be forked: it has one thread, no interpreter
    but the main one, and of descriptors these and plain files (a library keeps its own open)."""
    from concurrent import interpreters

    if (threads := len(os.listdir("/proc/self/task"))) != 1:  # noqa: PTH208 (names alone)
        raise RuntimeError(f"{threads} threads run after the warm turn, where one may")
    if (others := len(interpreters.list_all()) - 1) > 0:
        raise RuntimeError(f"{others} interpreters are left after the warm turn")
    if left := _open_descriptors() - descriptors:
        names = ", ".join(sorted(_target(fd) for fd in left))
        raise RuntimeError(f"descriptors are left open after the warm turn: {names}")


def _open_descriptors() -> set[int]:
    """Return the descriptors that are open, but for those of plain files."""
    found: set[int] = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 (names alone)
        with contextlib.suppress(OSError):  # the one of the listing is closed by now
            if not stat.S_ISREG(os.fstat(int(name)).st_mode):
                found.add(int(name))
    return found


def _target(fd: int) -> str:
    return f"{fd}: {os.readlink(f'/proc/self/fd/{fd}')}"  # noqa: PTH115


def _freeze() -> None:
    """Have nothing written to the present heap: not by the collector, not by counting."""
    gc.collect()
    if immortal.possible():
        immortal.make_all()
        immortal.fill_pools()
    lifetime.trim()
    gc.freeze()


def _serve(link: socket.socket, supervisor: int) -> NoReturn:
    while True:
        packet, fds, _, _ = socket.recv_fds(link, MAX_PACKET, DESCRIPTORS)
        if not packet:
            os._exit(0)
        try:
            _bear(link, supervisor, decode_request(packet), fds)
        except msgspec.MsgspecError as error:
            print(f"not a request: {error}", file=sys.stderr, flush=True)
        finally:
            for fd in fds:
                os.close(fd)


def _bear(link: socket.socket, supervisor: int, wanted: Bear, fds: list[int]) -> None:
    """Have a midwife fork the worker, and wait for the end of the midwife: that is soon."""
    if len(fds) != DESCRIPTORS:
        _tell(link, NotBorn(id=wanted.id, reason=f"{len(fds)} descriptors came with the request"))
        return
    try:
        midwife = os.fork()
    except OSError as error:
        _tell(link, NotBorn(id=wanted.id, reason=f"cannot fork: {error.strerror}"))
        return
    if not midwife:
        _deliver(link, supervisor, wanted, fds)
    os.waitpid(midwife, 0)


def _deliver(link: socket.socket, supervisor: int, wanted: Bear, fds: list[int]) -> NoReturn:
    try:
        worker = os.fork()
    except OSError as error:
        _tell(link, NotBorn(id=wanted.id, reason=f"cannot fork: {error.strerror}"))
        os._exit(_FAILED)
    if worker:
        os._exit(0)
    try:
        control, output = fds
        _become_a_worker(link, supervisor, wanted, output)
        from punie_workers import main as worker_main

        worker_main.run(control)
    except BaseException:  # noqa: BLE001 - the process ends here, whatever it was
        traceback.print_exc()
    finally:
        os._exit(_FAILED)


def _become_a_worker(link: socket.socket, supervisor: int, wanted: Bear, output: int) -> None:
    """Take the place in the world that a worker has which was started as a program."""
    os.setsid()
    _wait_for_parent(supervisor)
    _tell(link, Born(id=wanted.id, pid=os.getpid()))
    link.close()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(wanted.cwd)
    os.environ.clear()
    os.environ.update(wanted.environment)
    time.tzset()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait_for_parent(supervisor: int) -> None:
    """Return when this process is the supervisor's child. Leaves when that does not come to be."""
    deadline = time.monotonic() + PARENT_PATIENCE
    while os.getppid() != supervisor:
        if time.monotonic() > deadline:
            os._exit(_FAILED)
        time.sleep(0.0001)


def _tell(link: socket.socket, message: Birth) -> None:
    try:
        link.send(encode(message))
    except OSError as error:  # nobody is there any more: the end comes with the next request
        print(f"the supervisor cannot be told: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
