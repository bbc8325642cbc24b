"""A project half in an interpreter of this process, with its own GIL and its own thread.

The thread stays inside the interpreter and runs `punie_workers.interp.serve`: a call is a frame on
a socket pair each way, which wakes one side and the other. Calling the interpreter anew each time
costs half as much again: the thread would need the host half's GIL before and after, and a new
thread state. (From the process's main thread it is 140-310 us instead of 10.) What runs inside
cannot be stopped from outside: the thread of one that hangs is abandoned.

A process that ends while such a thread ends too may crash in its finalisation: `join` before, or
leave by `os._exit`.
"""

import os
import socket
import threading
from concurrent import interpreters
from contextlib import suppress
from pathlib import Path

from punie_workers import lifetime
from punie_workers.crumbs import Crumb, nowhere
from punie_workers.half import Half, HalfState
from punie_workers.half_calls import Broken
from punie_workers.half_stream import Stream
from punie_workers.interp.serve import OK


class ProjectHalf(Half):
    """One project's interpreter and its thread. `crumb` is set while it is inside a call, and while
    it is made and ended."""

    _stream: Stream

    def __init__(self, root: str, crumb: Crumb | None = None) -> None:
        super().__init__(root)
        self._crumb = crumb or nowhere()
        name = f"project-{Path(root).name}"[:15]
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._theirs = -1

    def join(self, timeout: float) -> None:
        """Block until the interpreter has ended, `timeout` seconds at most; never on the loop."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    @property
    def is_unclaimed(self) -> bool:
        """Whether it has begun and nobody has started it."""
        return self._thread.is_alive() and self.state is HalfState.NEW

    def claim(self, root: str, crumb: Crumb) -> None:
        """Make one that began early the half of `root`."""
        self.root, self._crumb = root, crumb

    def _begin(self) -> None:
        if self._thread.ident is not None:
            return
        ours, theirs = socket.socketpair()
        self._theirs = theirs.detach()
        self._stream = Stream(self._loop, ours, self._replied)
        try:
            self._thread.start()
        except RuntimeError:
            self._stream.close()
            os.close(self._theirs)
            raise

    def _send(self, request: bytes) -> None:
        self._crumb.enter()
        self._stream.send(request)

    def _end(self) -> None:
        if self._is_inside:
            self._stream.finish()  # its reply may still come
        else:
            self._stream.close()

    def _replied(self, status: int, reply: bytes) -> None:
        self._crumb.leave()
        self._finish(reply if status == OK else Broken(reply.decode()))
        if self.state is HalfState.STOPPED and not self._is_inside:
            self._stream.close()

    def _gone(self, why: Broken) -> None:
        """The interpreter has ended; what it said before comes first."""
        self._stream.close()
        if self._is_inside:
            self._crumb.leave()
        self._lost(why)

    # on the half's own thread

    def _run(self) -> None:
        why = Broken("it has ended")
        try:
            self._inhabit()
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers are told
            why = Broken(str(error))
        finally:
            os.close(self._theirs)
        try:
            self._loop.call_soon_threadsafe(self._gone, why)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            self._stream.close()

    def _inhabit(self) -> None:
        """Create the interpreter, stay inside until no more is sent, and close it."""
        with self._crumb.inside():
            interpreter = interpreters.create()
        try:
            with self._crumb.inside():
                interpreter.exec(_bootstrap())
            interpreter.call(_serve, self._theirs)
        finally:
            with self._crumb.inside():
                interpreter.close()
            lifetime.trim()


class Early:
    """A project half that begins before anybody knows whose it will be: its interpreter is made
    while the process still says hello. Used from one event loop; owns the half until it is
    claimed."""

    def __init__(self) -> None:
        self._half = ProjectHalf("")
        with suppress(OSError, RuntimeError):  # the next try tells
            self._half._begin()

    def make(self, root: str, crumb: Crumb) -> ProjectHalf:
        """Return that half for the first project that asks, then new ones."""
        half = self._half
        if not half.is_unclaimed or half.root:
            return ProjectHalf(root, crumb)
        half.claim(root, crumb)
        return half


def _bootstrap() -> str:
    """Return the code that makes `punie_workers.interp` importable in a fresh interpreter."""
    here = str(Path(__file__).resolve().parent.parent)
    return f"import sys\nsys.path.insert(0, {here!r})\nimport punie_workers.interp.entry\n"


def _serve(fd: int) -> None:
    """Run inside the interpreter; may use no global of this module."""
    from punie_workers.interp import serve

    serve.serve(fd)
