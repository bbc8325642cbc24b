"""The `symbols` tool of one project: it keeps the index in the project half up to date.

The whole tree is listed and its files checked only when the watcher says that something may have
happened, when an edit of our own was told, and after `MAX_QUIET` seconds in any case: a watcher
can lose events, and sees nothing of what other machines do to a network folder. A change by
somebody else is seen as soon as the system has told the watcher of it, in some milliseconds.

Only what was asked for is indexed: a file, a folder. The work is cut into calls of some 150 ms
each, so that the other tools of the project get their turn in between.

The index goes, and the watcher with it, after `MAX_IDLE` seconds without a query, and earlier when
the indexes of all projects in this process take more than `IndexBudget` allows: the project gets
another interpreter, for what an interpreter frees stays its own (of 13 MB of an index 0.3 came
back). The next query makes it anew.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from punie_protocol.errors import Internal, PunieError, TimedOut, ToolFailed
from punie_protocol.interp_codec import encode_request
from punie_protocol.tools_code import Reference, Symbol, Symbols, SymbolsResult
from punie_workers import lifetime
from punie_workers.file_tools import Directory, FileTools
from punie_workers.halves import Halves
from punie_workers.index_budget import IndexBudget, of_this_process
from punie_workers.readers import Reader
from punie_workers.watching import Notify, Watch, WatchState, notify

TIMEOUT: Final = 120.0
"""Seconds a query may take. What was indexed by then stays, so that the next one gets further."""

MAX_QUIET: Final = 60.0
"""Seconds that the watcher's silence is relied on."""

MAX_IDLE: Final = 300.0
"""Seconds without a query after which the index is dropped."""

_TRIES: Final = 3

_log = logging.getLogger(__name__)


class _Place(msgspec.Struct):
    path: str
    is_file: bool


class _Taken(msgspec.Struct):
    count: int
    truncated: bool


class _Folders(msgspec.Struct):
    folders: list[str] | None


class _Refreshed(msgspec.Struct):
    known: bool
    next: int
    parsed: int
    memory: int


class _Query(msgspec.Struct):
    """What is asked of one slice: `definitions` and `references` are what there is room for."""

    slot: str
    listing: int
    prefix: str
    name: str
    definitions: int
    references: int | None = None
    start: int = 0


class _Answered(msgspec.Struct):
    known: bool
    next: int
    files: int
    symbol_count: int
    reference_count: int
    symbols: list[Symbol]
    references: list[Reference]
    unreadable: list[str]


class _Listing(msgspec.Struct):
    """Files that the project half knows by slot and number. `checked` are the folders whose files
    were looked at since; `until` is when that is not relied on any more."""

    slot: str
    number: int
    truncated: bool
    until: float
    checked: list[str]

    def is_checked(self, path: str) -> bool:
        """Whether every file at or below `path` was looked at."""
        return any(path == one or path.startswith(one + "/") or not one for one in self.checked)


class _Lost(Exception):
    """The project half does not know the listing: it is another one, or the folder is."""


