"""The journal's tables, and how an older journal becomes a newer one.

``user_version`` is the number of migrations a file has seen. A file with more than we know comes
from a newer Punie and is left alone.
"""

import os
import sqlite3
from pathlib import Path
from typing import Final

from punie_protocol.errors import InvalidRequest, PunieError

type Db = sqlite3.Connection

MIGRATIONS: Final = (
    """
    CREATE TABLE projects (
        id TEXT PRIMARY KEY,
        root TEXT NOT NULL UNIQUE,
        isolation TEXT NOT NULL,
        created_at REAL NOT NULL
    ) STRICT;
    CREATE TABLE sessions (
        id TEXT PRIMARY KEY,
        project_id TEXT NOT NULL REFERENCES projects (id),
        title TEXT NOT NULL DEFAULT '',
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        next_seq INTEGER NOT NULL DEFAULT 1
    ) STRICT;
    CREATE INDEX sessions_by_project ON sessions (project_id, updated_at DESC);
    CREATE INDEX sessions_by_time ON sessions (updated_at DESC, id DESC);
    CREATE TABLE prompts (
        id TEXT PRIMARY KEY,
        session_id TEXT NOT NULL REFERENCES sessions (id),
        ordinal INTEGER NOT NULL,
        state TEXT NOT NULL,
        body BLOB NOT NULL,
        stop_reason TEXT,
        response BLOB,
        accepted_at REAL NOT NULL,
        finished_at REAL,
        error BLOB,
        UNIQUE (session_id, ordinal)
    ) STRICT;
    CREATE INDEX prompts_open ON prompts (state) WHERE state IN ('accepted', 'running');
    CREATE TABLE deltas (
        session_id TEXT NOT NULL REFERENCES sessions (id),
        ordinal INTEGER NOT NULL,
        prompt_id TEXT NOT NULL REFERENCES prompts (id),
        data BLOB NOT NULL,
        PRIMARY KEY (session_id, ordinal)
    ) STRICT;
    CREATE TABLE effects (
        id TEXT NOT NULL,
        session_id TEXT NOT NULL REFERENCES sessions (id),
        prompt_id TEXT NOT NULL REFERENCES prompts (id),
        tool TEXT NOT NULL,
        arguments BLOB NOT NULL,
        started_at REAL NOT NULL,
        finished_at REAL,
        ok INTEGER,
        summary TEXT,
        PRIMARY KEY (session_id, id)
    ) STRICT;
    CREATE TABLE updates (
        session_id TEXT NOT NULL REFERENCES sessions (id),
        seq INTEGER NOT NULL,
        prompt_id TEXT REFERENCES prompts (id),
        body BLOB NOT NULL,
        PRIMARY KEY (session_id, seq)
    ) STRICT;
    """,
    # An effect from before the migration belongs to a step that is over: -1 is before every delta.
    """
    ALTER TABLE sessions ADD COLUMN mode TEXT;
    ALTER TABLE prompts ADD COLUMN title TEXT NOT NULL DEFAULT '';
    ALTER TABLE effects ADD COLUMN ordinal INTEGER NOT NULL DEFAULT -1;
    CREATE INDEX effects_by_step ON effects (session_id, ordinal);
    CREATE INDEX prompts_by_time ON prompts (accepted_at DESC);
    CREATE TABLE grants (
        session_id TEXT NOT NULL REFERENCES sessions (id),
        key TEXT NOT NULL,
        allow INTEGER NOT NULL,
        PRIMARY KEY (session_id, key)
    ) STRICT;
    CREATE TABLE trust (
        project_id TEXT PRIMARY KEY REFERENCES projects (id),
        digest TEXT NOT NULL,
        at REAL NOT NULL
    ) STRICT;
    """,
    """
    ALTER TABLE projects ADD COLUMN confined TEXT NOT NULL DEFAULT '';
    ALTER TABLE projects ADD COLUMN unconfined INTEGER NOT NULL DEFAULT 0;
    """,
)


def open_database(path: Path) -> sqlite3.Connection:
    """Open or create the journal at `path`, 0600, migrated. Use it from this thread alone.

    Raises `PunieError` naming the file and what to do; an unreadable file is never touched.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
        db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    except (OSError, sqlite3.Error) as error:
        raise _unusable(path, str(error)) from None
    try:
        _prepare(db, path)
    except sqlite3.Error as error:
        db.close()
        raise _unusable(path, str(error)) from None
    except PunieError:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    check_version(db, path)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    for number in range(_version(db), len(MIGRATIONS)):
        db.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;"
        )
    db.execute("SELECT count(*) FROM sqlite_schema").fetchone()


def check_version(db: sqlite3.Connection, path: Path) -> None:
    """Raise `PunieError` for a journal that a newer Punie wrote."""
    if (version := _version(db)) > len(MIGRATIONS):
        raise PunieError(
            InvalidRequest(
                message=f"journal {path} is of version {version}, this Punie knows "
                f"{len(MIGRATIONS)}",
                hint="update Punie, or move the file away to start with an empty journal",
            )
        )


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _unusable(path: Path, reason: str) -> PunieError:
    return PunieError(
        InvalidRequest(
            message=f"cannot use journal {path}: {reason}",
            hint="move the file away (with its -wal and -shm) to start with an empty journal",
        )
    )
