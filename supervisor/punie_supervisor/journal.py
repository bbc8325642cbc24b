"""The journal: what must survive, in one SQLite file with one writer thread.

Operations (`journal_ops`) run in the order of their submission. The thread takes all that wait,
runs them in one transaction, each in a savepoint of its own, and commits with ``synchronous =
FULL``; only then do their futures resolve, in the same order. So a future's callback is the place
for whatever must come after durability and in order.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, Final, Self

from punie_protocol.errors import Internal, PunieError
from punie_supervisor.journal_schema import open_database

MAX_WAITING: Final = 1024
"""Operations submitted and not done; more wait in `submit`."""
MAX_BATCH: Final = 256

type _Work = Callable[[sqlite3.Connection], Any]
type _Result = tuple[asyncio.Future[Any], Any, BaseException | None]


class Journal:
    """Owns the file and its thread from `open` to `close`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(MAX_WAITING)
        self._queue: queue.SimpleQueue[tuple[_Work, asyncio.Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open or create the journal. Raises `PunieError` when the file cannot be used."""
        journal = cls(path)
        journal._thread.start()
        await journal._opened
        return journal

    async def submit[**P, R](
        self,
        operation: Callable[Concatenate[sqlite3.Connection, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> asyncio.Future[R]:
        """Queue an operation, waiting only while `MAX_WAITING` are under way. The future raises
        `PunieError` when it failed; a failed commit fails all of its batch."""
        await self._room.acquire()
        if self._closed:
            self._room.release()
            raise PunieError(Internal(message=f"journal {self._path} is closed"))
        future: asyncio.Future[R] = self._loop.create_future()
        self._queue.put((lambda db: operation(db, *args, **kwargs), future))
        return future

    async def run[**P, R](
        self,
        operation: Callable[Concatenate[sqlite3.Connection, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run an operation and return its result. Cancelling stops the wait, not the operation."""
        return await (await self.submit(operation, *args, **kwargs))

    async def close(self) -> None:
        """Finish what was submitted, then close the file. Idempotent."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    # the thread's side

    def _run(self) -> None:
        try:
            db = open_database(self._path)
        except PunieError as error:
            self._loop.call_soon_threadsafe(self._opened.set_exception, error)
            return
        self._loop.call_soon_threadsafe(self._opened.set_result, None)
        try:
            while batch := self._take():
                self._loop.call_soon_threadsafe(self._resolve, self._commit(db, batch))
        finally:
            db.close()

    def _take(self) -> list[tuple[_Work, asyncio.Future[Any]]]:
        """Return what waits, at least one; nothing at the end."""
        batch = []
        item = self._queue.get()
        while item is not None:
            batch.append(item)
            if len(batch) == MAX_BATCH:
                break
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
        else:
            if batch:
                self._queue.put(None)  # the end came behind work: work first
        return batch

    def _commit(
        self, db: sqlite3.Connection, batch: list[tuple[_Work, asyncio.Future[Any]]]
    ) -> list[_Result]:
        results: list[_Result] = []
        try:
            db.execute("BEGIN")
            for work, future in batch:
                results.append((future, *_one(db, work)))
            db.execute("COMMIT")
        except sqlite3.Error as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            fault = self._fault(error)
            return [(future, None, fault) for _, future in batch]
        return [(future, value, self._typed(error)) for future, value, error in results]

    def _typed(self, error: BaseException | None) -> BaseException | None:
        return self._fault(error) if isinstance(error, sqlite3.Error) else error

    def _fault(self, error: sqlite3.Error) -> PunieError:
        return PunieError(
            Internal(
                message=f"journal {self._path} cannot store this: {error}",
                hint="check that the disk is writable and has room",
            )
        )

    # the loop's side

    def _resolve(self, results: list[_Result]) -> None:
        for future, value, error in results:
            self._room.release()
            if future.cancelled():
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)


def _one(db: sqlite3.Connection, work: _Work) -> tuple[Any, BaseException | None]:
    """Run one operation so that its failure undoes it alone. Raises `sqlite3.Error` when the whole
    transaction is lost."""
    db.execute("SAVEPOINT operation")
    try:
        value = work(db)
    except Exception as error:
        if not db.in_transaction:
            raise
        db.execute("ROLLBACK TO operation")
        db.execute("RELEASE operation")
        return None, error
    db.execute("RELEASE operation")
    return value, None
