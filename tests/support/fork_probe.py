"""A fork server whose workers import nothing and say what they are; started like Punie's own.

``--plays NAME`` is what comes of its warm turn: nothing, a thread that stays, a socket that stays,
or no end. A worker prints one line of JSON and then lives until its control socket closes; with
``PROBE_LEAVES`` in its environment it first starts a process that detaches itself from it.
"""

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from punie_workers import fork_server, lifetime
from punie_workers import main as worker_main

_kept: list[object] = []
_plays = ""

DETACHED = """
import os, sys, time
os.setsid()
if os.fork():
    os._exit(0)
print(os.getpid(), flush=True)
os.close(1)
time.sleep(600)
"""


def _warm_up(*, servers: bool) -> None:
    match _plays:
        case "thread":
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        case "socket":
            _kept.append(socket.socket())
        case "for ever":
            time.sleep(600)


def _option(name: str) -> str:
    if name not in sys.argv:
        return ""
    place = sys.argv.index(name)
    value = sys.argv[place + 1]
    del sys.argv[place : place + 2]
    return value


def _run(control: int, *, spare: bool = False) -> NoReturn:
    lifetime.end_with_parent()
    lifetime.keep_orphans()
    left = _detached() if "PROBE_LEAVES" in os.environ else 0
    print(json.dumps(_report(control, left)), flush=True)
    socket.socket(fileno=control).recv(1)
    os._exit(0)


def _detached() -> int:
    with subprocess.Popen([sys.executable, "-c", DETACHED], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        return int(child.stdout.readline())


def _report(control: int, left: int) -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "cwd": str(Path.cwd()),
        "environment": dict(os.environ),
        "fds": {fd: _target(fd) for fd in range(100) if _target(fd)},
        "control": control,
        "random": random.random(),
        "left": left,
    }


def _target(fd: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:
        return ""


if __name__ == "__main__":
    _plays = _option("--plays")
    setattr(fork_server, "_warm_up", _warm_up)  # noqa: B010 - a function is no attribute to ty
    setattr(worker_main, "run", _run)  # noqa: B010
    fork_server.main()
