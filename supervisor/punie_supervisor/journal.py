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

from punie_protocol.errors import Internal, PunieError, WireError
from punie_supervisor import logs
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
        """Queue an operation, waiting only while `MAX_WAITING` are under way.

        Never raises: the future does, `PunieError`, when the operation failed. A failed commit
        fails all of its batch; a connection that cannot be rolled back, and a closed journal, fail
        everything from then on.
        """
        await self._room.acquire()
        future: asyncio.Future[R] = self._loop.create_future()
        if self._closed:
            error = PunieError(Internal(message=f"journal {self._path} is closed"))
            self._resolve([(future, None, error)])
        else:
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
        except Exception as error:  # noqa: BLE001 - whoever opens it gets it
            self._loop.call_soon_threadsafe(self._opened.set_exception, error)
            return
        self._loop.call_soon_threadsafe(self._opened.set_result, None)
        try:
            self._serve(db)
        finally:
            db.close()

    def _serve(self, db: sqlite3.Connection) -> None:
        broken: PunieError | None = None
        while batch := self._take():
            results: list[_Result] = []
            if broken is None:
                try:
                    results = self._commit(db, batch)
                except Exception as error:  # noqa: BLE001 - nobody else could tell those who wait
                    broken = self._fault(error)
                    self._loop.call_soon_threadsafe(_log_broken, str(broken))
            if broken is not None:
                results = [(future, None, broken) for _, future in batch]
            self._loop.call_soon_threadsafe(self._resolve, results)

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
        """Run a batch and commit it. Raises when a failed one cannot be rolled back: what the
        connection would do next is not known then."""
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

    def _fault(self, error: Exception) -> PunieError:
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
                future.exception()  # not everyone who submits has an answer to give


def fault_of(stored: asyncio.Future[Any]) -> WireError | None:
    """Return why a finished operation failed, ``None`` when it did not."""
    error = stored.exception()
    if error is None:
        return None
    return error.error if isinstance(error, PunieError) else Internal(message=repr(error))


def _log_broken(reason: str) -> None:
    logs.get().error("journal.broken", reason=reason)


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
