"""The journal's statements on sessions and prompts: plain functions over a connection inside a
transaction. Those on projects are `journal_projects`'.

They run on the journal's thread, through `Journal.run` or `Journal.submit`. Times are Unix
seconds. An exception undoes that one operation.
"""

import time
from enum import StrEnum
from typing import Final

import msgspec

from punie_protocol.errors import InvalidRequest, NotFound, PunieError
from punie_protocol.messages.to_worker import Effect
from punie_protocol.permissions import Grant, Mode
from punie_supervisor.journal_projects import ProjectRow, project
from punie_supervisor.journal_schema import Db


class PromptState(StrEnum):
    """Where a prompt is: accepted ► running ► done | failed | interrupted; the last three, also
    straight from accepted, are final."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


OPEN: Final = (PromptState.ACCEPTED, PromptState.RUNNING)
_IS_OPEN: Final = "state IN ('accepted', 'running')"  # as in the index: only then is it used

MAX_STEP_ARGUMENTS: Final = 4 * 1024 * 1024
"""Bytes of arguments that the effects of one step come back with; further ones come without."""


class SessionRow(msgspec.Struct, frozen=True):
    """A session with its project."""

    id: str
    project: ProjectRow


class SessionSummary(msgspec.Struct, frozen=True):
    """A line of the list of sessions."""

    id: str
    root: str
    title: str
    updated_at: float


class AcceptedPrompt(msgspec.Struct, frozen=True):
    """A prompt that no worker has begun; `body` is the JSON of its params."""

    id: str
    session_id: str
    body: bytes


class SessionState(msgspec.Struct, frozen=True):
    """What a worker needs to take a session up, see `to_worker.OpenSession`."""

    deltas: list[bytes] = []
    mode: Mode | None = None
    grants: list[Grant] = []
    effects: list[Effect] = []


class BegunPrompt(msgspec.Struct, frozen=True):
    """A prompt that a worker had begun: the JSON of its params, and its deltas counted."""

    body: bytes
    stored: int


class PromptRow(msgspec.Struct, frozen=True):
    """A prompt that is known already. `response` is the result's JSON, `error` that of a JSON-RPC
    error object."""

    session_id: str
    state: PromptState
    response: bytes | None
    error: bytes | None


def create_session(db: Db, session_id: str, project_id: str, mode: Mode | None = None) -> None:
    """Add an empty session."""
    now = time.time()
    db.execute(
        "INSERT INTO sessions (id, project_id, created_at, updated_at, mode)"
        " VALUES (?, ?, ?, ?, ?)",
        (session_id, project_id, now, now, mode),
    )


def set_mode(db: Db, session_id: str, mode: Mode) -> None:
    """Set a session's permission mode. Raises `PunieError` (`NotFound`)."""
    changed = db.execute("UPDATE sessions SET mode = ? WHERE id = ?", (mode, session_id))
    if changed.rowcount != 1:
        raise _no_session(session_id)


def store_grant(db: Db, session_id: str, grant: Grant) -> None:
    """Keep an answer for the rest of its session; a later one replaces it."""
    db.execute(
        "INSERT INTO grants VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET allow = ?3",
        (session_id, grant.key, grant.allow),
    )


def remove_session(db: Db, session_id: str) -> None:
    """Remove a session that never had a prompt."""
    db.execute("DELETE FROM updates WHERE session_id = ?", (session_id,))
    db.execute("DELETE FROM grants WHERE session_id = ?", (session_id,))
    db.execute("DELETE FROM sessions WHERE id = ?", (session_id,))


def session(db: Db, session_id: str) -> SessionRow:
    """Return the session. Raises `PunieError` (`NotFound`)."""
    row = db.execute("SELECT project_id FROM sessions WHERE id = ?", (session_id,)).fetchone()
    if row is None:
        raise _no_session(session_id)
    return SessionRow(session_id, project(db, row[0]))


