"""The journal's statements on projects; see `journal_ops`."""

import time

import msgspec

from punie_protocol.messages.common import Isolation
from punie_supervisor.journal_schema import Db


class ProjectRow(msgspec.Struct, frozen=True):
    """A project. `trusted` is the digest of its own settings as the user trusted them, `confined`
    why it runs alone although its level shares, `unconfined` whether the user lets its commands
    run where there is no sandbox."""

    id: str
    root: str
    isolation: Isolation
    trusted: str = ""
    confined: str = ""
    unconfined: bool = False


class ProjectSummary(msgspec.Struct, frozen=True):
    """A line of the status report."""

    project: ProjectRow
    sessions: int
    last_session: str | None


def ensure_project(db: Db, id: str, root: str, isolation: Isolation) -> ProjectRow:
    """Return the project at `root`, made with `isolation` if it is new."""
    db.execute(
        "INSERT INTO projects (id, root, isolation, created_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (id) DO NOTHING",
        (id, root, isolation.value, time.time()),
    )
    return project(db, id)


def project(db: Db, id: str) -> ProjectRow:
    """Return a project that is there."""
    row = db.execute(f"SELECT {_COLUMNS} FROM {_TABLES} WHERE p.id = ?", (id,)).fetchone()
    return _row(row)


def list_projects(db: Db, limit: int) -> list[ProjectSummary]:
    """Return projects in order of their root, with their sessions counted."""
    rows = db.execute(
        f"SELECT {_COLUMNS}, count(s.id),"
        " (SELECT id FROM sessions WHERE project_id = p.id ORDER BY updated_at DESC LIMIT 1)"
        f" FROM {_TABLES} LEFT JOIN sessions s ON s.project_id = p.id"
        " GROUP BY p.id ORDER BY p.root LIMIT ?",
        (limit,),
    )
    return [ProjectSummary(_row(row[:-2]), *row[-2:]) for row in rows]


def set_isolation(db: Db, id: str, isolation: Isolation) -> None:
    """Change a project's level; from now on nothing confines it."""
    db.execute(
        "UPDATE projects SET isolation = ?, confined = '' WHERE id = ?", (isolation.value, id)
    )


def confine(db: Db, id: str, reason: str) -> None:
    """The project runs alone from now on."""
    db.execute("UPDATE projects SET confined = ? WHERE id = ?", (reason, id))


def set_unconfined(db: Db, id: str, unconfined: bool) -> None:
    """Whether its commands may run where there is no sandbox."""
    db.execute("UPDATE projects SET unconfined = ? WHERE id = ?", (int(unconfined), id))


def set_trust(db: Db, id: str, digest: str) -> None:
    """The user trusts a project's own settings as `digest` says; an empty one ends that."""
    db.execute("DELETE FROM trust WHERE project_id = ?", (id,))
    if digest:
        db.execute("INSERT INTO trust VALUES (?, ?, ?)", (id, digest, time.time()))


_COLUMNS = "p.id, p.root, p.isolation, coalesce(t.digest, ''), p.confined, p.unconfined"
_TABLES = "projects p LEFT JOIN trust t ON t.project_id = p.id"


def _row(row: tuple[str, str, str, str, str, int]) -> ProjectRow:
    id, root, isolation, trusted, confined, unconfined = row
    return ProjectRow(id, root, Isolation(isolation), trusted, confined, bool(unconfined))
