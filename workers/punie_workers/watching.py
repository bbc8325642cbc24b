"""Tells whether anything happened in the folders of a project since the last time it was asked.

`watchfiles` watches in a thread of its own (Rust's), which collects what happened; here it is
asked, and only whether, not what: whoever knows that nothing happened need not look, and who
knows that something did looks at all files again, which is cheap, and misses nothing that two
watchers' threads and a rename could confuse. There is no thread and no waiting on this side.

On Linux the folders are watched one by one: watched recursively, links would be followed out of
the project. On macOS the root is watched as a whole, which follows none.
"""

import asyncio
import logging
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Final, Protocol

TICK: Final = 5.0
"""Seconds between looks by itself: what is collected meanwhile is all that is ever kept."""

_MODIFIED = 2
"""What `watchfiles` calls a change that neither made nor removed something."""

_log = logging.getLogger(__name__)


class WatchState(StrEnum):
    """``IDLE`` -> ``WATCHING`` -> ``IDLE`` when a watcher fails, a folder goes away or others are
    to be watched; both -> ``UNAVAILABLE`` when the system has no watch left or the folders are too
    many. Every state -> ``CLOSED``."""

    IDLE = "idle"
    WATCHING = "watching"
    UNAVAILABLE = "unavailable"
    CLOSED = "closed"


_NEXT: Final[dict[WatchState, frozenset[WatchState]]] = {
    WatchState.IDLE: frozenset({WatchState.WATCHING, WatchState.UNAVAILABLE, WatchState.CLOSED}),
    WatchState.WATCHING: frozenset({WatchState.IDLE, WatchState.UNAVAILABLE, WatchState.CLOSED}),
    WatchState.UNAVAILABLE: frozenset({WatchState.CLOSED}),
    WatchState.CLOSED: frozenset(),
}


class Notifier(Protocol):
    """The part of `RustNotify` that is used."""

    def watch(
        self, debounce_ms: int, step_ms: int, timeout_ms: int, stop_event: _Look | None
    ) -> set[tuple[int, str]] | str: ...

    def close(self) -> None: ...


type Notify = Callable[[list[str]], Notifier]
"""Starts to watch folders. Raises `OSError` or `RuntimeError` (Rust's own) when it cannot."""


def notify(folders: list[str]) -> Notifier:
    """Watch `folders`, each for itself; elsewhere than on Linux the first, which is the root,
    with all below it."""
    from watchfiles._rust_notify import RustNotify  # its documented place; few projects need it

    return RustNotify(
        folders if sys.platform == "linux" else folders[:1],
        debug=False,
        force_polling=False,
        poll_delay_ms=0,
        recursive=sys.platform != "linux",
        ignore_permission_denied=True,
    )


class Watch:
    """The watcher of the project in `root`, used from one event loop. Owns the watcher's thread
    until `close`."""

    def __init__(self, root: str, start: Notify = notify) -> None:
        self.root = root
        self.state = WatchState.IDLE
        self._start = start
        self._notifier: Notifier | None = None
        self._folders: list[str] = []
        self._happened = False
        self._timer: asyncio.TimerHandle | None = None

    async def watch(self, folders: list[str]) -> bool:
        """Watch `folders` from now on; return whether they were watched before this call already,
        so that nothing can have been missed since the last `take`. Cancelled, it watches what it
        did, or nothing."""
        if folders == self._folders and self.state is WatchState.WATCHING:
            return True
        if self.state in (WatchState.UNAVAILABLE, WatchState.CLOSED):
            return False
        self._stop(WatchState.IDLE)
        try:
            notifier = await asyncio.to_thread(self._start, folders)
        except FileNotFoundError:  # a folder that went away meanwhile
            return False
        except (OSError, RuntimeError) as error:
            self.give_up(
                f"{len(folders)} folders cannot be watched ({error}); raise "
                "fs.inotify.max_user_watches or fs.inotify.max_user_instances"
            )
            return False
        if self.state is not WatchState.IDLE:  # closed meanwhile
            notifier.close()
            return False
        self.state = WatchState.WATCHING
        self._notifier, self._folders, self._happened = notifier, folders, False
        self._tick()
        return False

    def take(self) -> bool:
        """Return whether anything happened since the last call, or may have: it did when nothing
        watches. What happened a few milliseconds ago may be told by the next call only."""
        self._look()
        happened, self._happened = self._happened, False
        return happened or self.state is not WatchState.WATCHING

    def restart(self) -> None:
        """Watch nothing until the next `watch`: the folders may be others of the same names."""
        self._stop(WatchState.IDLE)

    def close(self) -> None:
        """Stop for good; the thread ends at once. Idempotent."""
        self._stop(WatchState.CLOSED)

    def _look(self) -> None:
        if self._notifier is None:
            return
        try:
            changes = self._notifier.watch(0, 0, 0, _Look())
        except _Nothing:
            return
        except RuntimeError as error:  # a name that is not UTF-8, a lost folder
            _log.info("%s: the file watcher starts anew: %s", self.root, error)
            self._stop(WatchState.IDLE)
        else:
            self._happened = True
            if self._lost(changes):
                self._stop(WatchState.IDLE)  # what is in that place now is not watched

    def _lost(self, changes: set[tuple[int, str]] | str) -> bool:
        """Whether a folder that is watched went away, or stands there anew."""
        assert not isinstance(changes, str)  # there is no time limit and no signal
        return any(kind != _MODIFIED and path in self._folders for kind, path in changes)

    def _tick(self) -> None:
        self._look()
        if self.state is WatchState.WATCHING:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)

    def give_up(self, reason: str) -> None:
        """Watch no more: something is beyond a limit. Every `take` is true from now on."""
        if self.state is not WatchState.CLOSED:
            self._stop(WatchState.UNAVAILABLE)
            _log.warning("%s: %s; every query of symbols looks at all files", self.root, reason)

    def _stop(self, state: WatchState) -> None:
        if state in _NEXT[self.state]:
            self.state = state
        if self._timer is not None:
            self._timer.cancel()
        if self._notifier is not None:
            self._notifier.close()
        self._timer = self._notifier = None
        self._folders, self._happened = [], False


class _Nothing(Exception):
    """Nothing has happened."""


class _Look:
    """Makes `RustNotify.watch` return at once. It is asked before each look at the changes, which
    are handed out when the second look finds some too. An error is the one way to leave without
    what came in meanwhile being thrown away, as a time limit and a stop do."""

    def __init__(self) -> None:
        self._asked = 0

    def is_set(self) -> bool:
        self._asked += 1
        if self._asked > 3:
            raise _Nothing
        return False