def list_sessions(
    db: Db, root: str | None, before: tuple[float, str] | None, limit: int
) -> list[SessionSummary]:
    """Return sessions, most recently used first, after the position `before` (time and id)."""
    rows = db.execute(
        "SELECT s.id, p.root, s.title, s.updated_at FROM sessions s"
        " JOIN projects p ON p.id = s.project_id"
        " WHERE (?1 IS NULL OR p.root = ?1)"
        " AND (?2 IS NULL OR (s.updated_at, s.id) < (?2, ?3))"
        " ORDER BY s.updated_at DESC, s.id DESC LIMIT ?4",
        (root, *(before or (None, None)), limit),
    )
    return [SessionSummary(*row) for row in rows]


def accept_prompt(
    db: Db, prompt_id: str, session_id: str, body: bytes, title: str
) -> PromptRow | None:
    """Make a prompt durable; the first one names its session. Return the row that is there when
    the id is known, and change nothing then."""
    if known := _prompt(db, prompt_id):
        return known
    now = time.time()
    db.execute(
        "INSERT INTO prompts (id, session_id, ordinal, state, body, accepted_at, title)"
        " VALUES (?, ?, (SELECT coalesce(max(ordinal) + 1, 0) FROM prompts WHERE session_id = ?2),"
        " ?, ?, ?, ?)",
        (prompt_id, session_id, PromptState.ACCEPTED.value, body, now, title),
    )
    db.execute(
        "UPDATE sessions SET updated_at = ?, title = iif(title = '', ?, title) WHERE id = ?",
        (now, title, session_id),
    )
    return None


def mark_running(db: Db, prompt_id: str) -> None:
    """A worker has the prompt."""
    db.execute(
        "UPDATE prompts SET state = 'running' WHERE id = ? AND state = 'accepted'", (prompt_id,)
    )


def finish_prompt(
    db: Db,
    prompt_id: str,
    state: PromptState,
    stop_reason: str | None,
    response: bytes | None,
    error: bytes | None,
) -> None:
    """Store how an open prompt ended. Raises `PunieError` when it is not open."""
    now = time.time()
    changed = db.execute(
        "UPDATE prompts SET state = ?, stop_reason = ?, response = ?, error = ?, finished_at = ?"
        " WHERE id = ? AND state IN ('accepted', 'running')",
        (state.value, stop_reason, response, error, now, prompt_id),
    )
    if changed.rowcount != 1:
        raise PunieError(InvalidRequest(message=f"prompt {prompt_id} is not open"))
    db.execute(
        "UPDATE sessions SET updated_at = ?"
        " WHERE id = (SELECT session_id FROM prompts WHERE id = ?)",
        (now, prompt_id),
    )


def interrupt_running_prompts(db: Db, error: bytes) -> int:
    """Mark every running prompt interrupted; return how many there were."""
    changed = db.execute(
        "UPDATE prompts SET state = 'interrupted', error = ?, finished_at = ?"
        f" WHERE {_IS_OPEN} AND state = 'running'",
        (error, time.time()),
    )
    return changed.rowcount


def accepted_prompts(db: Db) -> list[AcceptedPrompt]:
    """Return the prompts that no worker has begun, in the order they came."""
    rows = db.execute(
        f"SELECT id, session_id, body FROM prompts WHERE {_IS_OPEN} AND state = 'accepted'"
        " ORDER BY accepted_at, session_id, ordinal"
    )
    return [AcceptedPrompt(*row) for row in rows]


def store_delta(db: Db, session_id: str, ordinal: int, prompt_id: str, data: bytes) -> None:
    """Append new model messages. Raises `PunieError` when `ordinal` is not the next one."""
    (there,) = db.execute(
        "SELECT coalesce(max(ordinal) + 1, 0) FROM deltas WHERE session_id = ?", (session_id,)
    ).fetchone()
    if ordinal != there:
        raise PunieError(
            InvalidRequest(message=f"delta {ordinal} of session {session_id}: {there} was expected")
        )
    db.execute("INSERT INTO deltas VALUES (?, ?, ?, ?)", (session_id, ordinal, prompt_id, data))