class SymbolTools:
    """One query at a time; owns the watcher until `close`."""

    def __init__(
        self,
        root: str,
        halves: Halves,
        start: Notify = notify,
        reader: Reader | None = None,
        budget: IndexBudget[object] | None = None,
    ) -> None:
        self._halves = halves
        self._files = FileTools(halves, reader)
        self._watch = Watch(root, start)
        self._one = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._project: _Listing | None = None
        self._edited = False
        self._budget = budget or of_this_process()
        self._idle: asyncio.TimerHandle | None = None
        self._dropping: asyncio.Task[None] | None = None
        self._memory = 0
        self.listed = 0
        """How often the tree was walked so far."""
        self.parsed = 0
        """Contents that the present project half has parsed so far."""

    @property
    def watching(self) -> WatchState:
        """What the watcher does."""
        return self._watch.state

    async def run(self, arguments: Symbols) -> SymbolsResult:
        """Return the result of one call. Raises `PunieError`. Cancelled, it stops at the end of
        the slice under way, and what was indexed stays."""
        if arguments.references and not arguments.name:
            message = "references=True needs the name that is referred to"
            raise PunieError(ToolFailed(kind="invalid_pattern", message=message))
        try:
            async with asyncio.timeout(TIMEOUT), self._one:
                try:
                    return await self._run(arguments)
                finally:
                    self._used()
        except TimeoutError:
            message = f"indexing '{arguments.path}' took longer than {TIMEOUT:g} s"
            hint = "ask again: what was done is kept; or ask for a smaller folder"
            raise PunieError(TimedOut(message=message, hint=hint, limit_s=TIMEOUT)) from None

    def changed(self, paths: Sequence[str]) -> None:
        """Somebody here changed these files: the next call does not wait for the watcher."""
        self._edited = self._edited or bool(paths)

    def close(self) -> None:
        """Stop watching. Does not wait."""
        self._watch.close()
        self._budget.forget(self)
        if self._idle is not None:
            self._idle.cancel()
        if self._dropping is not None:
            self._dropping.cancel()

    def drop(self) -> None:
        """Give the index and the watches back once no query is under way. Does not wait."""
        if self._watch.state is not WatchState.CLOSED and self._dropping is None:
            self._dropping = asyncio.create_task(self._drop(), name="dropping an index")

    async def _drop(self) -> None:
        try:
            async with self._one:
                self._project = None
                self._memory = 0
                self._budget.forget(self)
                self._watch.restart()
                await self._halves.renew()
        except PunieError as error:  # it is bounded, and goes with the project
            _log.warning("the index of %s was not dropped: %s", self._halves.root, error)
        finally:
            self._dropping = None

    def _used(self) -> None:
        """A query has ended: the index stays for a while, others may have to go for it."""
        if self._watch.state is WatchState.CLOSED:
            return
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(MAX_IDLE, self.drop)
        for other in self._budget.used(self, self._memory):
            assert isinstance(other, SymbolTools)
            other.drop()

    async def _run(self, wanted: Symbols) -> SymbolsResult:
        place = await self._call("place", {"path": wanted.path}, _Place)
        for _ in range(_TRIES):
            try:
                return await self._search(wanted, place)
            except _Lost:
                self._project = None
                self._watch.restart()
        message = f"the index of '{wanted.path}' was lost {_TRIES} times"
        raise PunieError(Internal(message=message, hint="try again"))

    async def _search(self, wanted: Symbols, place: _Place) -> SymbolsResult:
        if place.is_file:
            listing = await self._take_file(place.path)
            return _result(wanted, listing, await self._answers(wanted, listing, ""))
        listing = await self._up_to_date()
        answers = await self._answers(wanted, listing, place.path)
        if place.path and not answers[0].files:  # hidden or ignored, but asked for
            async with self._files.directory(place.path) as folder:
                listing, _ = await self._take("asked", folder)
            answers = await self._answers(wanted, listing, "")
        return _result(wanted, listing, answers)

    async def _up_to_date(self) -> _Listing:
        """Return the listing of the project: the last one when nothing has happened since."""
        edited, self._edited = self._edited, False
        happened = self._watch.take() or edited
        known = self._project
        if known and not happened and time.monotonic() < known.until:
            return known
        self._project = None  # should this be cancelled
        for _ in range(_TRIES):
            known, watched = await self._take_project()
            if watched or self._watch.state is WatchState.UNAVAILABLE:
                break
        assert known is not None
        self._project = known
        return known

    async def _take_project(self) -> tuple[_Listing, bool]:
        """List the project, and watch its folders; return whether they were watched before
        already. If not, what happened in between may be missing from the listing."""
        async with self._files.directory(".") as folder:
            listing, output = await self._take("project", folder)
        found = await self._call("folders", {"output": output}, _Folders)
        if found.folders is None:
            self._watch.give_up("too many folders to watch")
        watched = await self._watch.watch(found.folders or [])
        if watched:
            listing.until = time.monotonic() + MAX_QUIET
        return listing, watched

    async def _take(self, slot: str, folder: Directory) -> tuple[_Listing, bytes]:
        self.listed += 1
        output = await self._files.files(folder)
        arguments = {
            "slot": slot,
            "listing": (number := next(self._numbers)),
            "output": output.data,
            "prefix": folder.path,
            "complete": output.complete,
        }
        taken = await self._call("take", arguments, _Taken)
        return _Listing(slot, number, taken.truncated, 0.0, []), output.data

    async def _take_file(self, path: str) -> _Listing:
        number = next(self._numbers)
        arguments = {"slot": "asked", "listing": number, "path": path}
        await self._call("take_file", arguments, _Taken)
        return _Listing("asked", number, False, 0.0, [])

    async def _answers(self, wanted: Symbols, listing: _Listing, path: str) -> list[_Answered]:
        """Return what the files of a listing below `path` hold, slice by slice, at least one."""
        if not listing.is_checked(path):
            await self._check(listing, path)
        query = _Query(listing.slot, listing.number, path, wanted.name, wanted.limit)
        query.references = wanted.limit if wanted.references else None
        answers: list[_Answered] = []
        while query.start >= 0:
            answer = await self._call("query", query, _Answered)
            if not answer.known:
                raise _Lost
            answers.append(answer)
            query.start = answer.next
            query.definitions -= len(answer.symbols)
            if query.references is not None:
                query.references -= len(answer.references)
        return answers

    async def _check(self, listing: _Listing, path: str) -> None:
        start, parsed = 0, self.parsed
        while start >= 0:
            arguments = {
                "slot": listing.slot,
                "listing": listing.number,
                "prefix": path,
                "start": start,
            }
            done = await self._call("refresh", arguments, _Refreshed)
            if not done.known:
                raise _Lost
            self.parsed, self._memory, start = done.parsed, done.memory, done.next
        listing.checked.append(path)
        if self.parsed != parsed:  # a tree takes a hundred times as much as its file
            await asyncio.to_thread(lifetime.trim)

    async def _call[R](
        self, operation: str, arguments: msgspec.Struct | dict[str, Any], result: type[R]
    ) -> R:
        return await self._halves.call(encode_request(f"symbols_{operation}", arguments), result)


def _result(wanted: Symbols, listing: _Listing, answers: list[_Answered]) -> SymbolsResult:
    symbols = [one for answer in answers for one in answer.symbols]
    references = [one for answer in answers for one in answer.references]
    unreadable = [one for answer in answers for one in answer.unreadable]
    counts = (sum(a.symbol_count for a in answers), sum(a.reference_count for a in answers))
    limit = wanted.limit
    return SymbolsResult(
        symbol_count=counts[0],
        reference_count=counts[1],
        truncated=listing.truncated or max(*counts, len(unreadable)) > limit,
        symbols=symbols[:limit],
        references=references[:limit],
        unreadable=unreadable[:limit],
    )