def begun_prompt(db: Db, prompt_id: str) -> BegunPrompt:
    """Return what is needed to go on with an open prompt."""
    row = db.execute(
        "SELECT p.body, (SELECT count(*) FROM deltas d WHERE d.session_id = p.session_id"
        " AND d.prompt_id = p.id) FROM prompts p WHERE p.id = ?",
        (prompt_id,),
    ).fetchone()
    return BegunPrompt(*row)


def session_state(db: Db, session_id: str) -> SessionState:
    """Return what the session is opened with. Raises `PunieError` (`NotFound`)."""
    row = db.execute("SELECT mode FROM sessions WHERE id = ?", (session_id,)).fetchone()
    if row is None:
        raise _no_session(session_id)
    grants = db.execute(
        "SELECT key, allow FROM grants WHERE session_id = ? ORDER BY key", (session_id,)
    )
    return SessionState(
        deltas=deltas(db, session_id),
        mode=Mode(row[0]) if row[0] else None,
        grants=[Grant(key=key, allow=bool(allow)) for key, allow in grants],
        effects=open_effects(db, session_id),
    )


def open_effects(db: Db, session_id: str) -> list[Effect]:
    """Return the effects of the step that is not over, in the order they began."""
    rows = db.execute(
        "SELECT id, tool, arguments, ok, summary FROM effects WHERE session_id = ?1 AND ordinal >="
        " (SELECT coalesce(max(ordinal) + 1, 0) FROM deltas WHERE session_id = ?1) ORDER BY rowid",
        (session_id,),
    )
    room, found = MAX_STEP_ARGUMENTS, list[Effect]()
    for id, tool, arguments, ok, summary in rows:
        room -= len(arguments)
        found.append(
            Effect(
                effect_id=id,
                tool=tool,
                arguments=arguments if room >= 0 else b"",
                ok=None if ok is None else bool(ok),
                summary=summary or "",
            )
        )
    return found


def deltas(db: Db, session_id: str) -> list[bytes]:
    """Return the conversation, oldest first."""
    rows = db.execute(
        "SELECT data FROM deltas WHERE session_id = ? ORDER BY ordinal", (session_id,)
    )
    return [data for (data,) in rows]


def start_effect(
    db: Db,
    effect_id: str,
    session_id: str,
    prompt_id: str,
    ordinal: int,
    tool: str,
    arguments: bytes,
) -> None:
    """A tool with effects is about to begin, in the step before delta `ordinal`."""
    db.execute(
        "INSERT INTO effects (id, session_id, prompt_id, ordinal, tool, arguments, started_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (effect_id, session_id, prompt_id, ordinal, tool, arguments, time.time()),
    )


def finish_effect(db: Db, effect_id: str, session_id: str, ok: bool, summary: str) -> None:
    """That tool ended. Raises `PunieError` when it had not begun."""
    changed = db.execute(
        "UPDATE effects SET finished_at = ?, ok = ?, summary = ?"
        " WHERE session_id = ? AND id = ? AND finished_at IS NULL",
        (time.time(), ok, summary, session_id, effect_id),
    )
    if changed.rowcount != 1:
        raise PunieError(InvalidRequest(message=f"effect {effect_id} is not under way"))


def append_update(db: Db, session_id: str, prompt_id: str | None, body: bytes) -> int:
    """Store an update and return its sequence number: 1, 2, … in each session."""
    row = db.execute(
        "UPDATE sessions SET next_seq = next_seq + 1 WHERE id = ? RETURNING next_seq - 1",
        (session_id,),
    ).fetchone()
    if row is None:
        raise _no_session(session_id)
    db.execute("INSERT INTO updates VALUES (?, ?, ?, ?)", (session_id, row[0], prompt_id, body))
    return int(row[0])


def barrier(db: Db) -> None:
    """Nothing: it is over once all that was submitted before it is durable."""


def _prompt(db: Db, prompt_id: str) -> PromptRow | None:
    row = db.execute(
        "SELECT session_id, state, response, error FROM prompts WHERE id = ?", (prompt_id,)
    ).fetchone()
    return row and PromptRow(row[0], PromptState(row[1]), row[2], row[3])


def _no_session(session_id: str) -> PunieError:
    return PunieError(NotFound(message=f"there is no session {session_id}", what=session_id))
